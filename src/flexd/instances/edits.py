# SPDX-License-Identifier: Apache-2.0
"""Changing instances that run: devices are unplugged, plugged in and updated live, then the documents are written.

One plan for all of it, so that an edit that fails at any step leaves containers and documents as they were; an edit of
a profile is one plan over every running instance that uses it."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from flexd.api.errors import Conflict, FlexdError
from flexd.devices.contract import DeviceContext, Kind
from flexd.devices.devices import Devices
from flexd.instances.actions import Actions, Args
from flexd.instances.check import root_size_bytes
from flexd.instances.confinement import Confinement
from flexd.instances.lifecycle import Lifecycle, devices_key
from flexd.instances.limiter import Limiter
from flexd.instances.plan import DeviceChange, Write, change_steps, confine_step, resize_step, write_step
from flexd.instances.project_rules import ProjectRules
from flexd.instances.record import Attached, Config, Expanded, InstanceRecord, ProfileRecord, device_volatile
from flexd.instances.registry import Registry
from flexd.instances.security import LIVE, has_guest_api
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.undo import Undo
from flexd.projects.projects import Projects
from flexd.runtime.contract import RunningContainer, Runtime
from flexd.storage.contract import VolumeRef
from flexd.storage.pools import Pools


class Edit(Struct, frozen=True):
    """One instance and what it becomes; both with their profiles' settings too."""

    old: InstanceRecord
    new: InstanceRecord
    before: Expanded
    after: Expanded


class Edits:
    """The caller holds the locks of the instances, and then `locked`, from before it reads them."""

    def __init__(
        self,
        *,
        registry: Registry,
        devices: Devices,
        actions: Actions,
        lifecycle: Lifecycle,
        limiter: Limiter,
        confinement: Confinement,
        pools: Pools,
        runtime: Runtime,
        journal: Journal,
        locks: Locks,
        projects: Projects,
        rules: ProjectRules,
    ) -> None:
        self._registry = registry
        self._projects = projects
        self._rules = rules
        self._devices = devices
        self._actions = actions
        self._lifecycle = lifecycle
        self._limiter = limiter
        self._confinement = confinement
        self._pools = pools
        self._runtime = runtime
        self._journal = journal
        self._locks = locks
        journal.register("instances.plug", self._plug, self._unplug)
        journal.register("instances.unplug", self._unplug_step, self._replug)
        journal.register("instances.remove_device", self._remove_device, self._restore_device)
        journal.register("instances.update_device", self._update_device, self._update_device_back)
        journal.register("instances.confine", self._confine, self._confine_back)
        journal.register("instances.resize", self._resize, self._resize_back)
        journal.register("instances.write", self._write, self._write_back)

    def locked(self, records: Iterable[InstanceRecord]) -> AbstractAsyncContextManager[None]:
        """Keep the ends of containers from being cleaned up in the middle of an edit."""
        return self._locks.hold_all([devices_key(record) for record in records], "update")

    async def apply(self, description: str, edits: Sequence[Edit], more: Sequence[Write] = ()) -> None:
        """Carry out the edits and write the documents, `more` among them (the profile that they come from)."""
        async with Undo() as undo:
            steps: list[Step] = []
            writes = list(more)
            for edit in edits:
                container = self._lifecycle.running(edit.old)
                new = edit.new
                if container is not None:
                    await self._limiter.apply(container, edit.before.config, edit.after.config)
                    undo.push(self._limiter.apply, container, edit.after.config, edit.before.config)
                    found = await self._changes(edit)
                    steps += [*_confining(edit), *change_steps(edit.old, found)]
                    new = msgspec.structs.replace(
                        new, config=_noted(new, found), attached=_attached_after(edit.old, found, edit.after)
                    )
                steps += _resizing(edit)
                if new != edit.old:
                    writes.append(_write_of(edit.old, new))
            if writes:
                await self._journal.run(Plan(description, (*steps, write_step(writes))))

    async def _changes(self, edit: Edit) -> list[DeviceChange]:
        """What has to be done to the devices that a container runs with, so that they are those of the settings."""
        old, wanted = edit.old.attached, edit.after.devices
        changes = [DeviceChange(name, attached, None) for name, attached in old.items() if name not in wanted]
        for name, entry in wanted.items():
            known = old.get(name)
            if known is not None and known.entry == entry:
                continue
            in_place = known is not None and self._devices.updates_in_place(known.entry, entry)
            before = known.volatile if known is not None and in_place else device_volatile(edit.new.config, name)
            volatile = before | await self._readings(edit, name)
            changes.append(DeviceChange(name, known, Attached(entry, volatile), in_place))
        return changes

    async def _readings(self, edit: Edit, device: str) -> dict[str, str]:
        """What the device must remember of the host as it is now."""
        kind = self._devices.kind(edit.after.devices[device])
        if kind is None:
            return {}
        return await kind.volatile_at_start(self._actions.context(edit.new, edit.after, device))

    # --- steps -------------------------------------------------------------------------------------------------------

    async def _container(self, args: Args) -> RunningContainer | None:
        record = self._registry.instance(args["project"], args["name"])
        return await self._runtime.find(record.storage_name)

    async def _plug(self, args: Args, _progress: Progress) -> None:
        kind, context = self._actions.attached_context(args)
        if kind is None:
            return
        container = await self._container(args)
        if container is None:
            raise FlexdError(f'Failed adding device "{args["device"]}" to instance "{args["name"]}": it has ended')
        await kind.plug(context, container)

    async def _unplug(self, args: Args) -> None:
        kind, context = self._actions.attached_context(args)
        container = await self._container(args)
        if kind is not None and container is not None:
            await kind.unplug(context, container)

    async def _unplug_step(self, args: Args, _progress: Progress) -> None:
        await self._unplug(args)

    async def _replug(self, args: Args) -> None:
        kind, context = self._actions.attached_context(args)
        container = await self._container(args)
        if kind is not None and container is not None:
            await kind.plug(context, container)

    async def _remove_device(self, args: Args, _progress: Progress) -> None:
        kind, context = self._actions.attached_context(args)
        if kind is not None:
            await kind.stop(context)

    async def _restore_device(self, args: Args) -> None:
        kind, context = self._actions.attached_context(args)
        if kind is not None:
            await kind.start(context)

    async def _update_device(self, args: Args, _progress: Progress) -> None:
        kind, old, new = self._both(args)
        container = await self._container(args)
        if kind is not None and container is not None:
            await kind.update(old, new, container)

    async def _update_device_back(self, args: Args) -> None:
        kind, old, new = self._both(args)
        container = await self._container(args)
        if kind is not None and container is not None:
            await kind.update(new, old, container)

    def _both(self, args: Args) -> tuple[Kind | None, DeviceContext, DeviceContext]:
        kind, new = self._actions.attached_context(args)
        return kind, msgspec.structs.replace(new, config=args["old_entry"]), new

    async def _confine(self, args: Args, _progress: Progress) -> None:
        await self._reconfine(args, args["before"], args["after"])

    async def _confine_back(self, args: Args) -> None:
        await self._reconfine(args, args["after"], args["before"])

    async def _reconfine(self, args: Args, before: Config, after: Config) -> None:
        container = await self._container(args)
        if container is None:
            return  # its next start has the new settings
        await self._confinement.reload(self._registry.instance(args["project"], args["name"]), before, after)
        if has_guest_api(before) == has_guest_api(after):
            return
        for mount in self._confinement.guest_mounts():
            await self._runtime.remove_mount(container, mount)
            if has_guest_api(after):
                await self._runtime.add_mount(container, mount)

    async def _resize(self, args: Args, _progress: Progress) -> None:
        await self._pools.resize(VolumeRef(args["pool"], "container", args["volume"]), args["size_bytes"])

    async def _resize_back(self, args: Args) -> None:
        await self._pools.resize(VolumeRef(args["pool"], "container", args["volume"]), args["old_bytes"])

    # --- documents ---------------------------------------------------------------------------------------------------

    async def _write(self, args: Args, _progress: Progress) -> None:
        await self._exchange([msgspec.convert(write, Write) for write in args["writes"]], checked=True)

    async def _write_back(self, args: Args) -> None:
        writes = [msgspec.convert(write, Write) for write in args["writes"]]
        back = [Write(write.folder, write.path, old=write.new, new=write.old) for write in writes]
        # All were written or none: they are one transaction.
        if all(self._value(write.folder, write.path) == _decoded(write.folder, write.old) for write in back):
            await self._exchange(back, checked=False)

    async def _exchange(self, writes: Sequence[Write], *, checked: bool) -> None:
        """`checked`: only if the projects allow it; what is put back was allowed before."""
        ops, conditions = [], []
        instances, profiles = list[InstanceRecord](), list[ProfileRecord]()
        for write in writes:
            documents: Any = self._folder(write.folder)
            new = _decoded(write.folder, write.new)
            found = documents.get(*write.path)
            if found is not None and found.value == new:
                continue
            if found is None or found.value != _decoded(write.folder, write.old):
                raise Conflict(f'Failed updating {write.folder[:-1]} "{write.path[1]}": it was changed meanwhile')
            ops.append(documents.put(write.path, new))
            conditions.append(documents.unchanged(write.path, found.revision))
            if isinstance(new, InstanceRecord):
                instances.append(new)
            else:
                profiles.append(new)
        if ops:
            projects = {record.project for record in instances} | {profile.project for profile in profiles}
            for owner in {profile.project for profile in profiles}:
                projects |= set(self._projects.sharing(owner, "profiles"))
            check = partial(self._rules.check, instances, profiles) if checked else lambda: None
            await self._projects.write(projects, ops, conditions, check)

    def _folder(self, folder: str) -> Any:
        return self._registry.profiles if folder == "profiles" else self._registry.instances

    def _value(self, folder: str, path: tuple[str, str]) -> object:
        found = self._folder(folder).get(*path)
        return None if found is None else found.value


def profile_write(old: ProfileRecord, new: ProfileRecord) -> Write:
    """For `Edits.apply`: the profile that an edit comes from."""
    return Write("profiles", (old.project, old.name), _encoded(old), _encoded(new))


def _write_of(old: InstanceRecord, new: InstanceRecord) -> Write:
    return Write("instances", (old.project, old.name), _encoded(old), _encoded(new))


def _encoded(record: InstanceRecord | ProfileRecord) -> str:
    return msgspec.json.encode(record).decode()


def _decoded(folder: str, text: str) -> InstanceRecord | ProfileRecord:
    if folder == "profiles":
        return msgspec.json.decode(text, type=ProfileRecord)
    return msgspec.json.decode(text, type=InstanceRecord)


def _confining(edit: Edit) -> list[Step]:
    """What is live of its confinement."""
    before, after = ({key: each.config.get(key, "") for key in LIVE} for each in (edit.before, edit.after))
    return [confine_step(edit.old, before, after)] if before != after else []


def _resizing(edit: Edit) -> list[Step]:
    old_bytes, new_bytes = root_size_bytes(edit.before), root_size_bytes(edit.after)
    return [resize_step(edit.old, old_bytes, new_bytes)] if old_bytes != new_bytes else []


def _attached_after(old: InstanceRecord, changes: Sequence[DeviceChange], after: Expanded) -> dict[str, Attached]:
    """In the order of the settings, as a start would have them."""
    changed = {change.device: change.new for change in changes}
    all_of = {name: changed.get(name, old.attached.get(name)) for name in after.devices}
    return {name: attached for name, attached in all_of.items() if attached is not None}


def _noted(new: InstanceRecord, changes: Sequence[DeviceChange]) -> dict[str, str]:
    """The configuration with what changed devices must remember."""
    config = dict(new.config)
    for change in changes:
        values = change.new.volatile if change.new is not None else {}
        config |= {f"volatile.{change.device}.{key}": value for key, value in values.items()}
    return config
