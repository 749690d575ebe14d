# SPDX-License-Identifier: Apache-2.0
"""The service behind `/1.0/instances`: what is there, and creating, editing, renaming and deleting.

Creating is `creation.py`'s, starting and stopping `lifecycle.py`'s; exec, console, files and logs have their own.
"""

import msgspec

from flexd.api.errors import BadRequest, Conflict, Forbidden, raise_faults
from flexd.api.instance import Instance, InstancePost, InstancePut, InstancesPost
from flexd.api.units import is_true
from flexd.devices.devices import Devices
from flexd.instances.check import new_volatile, settings_faults, without_stale_volatile
from flexd.instances.creation import Creation
from flexd.instances.edits import Edit, Edits
from flexd.instances.firstboot import INSTANCE_ID, edited
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.names import check_instance_name
from flexd.instances.plan import delete_plan, rename_plan
from flexd.instances.project_rules import ProjectRules
from flexd.instances.record import Config, Expanded, InstanceRecord
from flexd.instances.registry import Registry, show_instance
from flexd.instances.resolve import Resolver
from flexd.instances.snapshots import Snapshots
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations

_DAEMONS_KEYS = (
    "volatile.uuid",
    "volatile.idmap.base",
    "volatile.idmap.current",
    "volatile.idmap.next",
    "volatile.last_state.idmap",
    "volatile.last_state.power",
    "volatile.last_state.ready",
    "volatile.migration.stateful",
)


class Instances:
    """Reads are from memory; writes check everything first and then start an operation."""

    def __init__(
        self,
        *,
        registry: Registry,
        devices: Devices,
        creation: Creation,
        resolver: Resolver,
        snapshots: Snapshots,
        lifecycle: Lifecycle,
        edits: Edits,
        rules: ProjectRules,
        journal: Journal,
        operations: Operations,
        locks: Locks,
        events: Events,
    ) -> None:
        self._registry = registry
        self._devices = devices
        self._creation = creation
        self._resolver = resolver
        self._snapshots = snapshots
        self._lifecycle = lifecycle
        self._edits = edits
        self._rules = rules
        self._journal = journal
        self._operations = operations
        self._locks = locks
        self._events = events

    # --- reading ---

    def names(self, project: str) -> list[str]:
        return [record.name for record in self._registry.all_instances(project)]

    def show(self, project: str, name: str) -> Instance:
        return self._show(self._registry.instance(project, name))

    def show_all(self, project: str) -> list[Instance]:
        return [self._show(record) for record in self._registry.all_instances(project)]

    def _show(self, record: InstanceRecord) -> Instance:
        return show_instance(record, self._registry.expand(record), self._lifecycle.shown_status(record))

    # --- create ---

    async def create(self, project: str, post: InstancesPost) -> Operation:
        return await self._creation.create(project, post)

    # --- edit ---

    async def update(self, project: str, name: str, put: InstancePut) -> Operation:
        """Replace the settings in the background (PUT)."""
        if put.restore:
            return await self._snapshots.restore(project, name, put.restore, stateful=put.stateful)
        record = self._registry.instance(project, name)
        return self._operations.start(
            kind="task",
            description="Updating instance",
            project=project,
            resources={"instances": [record.url]},
            run=lambda _operation: self.patch(project, name, put),
        )

    async def patch(self, project: str, name: str, put: InstancePut) -> None:
        """Replace the settings at once, live where the instance runs."""
        async with (
            self._locks.hold(f"instance/{project}/{name}", "update"),
            self._edits.locked([self._registry.instance(project, name)]),
        ):
            record = self._registry.instance(project, name)
            raise_faults(settings_faults(self._registry, self._devices, project, put.config, put.devices, put.profiles))
            self._rules.check_volatile(record, put.config)
            expanded = self._registry.expand_with(project, put.profiles, put.config, put.devices)
            config = _with_daemons_keys(record.config, without_stale_volatile(put.config, expanded))
            config |= new_volatile(self._devices, expanded, config)
            changed = msgspec.structs.replace(
                record,
                architecture=put.architecture or record.architecture,
                description=put.description,
                ephemeral=put.ephemeral,
                profiles=put.profiles,
                config=config,
                devices=put.devices,
            )
            self._rules.check([changed])
            await self._check_edit(record, changed, expanded)
            before = self._registry.expand(record)
            changed = msgspec.structs.replace(changed, config=edited(config, before, expanded))
            await self._edits.apply(f'update instance "{name}"', [Edit(record, changed, before, expanded)])
        await self._lifecycle.rebalance()
        await self._lifecycle.announce_ports(before)
        await self._lifecycle.announce_ports(expanded)
        self._events.lifecycle("instance-updated", record.url, project)

    async def _check_edit(self, old: InstanceRecord, new: InstanceRecord, expanded: Expanded) -> None:
        root = expanded.root()
        if root is None or root[1].get("pool") != old.pool:
            raise BadRequest(
                f'Failed updating instance "{old.name}": its root disk is on pool "{old.pool}" and cannot be moved '
                "or removed by an edit"
            )
        await self._resolver.check_host(new, expanded)

    # --- rename and delete ---

    async def rename(self, project: str, name: str, post: InstancePost) -> Operation:
        """Another name, or project (extension: instance_project_move); its files stay where they are."""
        record = self._registry.instance(project, name)
        if post.pool not in ("", record.pool) or (post.migration and not post.project):
            raise BadRequest(f'Failed moving instance "{name}": to another name or project only')
        check_instance_name(post.name or name)
        new = msgspec.structs.replace(record, project=post.project or project, name=post.name or name)
        await self._check_move(record, new)
        return self._operations.start(
            kind="task",
            description="Renaming instance" if new.project == project else "Moving instance",
            project=project,
            resources={"instances": [record.url]},
            run=lambda _operation: self._rename(project, name, new.project, new.name),
        )

    async def _check_move(self, old: InstanceRecord, new: InstanceRecord) -> None:
        if self._registry.instances.get(new.project, new.name) is not None:
            raise Conflict(f'Failed renaming instance "{old.name}": the name "{new.name}" is already in use')
        if self._lifecycle.status(old) != "Stopped":
            raise BadRequest(f'Failed renaming instance "{old.name}": Renaming of running instance not allowed')
        if new.project != old.project:
            # There, profiles, networks and custom volumes of these names may be others, or missing.
            faults = settings_faults(self._registry, self._devices, new.project, {}, new.devices, new.profiles)
            raise_faults(faults)
            self._rules.check([new])
            await self._check_edit(new, new, self._registry.expand(new))

    async def _rename(self, project: str, name: str, new_project: str, new_name: str) -> None:
        old = self._registry.instance(project, name)
        new = msgspec.structs.replace(old, project=new_project, name=new_name)
        keys = [f"instance/{each.project}/{each.name}" for each in (old, new)]
        async with self._locks.hold_all([*keys, old.root_key, old.still_key], "rename"):
            record = self._registry.instance(project, name)
            renamed = msgspec.structs.replace(record, project=new_project, name=new_name)
            await self._check_move(record, renamed)
            before = self._registry.expand(record)
            await self._journal.run(rename_plan(record, renamed))
        await self._lifecycle.announce_ports(before)
        await self._lifecycle.announce_ports(self._registry.expand(renamed))
        context = {"old_name": name} | ({"old_project": project} if project != new_project else {})
        for concerned in sorted({project, new_project}):
            self._events.lifecycle("instance-renamed", renamed.url, concerned, context)

    async def delete(self, project: str, name: str) -> Operation:
        record = self._registry.instance(project, name)
        self._check_deletable(record)
        return self._operations.start(
            kind="task",
            description="Deleting instance",
            project=project,
            resources={"instances": [record.url]},
            run=lambda _operation: self._delete(project, name),
        )

    def _check_deletable(self, record: InstanceRecord) -> None:
        if self._lifecycle.status(record) != "Stopped":
            raise BadRequest("Instance is running")
        if is_true(self._registry.expand(record).config.get("security.protection.delete")):
            raise Forbidden(f'Failed deleting instance "{record.name}": Instance is protected')

    async def _delete(self, project: str, name: str) -> None:
        old = self._registry.instance(project, name)
        keys = [f"instance/{project}/{name}", old.root_key, old.still_key]
        async with self._locks.hold_all(keys, "delete"):
            record = self._registry.instance(project, name)
            self._check_deletable(record)
            expanded = self._registry.expand(record)
            await self._journal.run(delete_plan(record))
        await self._lifecycle.announce_ports(expanded)
        self._events.lifecycle("instance-deleted", record.url, project)


def _with_daemons_keys(old: Config, new: Config) -> Config:
    """What is the daemon's stays: clients send no `volatile.*`, or what they read before the last start, or even those
    of another instance (`lxc copy --refresh`)."""
    sent = {key: value for key, value in new.items() if key not in _DAEMONS_KEYS}
    kept = {key: old[key] for key in _DAEMONS_KEYS if key in old}
    return {INSTANCE_ID: old[INSTANCE_ID]} | sent | kept if INSTANCE_ID in old else sent | kept
