# SPDX-License-Identifier: Apache-2.0
"""`POST /1.0/instances/NAME/rebuild`: another root for an instance that keeps its settings.

The new root is made whole beside the old one, then they change places; the old one goes last.
"""

import logging
from pathlib import Path
from typing import Any

import msgspec

from flexd.api.errors import BadRequest, FlexdError
from flexd.api.instance import InstanceRebuildPost
from flexd.images.applications import application_config
from flexd.images.contract import ImageNotFound, ImageRecord
from flexd.images.images import Images
from flexd.instances.check import root_size_bytes
from flexd.instances.creation import Creation, image_config
from flexd.instances.firstboot import rebuilt
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.metadata import MetadataDocuments
from flexd.instances.record import Config, InstanceRecord
from flexd.instances.registry import Registry
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.projects.projects import Projects
from flexd.storage.contract import VolumeRef
from flexd.storage.pools import Pools

log = logging.getLogger(__name__)

Args = dict[str, Any]
_OF_IMAGES = ("image.", "volatile.base_image", "volatile.container.")


class Rebuild:
    def __init__(
        self,
        *,
        registry: Registry,
        projects: Projects,
        creation: Creation,
        pools: Pools,
        images: Images,
        metadata: MetadataDocuments,
        lifecycle: Lifecycle,
        journal: Journal,
        operations: Operations,
        locks: Locks,
        events: Events,
    ) -> None:
        self._registry = registry
        self._projects = projects
        self._creation = creation
        self._pools = pools
        self._images = images
        self._metadata = metadata
        self._lifecycle = lifecycle
        self._journal = journal
        self._operations = operations
        self._locks = locks
        self._events = events
        journal.register("rebuild.volume", self._make, self._unmake)
        journal.register("rebuild.rename", self._rename, self._rename_back)
        journal.register("rebuild.record", self._write, self._write_back)
        journal.register("rebuild.drop", self._drop)

    async def rebuild(self, project: str, name: str, post: InstanceRebuildPost) -> Operation:
        source = post.source
        if source.type not in ("image", "none"):
            raise BadRequest(
                f'Failed rebuilding instance "{name}": source type "{source.type}" is not supported (image or none)'
            )
        record = self._registry.instance(project, name)
        self._check(record)
        fetch = None
        image = None
        if source.type == "image" and source.server:
            fetch = await self._creation.remote_image(project, source, record.architecture)
        else:
            image = self._creation.source_image(project, name, source)

        async def run(operation: Operation) -> None:
            owner = self._projects.owner(project, "images")
            found = image if fetch is None else await self._images.cache(owner, fetch, operation.progress)
            await self._rebuild(project, name, found, operation.progress)

        return self._operations.start(
            kind="task",
            description="Rebuilding instance",
            project=project,
            resources={"instances": [record.url]},
            run=run,
        )

    def _check(self, record: InstanceRecord) -> None:
        if self._lifecycle.running(record) is not None:
            raise BadRequest("Instance must be stopped to be rebuilt")
        if self._registry.snapshots_of(record):
            raise BadRequest("Cannot rebuild an instance with snapshots")

    async def _rebuild(self, project: str, name: str, image: ImageRecord | None, progress: Progress) -> None:
        old = self._registry.instance(project, name)
        async with self._locks.hold_all([f"instance/{project}/{name}", old.root_key, old.still_key], "rebuild"):
            old = self._registry.instance(project, name)
            self._check(old)
            new = msgspec.structs.replace(
                old,
                config=await self._config(old.config, image),
                metadata=await self._metadata.of_image(image.fingerprint) if image else "",
            )
            await self._pools.unmount(old.volume)
            size_bytes = root_size_bytes(self._registry.expand(new))
            await self._journal.run(rebuild_plan(old, new, image, size_bytes), progress)
        self._events.lifecycle("instance-rebuilt", old.url, project)

    async def _config(self, config: Config, image: ImageRecord | None) -> Config:
        """The settings stay; what told of the former image tells of the new one."""
        told = await self._told_by(config.get("volatile.base_image", ""))
        kept = {k: v for k, v in config.items() if not k.startswith(_OF_IMAGES) and told.get(k) != v}
        new = await self._told_by(image.fingerprint) if image else {}
        about = image_config(image) if image else {}
        return rebuilt(new | kept | {"volatile.last_state.idmap": "[]"} | about)

    async def _told_by(self, fingerprint: str) -> Config:
        """The keys that an OCI image gave to an instance, as far as it is still known."""
        try:
            application = await self._images.application(fingerprint) if fingerprint else None
        except ImageNotFound:
            return {}
        return application_config(application) if application else {}

    async def _make(self, args: Args, progress: Progress) -> None:
        fingerprint = args["fingerprint"]

        async def unpack(target: Path) -> None:
            await self._images.unpack(fingerprint, target, progress)

        image = (fingerprint, unpack) if fingerprint else None
        await self._pools.create_instance(_ref(args), args["project"], image=image, size_bytes=args["size_bytes"])

    async def _unmake(self, args: Args) -> None:
        await self._pools.delete_volume(_ref(args))

    async def _rename(self, args: Args, _progress: Progress) -> None:
        await self._pools.rename_volume(_ref(args), args["new"])

    async def _rename_back(self, args: Args) -> None:
        await self._pools.rename_volume(VolumeRef(args["pool"], "container", args["new"]), args["volume"])

    async def _write(self, args: Args, _progress: Progress) -> None:
        await self._put(args["new"])

    async def _write_back(self, args: Args) -> None:
        await self._put(args["old"])

    async def _put(self, text: str) -> None:
        record = msgspec.json.decode(text, type=InstanceRecord)
        found = self._registry.find(record.project, record.name)
        if found.value != record:
            await self._registry.instances.update(found.path, record, found.revision)

    async def _drop(self, args: Args, _progress: Progress) -> None:
        """The instance is rebuilt by now: what cannot be removed must not undo that."""
        try:
            await self._pools.delete_volume(_ref(args))
        except FlexdError as error:
            log.error('Failed removing the former root of instance "%s": %s', args["name"], error)


def _ref(args: Args) -> VolumeRef:
    return VolumeRef(args["pool"], "container", args["volume"])


def rebuild_plan(old: InstanceRecord, new: InstanceRecord, image: ImageRecord | None, size_bytes: int) -> Plan:
    """A dot is in no instance's name, so the names beside it are free. Each step is whole or not there at all; a
    restarted daemon finishes."""
    volume = old.storage_name
    made, former = f"{volume}.rebuilt", f"{volume}.former"
    where = {"project": old.project, "name": old.name, "pool": old.pool}
    fingerprint = image.fingerprint if image else ""
    documents = {key: msgspec.json.encode(record).decode() for key, record in (("old", old), ("new", new))}
    return Plan(
        f'rebuild instance "{old.name}"',
        (
            Step("rebuild.volume", {**where, "volume": made, "fingerprint": fingerprint, "size_bytes": size_bytes}),
            Step("rebuild.rename", {**where, "volume": volume, "new": former}),
            Step("rebuild.rename", {**where, "volume": made, "new": volume}),
            Step("rebuild.record", documents),
            Step("rebuild.drop", {**where, "volume": former}),
        ),
        on_crash="finish",
    )
