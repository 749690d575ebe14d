# SPDX-License-Identifier: Apache-2.0
"""The journalled actions behind the plans: each `do` and `undo` may be repeated and may find half of the work done."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from flexd.api.errors import FlexdError, Forbidden
from flexd.api.units import is_true
from flexd.devices.contract import DeviceContext, Kind
from flexd.devices.devices import Devices
from flexd.images.images import Images
from flexd.instances.allocator import current_idmap
from flexd.instances.confinement import Confinement
from flexd.instances.firstboot import renamed
from flexd.instances.limiter import Limiter
from flexd.instances.name_files import NameFiles
from flexd.instances.project_rules import ProjectRules
from flexd.instances.record import Attached, DeviceEntries, Expanded, InstanceRecord, device_volatile
from flexd.instances.registry import Registry
from flexd.instances.restrictions import disk_parent
from flexd.instances.spec import container_spec, is_application
from flexd.instances.templates import Templates
from flexd.operations.contract import Progress
from flexd.operations.journal import Journal
from flexd.projects.projects import Projects
from flexd.runtime.contract import ContainerSpec, Obstacle, RunningContainer, Runtime
from flexd.storage.contract import VolumeRef
from flexd.storage.pools import Pools
from flexd.store.contract import Delete, Put

Args = dict[str, Any]


class Actions:
    """Registers itself with the journal; holds no state of its own."""

    def __init__(
        self,
        *,
        registry: Registry,
        projects: Projects,
        rules: ProjectRules,
        devices: Devices,
        pools: Pools,
        images: Images,
        runtime: Runtime,
        limiter: Limiter,
        confinement: Confinement,
        templates: Templates,
        name_files: NameFiles,
        journal: Journal,
        directory: Path,
    ) -> None:
        self._registry = registry
        self._projects = projects
        self._rules = rules
        self._devices = devices
        self._pools = pools
        self._images = images
        self._runtime = runtime
        self._limiter = limiter
        self._confinement = confinement
        self._templates = templates
        self._name_files = name_files
        self._directory = directory
        # By running name: whether what was restored and waits may go on (returns), or must not (raises).
        self.deciding: dict[str, Callable[[], Awaitable[None]]] = {}
        register = journal.register
        register("instances.record", self._record, self._unrecord)
        register("instances.volume", self._volume, self._unvolume)
        register("instances.mount", self._mount, self._unmount)
        register("instances.device", self._device, self._undevice)
        register("instances.launch", self._launch, self._unlaunch)
        register("instances.resume", self._resume, self._unlaunch)
        register("instances.activate", self._activate)
        register("instances.release_device", self._release_device)
        register("instances.unmount", self._release_mount)
        register("instances.forget_runtime", self._forget_runtime)
        register("instances.delete_volume", self._delete_volume)
        register("instances.delete_record", self._delete_record)
        register("instances.rename_volume", self._rename_volume, self._rename_volume_back)
        register("instances.rename_runtime", self._rename_runtime, self._rename_runtime_back)
        register("instances.rename_record", self._rename_record)

    # --- create and delete ---

    async def _record(self, args: Args, _progress: Progress) -> None:
        record = msgspec.json.decode(args["document"], type=InstanceRecord)
        path = (record.project, record.name)
        known = self._registry.instances.get(*path)
        if known is not None and known.value == record:
            return
        instances = self._registry.instances
        await self._projects.write(
            [record.project],
            [instances.put(path, record)],
            [instances.unchanged(path, 0)],
            lambda: self._rules.check([record]),
        )

    async def _unrecord(self, args: Args) -> None:
        # Only what this plan wrote: the name may belong to somebody who was there first.
        record = msgspec.json.decode(args["document"], type=InstanceRecord)
        known = self._registry.instances.get(record.project, record.name)
        if known is not None and known.value.config.get("volatile.uuid") == record.config["volatile.uuid"]:
            await self._registry.instances.delete((record.project, record.name))

    async def _volume(self, args: Args, progress: Progress) -> None:
        fingerprint = args["fingerprint"]
        image = None
        if fingerprint is not None:
            image = (fingerprint, self._unpacker(fingerprint, progress))
        ref = VolumeRef(args["pool"], "container", args["volume"])
        await self._pools.create_instance(ref, args["project"], image=image, size_bytes=args["size_bytes"])

    def _unpacker(self, fingerprint: str, progress: Progress) -> Callable[[Path], Awaitable[None]]:
        async def unpack(target: Path) -> None:
            await self._images.unpack(fingerprint, target, progress)

        return unpack

    async def _unvolume(self, args: Args) -> None:
        await self._pools.delete_volume(VolumeRef(args["pool"], "container", args["volume"]))

    async def _delete_volume(self, args: Args, _progress: Progress) -> None:
        await self._unvolume(args)

    async def _delete_record(self, args: Args, _progress: Progress) -> None:
        snapshots, path = self._registry.snapshots, (args["project"], args["name"])
        backups = self._registry.backups  # their files are swept, as no document names them any more
        ops = [snapshots.delete_op(document.path) for document in snapshots.list(*path)]
        ops += [backups.delete_op(document.path) for document in backups.list(*path)]
        await self._registry.instances.txn([*ops, self._registry.instances.delete_op(path)])

    async def _forget_runtime(self, args: Args, _progress: Progress) -> None:
        await self._runtime.remove(args["runtime_name"])
        await self._confinement.remove(args["runtime_name"])
        await asyncio.to_thread(shutil.rmtree, self._directory / args["runtime_name"], ignore_errors=True)

    # --- start and what follows the end ---

    def _load(self, args: Args) -> tuple[InstanceRecord, Expanded]:
        record = self._registry.instance(args["project"], args["name"])
        return record, self._registry.expand(record)

    def context(self, record: InstanceRecord, expanded: Expanded, device: str) -> DeviceContext:
        """What a device kind is told about one entry of an instance's settings."""
        attached = Attached(expanded.devices[device], device_volatile(record.config, device))
        return self._context(record, device, attached, expanded.devices)

    def _context(self, record: InstanceRecord, device: str, attached: Attached, all_of: DeviceEntries) -> DeviceContext:
        return DeviceContext(
            project=record.project,
            instance=record.name,
            runtime_name=record.storage_name,
            device=device,
            config=attached.entry,
            volatile=attached.volatile,
            idmap=current_idmap(record.config),
            directory=self._directory / record.storage_name,
            siblings={name: entry for name, entry in all_of.items() if name != device},
            volume_project=self._projects.owner(record.project, "storage.volumes"),
            source_parent=self._source_parent(record.project, attached.entry),
            mute=is_application(record.config),
        )

    def _source_parent(self, project: str, entry: Mapping[str, str]) -> str:
        source = entry.get("source", "")
        if entry.get("type") != "disk" or entry.get("pool") or not source.startswith("/"):
            return ""
        parent = disk_parent(self._projects.rules(project), source)
        # Not allowed any more: nothing is beneath what does not exist.
        return "" if parent == "/" else parent or "/nonexistent"

    async def _mount(self, args: Args, _progress: Progress) -> None:
        record, expanded = self._load(args)
        idmap = current_idmap(record.config)
        protected = is_true(expanded.config.get("security.protection.shift"))
        if protected and await self._pools.rewrites_owners(record.volume, idmap):
            raise Forbidden(
                f'Failed starting instance "{record.name}": Container is protected against filesystem shifting'
            )
        await self._pools.mount(record.volume, idmap)

    async def _unmount(self, args: Args) -> None:
        record, _ = self._load(args)
        await self._pools.unmount(record.volume)

    async def _release_mount(self, args: Args, _progress: Progress) -> None:
        await self._confinement.release(self._load(args)[0].storage_name)
        await self._unmount(args)

    def attached_context(self, args: Args) -> tuple[Kind | None, DeviceContext]:
        """The device of a step: as the step says, not as the instance's settings do by now."""
        record = self._registry.instance(args["project"], args["name"])
        attached = Attached(args["entry"], args["volatile"])
        return self._devices.kind(attached.entry), self._attached(record, args["device"], attached)

    def _attached(self, record: InstanceRecord, device: str, attached: Attached) -> DeviceContext:
        return self._context(record, device, attached, {name: each.entry for name, each in record.attached.items()})

    async def _device(self, args: Args, _progress: Progress) -> None:
        kind, context = self.attached_context(args)
        if kind is not None:
            await kind.start(context)

    async def _undevice(self, args: Args) -> None:
        kind, context = self.attached_context(args)
        if kind is not None:
            await kind.stop(context)

    async def _release_device(self, args: Args, _progress: Progress) -> None:
        await self._undevice(args)

    def _parts(self, record: InstanceRecord) -> list[tuple[Kind, DeviceContext]]:
        """All devices that an instance runs with."""
        found = [
            (self._devices.kind(attached.entry), self._attached(record, device, attached))
            for device, attached in record.attached.items()
        ]
        return [(kind, context) for kind, context in found if kind is not None]

    async def adopt(self, record: InstanceRecord, container: RunningContainer) -> None:
        """A restarted daemon takes up what devices of a running container do in the daemon."""
        for kind, context in self._parts(record):
            await kind.adopt(context, container)

    async def _launch(self, args: Args, _progress: Progress) -> None:
        record, expanded = self._load(args)
        if await self._runtime.find(record.storage_name) is not None:
            return  # started before a crash of the daemon
        spec = await self.prepare_spec(record, expanded)
        await self._templates.apply(record, expanded, spec.rootfs, spec.idmap)
        if spec.application is not None:
            addresses = [address for nic in spec.nics for address in nic.addresses]
            await self._name_files.write(record, expanded, spec.rootfs, spec.idmap, addresses)
        await self._runtime.start(spec)

    async def _resume(self, args: Args, _progress: Progress) -> None:
        """Instead of `_launch`: from its saved state."""
        record, expanded = self._load(args)
        if await self._runtime.find(record.storage_name) is None:
            spec = await self.prepare_spec(record, expanded)
            decide = self.deciding.get(record.storage_name)
            if decide is None and record.config.get("volatile.migration.in_doubt"):
                raise FlexdError(f'Instance "{record.name}" waits to know whether it is here')
            restore = await self._runtime.restore(spec, Path(args["images"]))
            try:
                if decide is not None:
                    await decide()
            except BaseException:
                await restore.abort()
                raise
            await restore.resume()

    async def prepare_spec(self, record: InstanceRecord, expanded: Expanded) -> ContainerSpec:
        """What it is to run with; its root is mounted and its policies are loaded when this returns."""
        idmap = current_idmap(record.config)
        rootfs = await self._pools.mount(record.volume, idmap)
        await self._confinement.check_guest(record, rootfs)
        parts = [await kind.run_config(context) for kind, context in self._parts(record)]
        limits = await self._limiter.settings(expanded.config)
        confined = await self._confinement.prepare(record, expanded)
        return container_spec(record, expanded, rootfs, idmap, parts, limits, confined)

    async def plugged(self, record: InstanceRecord) -> ContainerSpec:
        """What its devices have put into it, by now."""
        parts = [await kind.run_config(context) for kind, context in self._parts(record)]
        mounts = tuple(mount for part in parts for mount in part.mounts)
        return ContainerSpec(record.storage_name, self._pools.volume_path(record.volume), mounts=mounts)

    def unsavable_devices(self, record: InstanceRecord) -> list[Obstacle]:
        """Devices that its state cannot be saved with."""
        return [
            Obstacle(f'the device "{context.device}" is of a kind that cannot be saved', "unplug it")
            for kind, context in self._parts(record)
            if not kind.SAVABLE
        ]

    async def sever(self, record: InstanceRecord) -> None:
        """Take away at once what would only delay its end; the clean-up says what cannot be removed."""
        await asyncio.gather(*(kind.sever(context) for kind, context in self._parts(record)), return_exceptions=True)

    async def _activate(self, args: Args, _progress: Progress) -> None:
        """Taken back by the undo of each device's own step."""
        record, _ = self._load(args)
        container = await self._runtime.find(record.storage_name)
        if container is None:
            return  # it ended at once, which whoever started it sees
        for kind, context in self._parts(record):
            await kind.activate(context, container)

    async def _unlaunch(self, args: Args) -> None:
        record, _ = self._load(args)
        running: RunningContainer | None = await self._runtime.find(record.storage_name)
        if running is not None:
            await self.kill(record, running)
        await self._confinement.release(record.storage_name)

    async def kill(self, record: InstanceRecord, container: RunningContainer) -> None:
        """End a container by force, at once. Its devices are cleaned up after its end, whoever ended it."""
        # Links that are deleted while the kernel tears their namespace down crash some kernels (docs/hosts.md).
        async with self._runtime.network_held(container) as held:
            severing = asyncio.ensure_future(self.sever(record) if held else asyncio.sleep(0))
            try:
                await self._runtime.kill(container)
            finally:
                await severing

    # --- rename ---

    async def _rename_volume(self, args: Args, _progress: Progress) -> None:
        ref = VolumeRef(args["pool"], "container", args["old"])
        await self._pools.rename_volume(ref, args["new"], args.get("new_project"))

    async def _rename_volume_back(self, args: Args) -> None:
        ref = VolumeRef(args["pool"], "container", args["new"])
        await self._pools.rename_volume(ref, args["old"], args.get("project"))

    async def _rename_runtime(self, args: Args, _progress: Progress) -> None:
        await self._runtime.rename(args["old"], args["new"])
        await self._confinement.remove(args["old"])

    async def _rename_runtime_back(self, args: Args) -> None:
        await self._runtime.rename(args["new"], args["old"])

    async def _rename_record(self, args: Args, _progress: Progress) -> None:
        instances, project = self._registry.instances, args["project"]
        old = instances.get(project, args["name"])
        if old is None:
            return  # done before a crash
        new_path = (str(args.get("new_project", project)), str(args["new_name"]))
        config = renamed(old.value.config)
        record = msgspec.structs.replace(old.value, project=new_path[0], name=new_path[1], config=config)
        moves = project != new_path[0]
        await self._projects.write(
            {project, new_path[0]},
            [instances.delete_op(old.path), instances.put(new_path, record), *self._move_snapshots(old.path, new_path)],
            [instances.unchanged(old.path, old.revision), instances.unchanged(new_path, 0)],
            lambda: self._rules.check([record]) if moves else None,
        )

    def _move_snapshots(self, old: tuple[str, ...], new: tuple[str, str]) -> list[Put | Delete]:
        """The operations that give an instance's snapshots and backups its new name."""
        snapshots, ops = self._registry.snapshots, list[Put | Delete]()
        for document in snapshots.list(*old):
            instance = msgspec.structs.replace(document.value.instance, project=new[0], name=new[1])
            moved = msgspec.structs.replace(document.value, instance=instance)
            ops += [snapshots.delete_op(document.path), snapshots.put((*new, moved.name), moved)]
        backups = self._registry.backups
        for backup in backups.list(*old):
            ops += [backups.delete_op(backup.path), backups.put((*new, backup.value.name), backup.value)]
        return ops
