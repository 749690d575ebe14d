# SPDX-License-Identifier: Apache-2.0
"""Snapshots of instances: taken by hand or on schedule, renamed, restored, expired."""

import logging
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from flexd.api.errors import BadRequest, Conflict, FlexdError
from flexd.api.instance_snapshot import (
    InstanceSnapshot,
    InstanceSnapshotPost,
    InstanceSnapshotPut,
    InstanceSnapshotsPost,
)
from flexd.api.times import ZERO_TIME, now
from flexd.api.units import is_true
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.names import check_snapshot_name
from flexd.instances.project_rules import ProjectRules
from flexd.instances.record import InstanceRecord, SnapshotRecord
from flexd.instances.registry import Registry, show_snapshot
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.operations.schedule import at_startup, expires_at, is_due, make_name
from flexd.projects.projects import Projects
from flexd.storage.contract import VolumeRef
from flexd.storage.pools import Pools

log = logging.getLogger(__name__)

Args = dict[str, Any]


class Snapshots:
    """The service behind `/1.0/instances/NAME/snapshots`."""

    def __init__(
        self,
        *,
        registry: Registry,
        projects: Projects,
        rules: ProjectRules,
        lifecycle: Lifecycle,
        pools: Pools,
        journal: Journal,
        operations: Operations,
        locks: Locks,
        events: Events,
    ) -> None:
        self._registry = registry
        self._projects = projects
        self._rules = rules
        self._lifecycle = lifecycle
        self._pools = pools
        self._journal = journal
        self._operations = operations
        self._locks = locks
        self._events = events
        journal.register("snapshots.volume", self._make_volume, self._unmake_volume)
        journal.register("snapshots.record", self._make_record)
        journal.register("snapshots.rename", self._rename_volume, self._rename_volume_back)
        journal.register("snapshots.rename_record", self._rename_record)
        journal.register("snapshots.delete_volume", self._delete_volume)
        journal.register("snapshots.delete_record", self._delete_record)
        journal.register("snapshots.restore_volume", self._restore_volume)
        journal.register("snapshots.restore_record", self._restore_record)

    # --- reading ---

    def names(self, project: str, name: str) -> list[str]:
        return [snapshot.name for snapshot in self._registry.snapshots_of(self._registry.instance(project, name))]

    def show(self, project: str, name: str, snapshot: str) -> InstanceSnapshot:
        self._registry.instance(project, name)
        return self._show(self._registry.find_snapshot(project, name, snapshot).value)

    def show_all(self, project: str, name: str) -> list[InstanceSnapshot]:
        return [self._show(found) for found in self._registry.snapshots_of(self._registry.instance(project, name))]

    def _show(self, record: SnapshotRecord) -> InstanceSnapshot:
        return show_snapshot(record, self._registry.expand_past(record.instance))

    # --- taking ---

    async def create(self, project: str, name: str, post: InstanceSnapshotsPost) -> Operation:
        record = self._registry.instance(project, name)
        if post.stateful and self._lifecycle.running(record) is None:
            raise BadRequest(f'Failed taking a snapshot of instance "{name}": it does not run, so it has no state')
        self._projects.check_snapshots(project)
        snapshot = post.name or self._next_name(record)
        check_snapshot_name(snapshot)
        if self._registry.snapshots.get(project, name, snapshot) is not None:
            raise Conflict(f'Failed taking a snapshot of instance "{name}": Snapshot "{snapshot}" already exists')
        return self._operations.start(
            kind="task",
            description="Snapshotting instance",
            project=project,
            resources={"instances": [record.url], "instances_snapshots": [f"{record.url}/snapshots/{snapshot}"]},
            run=lambda operation: self._create(operation.progress, project, name, snapshot, post),
        )

    def _next_name(self, record: InstanceRecord) -> str:
        pattern = self._registry.expand(record).config.get("snapshots.pattern", "")
        return make_name(pattern, now(), {snapshot.name for snapshot in self._registry.snapshots_of(record)})

    async def _create(
        self, progress: Progress, project: str, name: str, snapshot: str, post: InstanceSnapshotsPost
    ) -> None:
        async with self._locks.hold(f"instance/{project}/{name}", "snapshot"):
            await self.take(project, name, snapshot, post.expires_at, progress, stateful=post.stateful)

    async def take(
        self,
        project: str,
        name: str,
        snapshot: str,
        expires: datetime | None,
        progress: Progress,
        *,
        stateful: bool = False,
    ) -> SnapshotRecord:
        """Take one; the instance's lock is held. `expires` None: as `snapshots.expiry` says."""
        self._projects.check_snapshots(project)
        instance = self._registry.instance(project, name)
        created_at = now()
        if expires is None:
            expires = expires_at(created_at, self._registry.expand(instance).config.get("snapshots.expiry", ""))
        record = SnapshotRecord(snapshot, instance, created_at, expires, stateful)
        where = {"project": project, "name": name, "snapshot": snapshot}
        steps = (
            Step("snapshots.volume", {**where, "pool": instance.pool, "volume": instance.storage_name}),
            Step("snapshots.record", {"document": msgspec.json.encode(record).decode()}),
        )
        plan = Plan(f'take snapshot "{snapshot}" of instance "{name}"', steps)
        quiet = self._lifecycle.saved(instance, snapshot) if stateful else self._lifecycle.quiet(instance)
        async with quiet, self._locks.hold(instance.root_key, "snapshot"):
            await self._journal.run(plan, progress)
        self._events.lifecycle("instance-snapshot-created", record.url, project)
        return record

    async def _make_volume(self, args: Args, _progress: Progress) -> None:
        running = self._lifecycle.running(self._registry.instance(args["project"], args["name"])) is not None
        await self._pools.create_snapshot(_volume(args), args["snapshot"], args["project"], live=running)

    async def _unmake_volume(self, args: Args) -> None:
        await self._pools.delete_snapshot(_volume(args), args["snapshot"])

    async def _make_record(self, args: Args, _progress: Progress) -> None:
        record = msgspec.json.decode(args["document"], type=SnapshotRecord)
        path = (record.instance.project, record.instance.name, record.name)
        if self._registry.snapshots.get(*path) is None:
            await self._registry.snapshots.create(path, record)

    # --- editing ---

    async def update(self, project: str, name: str, snapshot: str, put: InstanceSnapshotPut) -> Operation:
        """Only the expiry can change (extension: snapshot_expiry)."""
        found = self._registry.find_snapshot(project, name, snapshot)
        changed = msgspec.structs.replace(found.value, expires_at=put.expires_at)

        async def write(_operation: Operation) -> None:
            await self._registry.snapshots.update((project, name, snapshot), changed, found.revision)
            self._events.lifecycle("instance-snapshot-updated", changed.url, project)

        return self._start("Updating snapshot", found.value, write)

    def _start(self, description: str, record: SnapshotRecord, run: Any) -> Operation:
        return self._operations.start(
            kind="task",
            description=description,
            project=record.instance.project,
            resources={"instances": [record.instance.url], "instances_snapshots": [record.url]},
            run=run,
        )

    async def rename(self, project: str, name: str, snapshot: str, post: InstanceSnapshotPost) -> Operation:
        if post.migration:
            raise BadRequest(f'Failed moving snapshot "{snapshot}" of instance "{name}": only a rename is supported')
        check_snapshot_name(post.name)
        found = self._registry.find_snapshot(project, name, snapshot).value
        if self._registry.snapshots.get(project, name, post.name) is not None:
            raise Conflict(f'Failed renaming snapshot "{snapshot}": "{post.name}" already exists')
        where = {"project": project, "name": name, "snapshot": snapshot, "new": post.name}
        volume = {**where, "pool": found.instance.pool, "volume": found.instance.storage_name}
        steps = (Step("snapshots.rename", volume), Step("snapshots.rename_record", where))
        plan = Plan(f'rename snapshot "{snapshot}" of instance "{name}" to "{post.name}"', steps)

        async def run(_operation: Operation) -> None:
            async with self._locks.hold(f"instance/{project}/{name}", "rename snapshot"):
                await self._journal.run(plan)
            self._events.lifecycle("instance-snapshot-renamed", found.url, project, {"old_name": snapshot})

        return self._start("Renaming snapshot", found, run)

    async def _rename_volume(self, args: Args, _progress: Progress) -> None:
        await self._pools.rename_snapshot(_volume(args), args["snapshot"], args["new"])
        await self._rename_state(args, args["snapshot"], args["new"])

    async def _rename_volume_back(self, args: Args) -> None:
        await self._pools.rename_snapshot(_volume(args), args["new"], args["snapshot"])
        await self._rename_state(args, args["new"], args["snapshot"])

    async def _rename_state(self, args: Args, old: str, new: str) -> None:
        instance = self._registry.instance(args["project"], args["name"])
        await self._lifecycle.saving.rename_snapshot(instance, old, new)

    async def _rename_record(self, args: Args, _progress: Progress) -> None:
        snapshots = self._registry.snapshots
        old = snapshots.get(args["project"], args["name"], args["snapshot"])
        if old is None:
            return  # done before a crash
        path = (args["project"], args["name"], args["new"])
        renamed = msgspec.structs.replace(old.value, name=args["new"])
        await snapshots.txn([snapshots.delete_op(old.path), snapshots.put(path, renamed)])

    async def delete(self, project: str, name: str, snapshot: str) -> Operation:
        found = self._registry.find_snapshot(project, name, snapshot).value

        async def run(_operation: Operation) -> None:
            async with self._locks.hold(f"instance/{project}/{name}", "delete snapshot"):
                await self.remove(found)

        return self._start("Deleting snapshot", found, run)

    async def remove(self, record: SnapshotRecord) -> None:
        """Delete one; the instance's lock is held."""
        instance = record.instance
        where = {"project": instance.project, "name": instance.name, "snapshot": record.name}
        volume = {**where, "pool": instance.pool, "volume": instance.storage_name}
        steps = (Step("snapshots.delete_volume", volume), Step("snapshots.delete_record", where))
        await self._journal.run(Plan(f'delete snapshot "{record.name}" of "{instance.name}"', steps, on_crash="finish"))
        self._events.lifecycle("instance-snapshot-deleted", record.url, instance.project)

    async def _delete_volume(self, args: Args, _progress: Progress) -> None:
        await self._unmake_volume(args)
        instance = self._registry.instance(args["project"], args["name"])
        await self._lifecycle.saving.forget_snapshot(instance, args["snapshot"])

    async def _delete_record(self, args: Args, _progress: Progress) -> None:
        await self._registry.snapshots.delete((args["project"], args["name"], args["snapshot"]))

    # --- restoring ---

    async def restore(self, project: str, name: str, wanted: str, *, stateful: bool) -> Operation:
        """`PUT /1.0/instances/NAME {"restore": …}`: files and settings as they were; a running instance is stopped for
        it and started again, as LXD does."""
        snapshot = wanted.removeprefix(f"{name}/")
        found = self._registry.find_snapshot(project, name, snapshot).value
        self._rules.check([self._restored(project, name, snapshot)])
        if stateful and not found.stateful:
            raise BadRequest(f'Failed restoring instance "{name}": Snapshot "{snapshot}" has no running state')
        return self._start(
            "Restoring snapshot", found, lambda _operation: self._restore(project, name, found, stateful=stateful)
        )

    async def _restore(self, project: str, name: str, snapshot: SnapshotRecord, *, stateful: bool) -> None:
        keys = [f"instance/{project}/{name}", self._registry.instance(project, name).still_key]
        async with self._locks.hold_all(keys, "restore"):
            instance = self._registry.instance(project, name)
            where = {"project": project, "name": name, "snapshot": snapshot.name}
            volume = {**where, "pool": instance.pool, "volume": instance.storage_name}
            steps = (Step("snapshots.restore_volume", volume), Step("snapshots.restore_record", where))
            plan = Plan(f'restore instance "{name}" from "{snapshot.name}"', steps, on_crash="finish")
            async with self._lifecycle.stopped(instance, stateful=stateful):
                async with self._locks.hold(instance.root_key, "restore"):
                    await self._journal.run(plan)
                if stateful:
                    await self._lifecycle.saving.take_over(instance, snapshot.name)
                elif instance.stateful:
                    await self._lifecycle.saving.forget(instance)
        self._events.lifecycle("instance-restored", instance.url, project, {"snapshot": snapshot.name})

    async def _restore_volume(self, args: Args, _progress: Progress) -> None:
        await self._pools.restore_snapshot(_volume(args), args["snapshot"])

    async def _restore_record(self, args: Args, _progress: Progress) -> None:
        found = self._registry.find(args["project"], args["name"])
        restored = self._restored(args["project"], args["name"], args["snapshot"])
        if restored != found.value:
            instances, check = self._registry.instances, partial(self._rules.check, [restored])
            ops, conditions = [instances.put(found.path, restored)], [instances.unchanged(found.path, found.revision)]
            await self._projects.write([restored.project], ops, conditions, check)

    def _restored(self, project: str, name: str, snapshot: str) -> InstanceRecord:
        """The instance with the settings that a snapshot kept."""
        current = self._registry.instance(project, name)
        then = self._registry.find_snapshot(project, name, snapshot).value.instance
        return msgspec.structs.replace(
            current,
            architecture=then.architecture,
            config=_restored_config(current.config, then.config),
            devices=then.devices,
            ephemeral=then.ephemeral,
            metadata=then.metadata,
            profiles=[profile for profile in then.profiles if self._registry.has_profile(project, profile)],
        )

    # --- by the clock, and by starts ---

    async def at_start(self, instance: InstanceRecord) -> None:
        """Before each start, with the instance's lock held: one for the schedule `@startup`."""
        blocked = self._projects.rules(instance.project).blocks("snapshots")
        if blocked or not at_startup(self._registry.expand(instance).config.get("snapshots.schedule", "")):
            return
        name = self._next_name(instance)
        taking = self.take(instance.project, instance.name, name, None, lambda _metadata: None)
        await self._try(instance, "snapshot before the start", taking)

    async def run_schedule(self, minute: datetime) -> None:
        """Once a minute: take what is due, delete what has expired."""
        for instance in self._registry.all_instances():
            config = self._registry.expand(instance).config
            if is_due(config.get("snapshots.schedule", ""), minute) and self._may_take(instance, config):
                await self._try(instance, "scheduled snapshot", self._take_scheduled(instance))
            for snapshot in self._registry.snapshots_of(instance):
                if ZERO_TIME < snapshot.expires_at <= minute:
                    await self._try(instance, "expired snapshot", self._remove_locked(snapshot))

    def _may_take(self, instance: InstanceRecord, config: Mapping[str, str]) -> bool:
        if self._projects.rules(instance.project).blocks("snapshots"):
            return False
        running = self._lifecycle.running(instance) is not None
        return running or is_true(config.get("snapshots.schedule.stopped"))

    async def _take_scheduled(self, instance: InstanceRecord) -> None:
        async with self._locks.hold(f"instance/{instance.project}/{instance.name}", "scheduled snapshot"):
            name = self._next_name(instance)
            await self.take(instance.project, instance.name, name, None, lambda _metadata: None)

    async def _remove_locked(self, snapshot: SnapshotRecord) -> None:
        async with self._locks.hold(f"instance/{snapshot.instance.project}/{snapshot.instance.name}", "expiry"):
            await self.remove(snapshot)

    async def _try(self, instance: InstanceRecord, what: str, work: Any) -> None:
        """Nobody waits for it: a failure is logged, and the next one is tried."""
        try:
            await work
        except FlexdError as error:
            log.error('Failed %s of instance "%s": %s', what, instance.name, error)


def _volume(args: Args) -> VolumeRef:
    return VolumeRef(args["pool"], "container", args["volume"])


def _restored_config(current: Mapping[str, str], then: Mapping[str, str]) -> dict[str, str]:
    """The settings of then, with what ties the instance to this host as it is now."""
    kept = {key: value for key, value in current.items() if _is_tied(key)}
    return {key: value for key, value in then.items() if not _is_tied(key)} | kept


def _is_tied(key: str) -> bool:
    return key.startswith(("volatile.idmap.", "volatile.last_state.")) or key == "volatile.uuid"
