# SPDX-License-Identifier: Apache-2.0
"""Snapshots of custom volumes: taken by hand or on schedule, edited, renamed, restored, expired.

Those of instance volumes are listed here, too, and belong to the instance's snapshots.
"""

import logging
from collections.abc import Coroutine
from datetime import datetime
from typing import Any

import msgspec

from flexd.api.errors import BadRequest, Conflict, FlexdError
from flexd.api.storage_volume import (
    StorageVolumeSnapshot,
    StorageVolumeSnapshotPost,
    StorageVolumeSnapshotPut,
    StorageVolumeSnapshotsPost,
)
from flexd.api.times import ZERO_TIME, now
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.operations.schedule import expires_at, is_due, make_name
from flexd.projects.projects import Projects
from flexd.storage.contract import SnapshotNotFound, VolumeRecord, VolumeRef
from flexd.storage.names import check_snapshot_name, split_snapshot, volume_ref, volume_url
from flexd.storage.pools import Pools
from flexd.storage.volumes import Volumes, lock_of, path_of
from flexd.store.documents import Document, Documents, Mirror

log = logging.getLogger(__name__)

Args = dict[str, Any]
Where = tuple[str, str, str, str]
"""Pool, type, project and name of a volume, as a request names them."""


class VolumeSnapshots:
    """The service behind `/1.0/storage-pools/POOL/volumes/TYPE/NAME/snapshots`."""

    def __init__(
        self,
        *,
        volumes: Volumes,
        pools: Pools,
        projects: Projects,
        mirror: Mirror,
        journal: Journal,
        operations: Operations,
        locks: Locks,
    ) -> None:
        self._volumes = volumes
        self._pools = pools
        self._projects = projects
        self._journal = journal
        self._operations = operations
        self._locks = locks
        self._records = Documents(mirror, "storage-volumes", VolumeRecord)
        journal.register("storage.create_snapshot", self._create_snapshot, self._uncreate_snapshot)
        journal.register("storage.delete_snapshot", self._delete_snapshot)
        journal.register("storage.rename_snapshot", self._rename_snapshot, self._rename_snapshot_back)
        journal.register("storage.restore_snapshot", self._restore_snapshot)

    # --- reading ---

    def names(self, where: Where) -> list[str]:
        return [split_snapshot(record.name)[1] for record in self._of(where)]

    def show_all(self, where: Where) -> list[StorageVolumeSnapshot]:
        """Named `VOLUME/SNAPSHOT` in a list, as LXD does."""
        return [_show(record, f"{where[3]}/{split_snapshot(record.name)[1]}") for record in self._of(where)]

    def show(self, where: Where, snapshot: str) -> StorageVolumeSnapshot:
        return _show(self._document(where, snapshot).value, snapshot)

    def _of(self, where: Where) -> list[VolumeRecord]:
        return self._pools.list_snapshots(volume_ref(self._volumes.document(*where).value))

    def _document(self, where: Where, snapshot: str) -> Document[VolumeRecord]:
        self._volumes.document(*where)
        document = self._records.get(*where[:3], f"{where[3]}@{snapshot}")
        if document is None:
            raise SnapshotNotFound("Storage volume snapshot not found")
        return document

    def _custom(self, where: Where, *, tried: str) -> VolumeRecord:
        return self._volumes.custom(*where, tried=tried).value

    # --- taking ---

    async def create(self, where: Where, post: StorageVolumeSnapshotsPost) -> Operation:
        volume = self._custom(where, tried="taking a snapshot of")
        self._projects.check_snapshots(volume.project)
        name = post.name or self._next_name(volume)
        check_snapshot_name(name)
        self._check_free(volume, name)

        async def run(_operation: Operation) -> None:
            async with self._locks.hold(lock_of(volume), "snapshot"):
                await self._take(volume, name, post.expires_at)

        return self._start("Snapshotting storage volume", volume, run)

    def _next_name(self, volume: VolumeRecord) -> str:
        taken = {split_snapshot(record.name)[1] for record in self._pools.list_snapshots(volume_ref(volume))}
        return make_name(volume.config.get("snapshots.pattern", ""), now(), taken)

    def _check_free(self, volume: VolumeRecord, name: str) -> None:
        if self._records.get(*path_of(_snapshot_of(volume, name))) is not None:
            raise Conflict(f'Snapshot "{name}" of storage volume "{volume.name}" already exists')

    async def _take(self, volume: VolumeRecord, name: str, expires: datetime | None) -> None:
        """The volume's lock is held."""
        self._check_free(volume, name)
        created_at = now()
        if expires is None:
            expires = expires_at(created_at, volume.config.get("snapshots.expiry", ""))
        snapshot = msgspec.structs.replace(_snapshot_of(volume, name), created_at=created_at, expires_at=expires)
        step = Step("storage.create_snapshot", {"record": msgspec.to_builtins(snapshot)})
        await self._journal.run(Plan(f'take snapshot "{name}" of storage volume "{volume.name}"', (step,)))
        self._volumes.event("storage-volume-snapshot-created", snapshot)

    def _start(self, description: str, volume: VolumeRecord, run: Any) -> Operation:
        resources = {"storage_volumes": [volume_url(volume)]}
        return self._operations.start("task", description, volume.project, resources, run)

    # --- editing ---

    async def update(self, where: Where, snapshot: str, put: StorageVolumeSnapshotPut) -> None:
        """Description and expiry; of an instance's snapshot the description (the rest is the instance's)."""
        found = self._document(where, snapshot)
        if found.value.kind != "custom" and put.expires_at != found.value.expires_at:
            raise BadRequest(f'Failed editing snapshot "{snapshot}": when it expires is its instance\'s to say')
        new = msgspec.structs.replace(found.value, description=put.description, expires_at=put.expires_at)
        await self._records.update(found.path, new, found.revision)
        self._volumes.event("storage-volume-snapshot-updated", new)

    async def rename(self, where: Where, snapshot: str, post: StorageVolumeSnapshotPost) -> Operation:
        volume = self._custom(where, tried="renaming a snapshot of")
        old = self._document(where, snapshot).value
        check_snapshot_name(post.name)
        self._check_free(volume, post.name)
        args = {"volume": msgspec.to_builtins(volume), "old": snapshot, "new": post.name}
        plan = Plan(f'rename snapshot "{snapshot}" of "{volume.name}"', (Step("storage.rename_snapshot", args),))

        async def run(_operation: Operation) -> None:
            async with self._locks.hold(lock_of(volume), "rename snapshot"):
                self._check_free(volume, post.name)
                await self._journal.run(plan)
            new = msgspec.structs.replace(old, name=f"{volume.name}@{post.name}")
            self._volumes.event("storage-volume-snapshot-renamed", new, {"old_name": snapshot})

        return self._start("Renaming storage volume snapshot", volume, run)

    async def delete(self, where: Where, snapshot: str) -> Operation:
        volume = self._custom(where, tried="deleting a snapshot of")
        found = self._document(where, snapshot).value

        async def run(_operation: Operation) -> None:
            async with self._locks.hold(lock_of(volume), "delete snapshot"):
                await self._remove(found)

        return self._start("Deleting storage volume snapshot", volume, run)

    async def _remove(self, snapshot: VolumeRecord) -> None:
        """The volume's lock is held."""
        step = Step("storage.delete_snapshot", {"record": msgspec.to_builtins(snapshot)})
        await self._journal.run(Plan(f'delete snapshot "{snapshot.name}"', (step,), on_crash="finish"))
        self._volumes.event("storage-volume-snapshot-deleted", snapshot)

    async def restore(self, where: Where, snapshot: str) -> None:
        """`PUT …/volumes/custom/NAME {"restore": …}`."""
        volume = self._custom(where, tried="restoring")
        name = snapshot.removeprefix(f"{volume.name}/")
        self._document(where, name)
        async with self._locks.hold(lock_of(volume), "restore"):
            if self._volumes.running_users(volume):
                raise BadRequest("Cannot restore custom volume used by running instances")
            args = {"volume": msgspec.to_builtins(volume), "snapshot": name}
            steps = (Step("storage.restore_snapshot", args),)
            await self._journal.run(Plan(f'restore storage volume "{volume.name}"', steps, on_crash="finish"))
        self._volumes.event("storage-volume-restored", volume, {"snapshot": name})

    # --- by the clock ---

    async def run_schedule(self, minute: datetime) -> None:
        """Once a minute: take what is due, delete what has expired."""
        for document in self._records.list():
            record = document.value
            if record.kind != "custom" or self._pools.fault(record.pool) is not None:
                continue
            if split_snapshot(record.name)[1]:
                if ZERO_TIME < record.expires_at <= minute:
                    await self._try("removing the expired snapshot", record, self._remove_locked(record))
            elif self._is_due(record, minute):
                await self._try("taking a scheduled snapshot of", record, self._take_scheduled(record))

    def _is_due(self, volume: VolumeRecord, minute: datetime) -> bool:
        blocked = self._projects.rules(volume.project).blocks("snapshots")
        return not blocked and is_due(volume.config.get("snapshots.schedule", ""), minute)

    async def _take_scheduled(self, volume: VolumeRecord) -> None:
        async with self._locks.hold(lock_of(volume), "scheduled snapshot"):
            await self._take(volume, self._next_name(volume), None)

    async def _remove_locked(self, snapshot: VolumeRecord) -> None:
        volume = msgspec.structs.replace(snapshot, name=split_snapshot(snapshot.name)[0])
        async with self._locks.hold(lock_of(volume), "expiry"):
            await self._remove(snapshot)

    async def _try(self, what: str, record: VolumeRecord, work: Coroutine[Any, Any, None]) -> None:
        """Nobody waits for it: a failure is logged, and the next one is tried."""
        try:
            await work
        except (FlexdError, OSError) as error:
            log.error('Failed %s storage volume "%s" of pool "%s": %s', what, record.name, record.pool, error)

    # --- journalled steps ---

    async def _create_snapshot(self, args: Args, _progress: Progress) -> None:
        ref, name, record = _split(args)
        volume = msgspec.structs.replace(record, name=split_snapshot(record.name)[0])
        await self._pools.create_snapshot(
            ref,
            name,
            record.project,
            live=bool(self._volumes.running_users(volume)),
            created_at=record.created_at,
            expires_at=record.expires_at,
        )

    async def _uncreate_snapshot(self, args: Args) -> None:
        ref, name, _ = _split(args)
        await self._pools.delete_snapshot(ref, name)

    async def _delete_snapshot(self, args: Args, _progress: Progress) -> None:
        await self._uncreate_snapshot(args)

    async def _rename_snapshot(self, args: Args, _progress: Progress) -> None:
        await self._pools.rename_snapshot(_volume(args), args["old"], args["new"])

    async def _rename_snapshot_back(self, args: Args) -> None:
        await self._pools.rename_snapshot(_volume(args), args["new"], args["old"])

    async def _restore_snapshot(self, args: Args, _progress: Progress) -> None:
        await self._pools.restore_snapshot(_volume(args), args["snapshot"])


def _show(record: VolumeRecord, name: str) -> StorageVolumeSnapshot:
    return StorageVolumeSnapshot(
        config=dict(record.config),
        content_type=record.content_type,
        created_at=record.created_at,
        description=record.description,
        expires_at=record.expires_at,
        name=name,
    )


def _snapshot_of(volume: VolumeRecord, snapshot: str) -> VolumeRecord:
    return msgspec.structs.replace(volume, name=f"{volume.name}@{snapshot}", description="")


def _split(args: Args) -> tuple[VolumeRef, str, VolumeRecord]:
    """(the volume, the snapshot's name, its document)."""
    record = msgspec.convert(args["record"], VolumeRecord)
    name, snapshot = split_snapshot(record.name)
    return volume_ref(msgspec.structs.replace(record, name=name)), snapshot, record


def _volume(args: Args) -> VolumeRef:
    return volume_ref(msgspec.convert(args["volume"], VolumeRecord))
