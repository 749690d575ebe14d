# SPDX-License-Identifier: Apache-2.0
"""`POST /1.0/instances`: a new instance from an image, from nothing, or from another instance or its snapshot."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from flexd.api.errors import BadRequest, Conflict
from flexd.api.image import ImagesPostSource
from flexd.api.instance import InstanceSource, InstancesPost
from flexd.api.times import now
from flexd.images.applications import GROUPS, IS_APPLICATION, STOP_SIGNAL, application_config
from flexd.images.contract import ImageRecord
from flexd.images.images import Images
from flexd.images.sources import RemoteFetch
from flexd.instances.check import root_size_bytes
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.metadata import MetadataDocuments
from flexd.instances.migration.sink import MigrationSink
from flexd.instances.plan import copy_plan, create_plan
from flexd.instances.record import Config, Expanded, InstanceRecord, SnapshotRecord
from flexd.instances.registry import Registry
from flexd.instances.resolve import Resolver, Wanted
from flexd.operations.contract import Plan
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.projects.projects import Projects
from flexd.storage.contract import VolumeRef
from flexd.storage.pools import Pools
from flexd.store.contract import RevisionConflict

# LXD keeps what made an image known on the instance, except what only describes the file.
_IMAGE_KEYS_LEFT_OUT = frozenset({"requirements", "requirements.cgroup"})

_KEPT_BY_COPIES = ("volatile.base_image", IS_APPLICATION, STOP_SIGNAL, GROUPS)


class Creation:
    """Resolves and checks everything first; what is then made is undone as a whole if a step fails."""

    def __init__(
        self,
        *,
        registry: Registry,
        projects: Projects,
        resolver: Resolver,
        pools: Pools,
        images: Images,
        metadata: MetadataDocuments,
        lifecycle: Lifecycle,
        sink: MigrationSink,
        journal: Journal,
        operations: Operations,
        locks: Locks,
        events: Events,
    ) -> None:
        self._registry = registry
        self._projects = projects
        self._resolver = resolver
        self._pools = pools
        self._images = images
        self._metadata = metadata
        self._lifecycle = lifecycle
        self._sink = sink
        self._journal = journal
        self._operations = operations
        self._locks = locks
        self._events = events
        journal.register("copies.volume", self._copy_volume, self._uncopy_volume)
        journal.register("copies.snapshots", self._copy_snapshots)
        journal.register("copies.refresh", self._refresh_volume)

    async def create(self, project: str, post: InstancesPost) -> Operation:
        if post.type not in ("", "container"):
            raise BadRequest(f'Failed creating instance: type "{post.type}" is not supported (container is)')
        if post.instance_type:
            raise BadRequest(f'Failed creating instance: instance type "{post.instance_type}" is not known')
        if post.source.type in ("image", "none"):
            return await self._from_image(project, post)
        if post.source.type == "copy":
            return await self._from_copy(project, post)
        if post.source.type == "migration":
            return await self._sink.create(project, post)
        known = "image, none, copy or migration"
        raise BadRequest(f'Failed creating instance: source type "{post.source.type}" is not known ({known})')

    def _start(self, record: InstanceRecord, run: Any, *, may_cancel: bool = False) -> Operation:
        return self._operations.start(
            kind="task",
            description="Creating instance",
            project=record.project,
            resources={"instances": [record.url]},
            run=run,
            may_cancel=may_cancel,
        )

    # --- from an image, or empty ---

    async def _from_image(self, project: str, post: InstancesPost) -> Operation:
        name = self._resolver.free_name(project, post.name)
        if post.source.type == "image" and post.source.server:
            return await self._from_remote_image(project, name, post)
        made = await self._plan_from_image(project, name, post, self.source_image(project, name, post.source))
        return self._start(made[0], lambda operation: self._carry_out(operation, *made))

    async def _from_remote_image(self, project: str, name: str, post: InstancesPost) -> Operation:
        """An image of another server: fetched first, unless it is here. Every fault that is not about the image is
        told before that."""
        fetch = await self.remote_image(project, post.source, post.architecture)
        record, _, _ = await self._plan_from_image(project, name, post, None)

        async def run(operation: Operation) -> None:
            image = await self._images.cache(self._projects.owner(project, "images"), fetch, operation.progress)
            await self._carry_out(operation, *await self._plan_from_image(project, name, post, image))

        return self._start(record, run, may_cancel=True)

    async def _plan_from_image(
        self, project: str, name: str, post: InstancesPost, image: ImageRecord | None
    ) -> tuple[InstanceRecord, Expanded, Plan]:
        wanted = Wanted(
            profiles=_profiles(post, image),
            config=post.config,
            devices=post.devices,
            architecture=post.architecture or (image.architecture if image else ""),
            description=post.description,
            ephemeral=post.ephemeral,
            kept=image_config(image) | await self._application(project, post, image) if image else {},
            metadata=await self._metadata.of_image(image.fingerprint) if image else "",
        )
        record, expanded = await self._resolver.record(project, name, wanted)
        plan = create_plan(
            record,
            msgspec.json.encode(record).decode(),
            fingerprint=image.fingerprint if image else None,
            size_bytes=root_size_bytes(expanded),
        )
        return record, expanded, plan

    async def remote_image(self, project: str, source: InstanceSource, architecture: str) -> RemoteFetch:
        """An image of another server, which the project may use."""
        self._projects.check_image_server(project, urlsplit(source.server).hostname or source.server)
        wanted = architecture or self._projects.value(project, "images.default_architecture")
        return await self._images.remote(image_source(source), wanted)

    async def _application(self, project: str, post: InstancesPost, image: ImageRecord) -> Config:
        """What an OCI image says of its program, where neither the client nor a profile does."""
        application = await self._images.application(image.fingerprint)
        if application is None:
            return {}
        given = self._registry.expand_with(project, _known(self._registry, project, post, image), post.config, {})
        return {key: value for key, value in application_config(application).items() if key not in given.config}

    def source_image(self, project: str, name: str, source: InstanceSource) -> ImageRecord | None:
        """An image of this server, or None for an instance made from nothing. `project`: the instance's."""
        project = self._projects.owner(project, "images")
        if source.type == "none":
            return None
        if source.properties and not (source.alias or source.fingerprint):
            return self._image_with(project, name, source.properties)
        wanted = source.fingerprint or source.alias
        if not wanted:
            raise BadRequest(f'Failed creating instance "{name}": Must specify one of alias, fingerprint or properties')
        return self._images.resolve(project, wanted)

    def _image_with(self, project: str, name: str, properties: Mapping[str, str]) -> ImageRecord:
        """The newest image that has all these properties."""
        fitting = [
            image
            for image in self._images.show_all(project)
            if all(image.properties.get(key) == value for key, value in properties.items())
        ]
        if not fitting:
            raise BadRequest(f'Failed creating instance "{name}": No image has the requested properties')
        newest = max(fitting, key=lambda image: image.created_at)
        return self._images.resolve(project, newest.fingerprint)

    async def _carry_out(self, operation: Operation, record: InstanceRecord, expanded: Expanded, plan: Plan) -> None:
        async with self._locks.hold(f"instance/{record.project}/{record.name}", "create"):
            try:
                await self._journal.run(plan, operation.progress)
            except RevisionConflict as error:
                raise Conflict(f'Failed creating instance "{record.name}": the name was taken meanwhile') from error
        await self._lifecycle.announce_ports(expanded)
        self._events.lifecycle("instance-created", record.url, record.project, {"type": record.type})

    # --- from another instance or its snapshot ---

    async def _from_copy(self, project: str, post: InstancesPost) -> Operation:
        source_project = post.source.project or project
        name, _, snapshot = post.source.source.partition("/")
        source = self._registry.instance(source_project, name)
        origin = source
        if snapshot:
            origin = self._registry.find_snapshot(source_project, name, snapshot).value.instance
        if post.source.refresh and self._registry.instances.get(project, post.name) is not None:
            return await self._refresh(project, post, source)
        new_name = self._resolver.free_name(project, post.name)
        record, expanded = await self._resolver.record(project, new_name, _copied(post, origin))
        alone = bool(snapshot) or post.source.instance_only or post.source.container_only
        plan = self._copy_plan(source, snapshot, record, root_size_bytes(expanded), alone=alone)

        async def run(operation: Operation) -> None:
            async with (
                self._locks.hold(f"instance/{source_project}/{name}", "copy"),
                self._lifecycle.quiet(source),
            ):
                await self._carry_out(operation, record, expanded, plan)

        return self._start(record, run)

    def _copy_plan(
        self, source: InstanceRecord, snapshot: str, record: InstanceRecord, size_bytes: int, *, alone: bool
    ) -> Plan:
        snapshots = [] if alone else self._registry.snapshots_of(source)
        documents = [
            msgspec.json.encode(msgspec.structs.replace(kept, instance=_of_copy(kept.instance, record))).decode()
            for kept in snapshots
        ]
        volumes = {
            "pool": source.pool,
            "volume": source.storage_name,
            "snapshot": snapshot,
            "snapshots": [kept.name for kept in snapshots],
            "target_pool": record.pool,
            "target": record.storage_name,
            "size_bytes": size_bytes,
            "source_project": source.project,
            "source": source.name,
        }
        return copy_plan(record, msgspec.json.encode(record).decode(), volumes, documents)

    async def _copy_volume(self, args: dict[str, Any], _progress: Any) -> None:
        source = VolumeRef(args["pool"], "container", args["volume"])
        target = VolumeRef(args["target_pool"], "container", args["target"])
        await self._pools.copy(
            source,
            target,
            args["project"],
            snapshot=args["snapshot"] or None,
            snapshots=args["snapshots"],
            size_bytes=args["size_bytes"],
            live=self._runs(args),
        )

    def _runs(self, args: dict[str, Any]) -> bool:
        source = self._registry.instances.get(args["source_project"], args["source"])
        return source is not None and self._lifecycle.running(source.value) is not None

    async def _uncopy_volume(self, args: dict[str, Any]) -> None:
        await self._pools.delete_volume(VolumeRef(args["target_pool"], "container", args["target"]))

    async def _copy_snapshots(self, args: dict[str, Any], _progress: Any) -> None:
        snapshots = self._registry.snapshots
        records = [msgspec.json.decode(text, type=SnapshotRecord) for text in args["documents"]]
        await snapshots.txn([snapshots.put((r.instance.project, r.instance.name, r.name), r) for r in records])

    async def _refresh(self, project: str, post: InstancesPost, source: InstanceRecord) -> Operation:
        """`refresh` of an existing copy: its files become the source's again, its own settings stay."""
        target = self._registry.instance(project, post.name)
        if self._lifecycle.running(target) is not None:
            raise BadRequest(f'Failed refreshing instance "{target.name}": Cannot refresh a running instance')
        alone = post.source.instance_only or post.source.container_only
        plan = self._copy_plan(source, "", target, 0, alone=alone)
        plan = msgspec.structs.replace(
            plan,
            steps=tuple(
                msgspec.structs.replace(step, action="copies.refresh") if step.action == "copies.volume" else step
                for step in plan.steps
                if step.action != "instances.record"
            ),
            on_crash="finish",
        )

        async def run(operation: Operation) -> None:
            keys = [f"instance/{r.project}/{r.name}" for r in (source, target)]
            async with self._locks.hold_all(keys, "refresh"), self._lifecycle.quiet(source):
                await self._journal.run(plan, operation.progress)

        return self._start(target, run)

    async def _refresh_volume(self, args: dict[str, Any], _progress: Any) -> None:
        source = VolumeRef(args["pool"], "container", args["volume"])
        target = VolumeRef(args["target_pool"], "container", args["target"])
        await self._pools.refresh(source, target, args["project"], snapshots=args["snapshots"], live=self._runs(args))


def image_config(image: ImageRecord) -> Config:
    kept = {f"image.{k}": v for k, v in image.properties.items() if k not in _IMAGE_KEYS_LEFT_OUT}
    return kept | {"volatile.base_image": image.fingerprint}


def _known(registry: Registry, project: str, post: InstancesPost, image: ImageRecord) -> list[str]:
    """The profiles that exist; that all do is told later."""
    return [name for name in _profiles(post, image) if registry.profiles.get(project, name) is not None]


def _profiles(post: InstancesPost, image: ImageRecord | None) -> list[str]:
    """Those asked for, else the image's (extension: image_profiles)."""
    if post.profiles is not None:
        return post.profiles
    return image.profiles if image is not None else ["default"]


def image_source(source: InstanceSource) -> ImagesPostSource:
    return ImagesPostSource(
        type="image",
        mode=source.mode,
        alias=source.alias,
        certificate=source.certificate,
        fingerprint=source.fingerprint,
        project=source.project,
        protocol=source.protocol,
        secret=source.secret,
        server=source.server,
    )


def _copied(post: InstancesPost, origin: InstanceRecord) -> Wanted:
    """What the request leaves open is the source's, key by key and device by device, as in LXD."""
    config = {key: value for key, value in origin.config.items() if not key.startswith("volatile.")}
    kept = {key: origin.config[key] for key in _KEPT_BY_COPIES if key in origin.config}
    return Wanted(
        profiles=origin.profiles if post.profiles is None else post.profiles,
        config=config | post.config,
        devices=origin.devices | post.devices,
        architecture=origin.architecture,
        description=post.description or origin.description,
        ephemeral=post.ephemeral,
        kept=kept,
        metadata=origin.metadata,
        trigger="copy",
    )


def _of_copy(past: InstanceRecord, copy: InstanceRecord) -> InstanceRecord:
    """What a snapshot kept of its instance, as a snapshot of the copy."""
    return msgspec.structs.replace(
        past, name=copy.name, project=copy.project, pool=copy.pool, created_at=copy.created_at or now()
    )
