# SPDX-License-Identifier: Apache-2.0
"""Backups of custom volumes: files in LXD's format, kept here until they are fetched, deleted or expired."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from flexd.api.errors import NotFound
from flexd.api.idmap import IdMap
from flexd.api.storage_volume_backup import (
    StoragePoolVolumeBackup,
    StoragePoolVolumeBackupPost,
    StoragePoolVolumeBackupsPost,
)
from flexd.api.times import ZERO_TIME, now
from flexd.backups.optimized import VOLUME, stream_parts
from flexd.backups.parts import Parts
from flexd.backups.shelf import Owner, Shelf, ShelvedBackup, backup_url
from flexd.backups.volume_format import render_volume_index
from flexd.images.compress import Compressor, find_compressor
from flexd.images.meter import PackMeter
from flexd.images.pack import File, Packer, Part, Text, Tree
from flexd.operations.contract import Progress
from flexd.operations.operations import Operation
from flexd.storage.contract import Streams, VolumeRecord
from flexd.storage.custom import file_of
from flexd.storage.names import split_snapshot, volume_ref, volume_url
from flexd.storage.pools import BACKUPS
from flexd.storage.volumes import lock_of, path_of
from flexd.store.contract import If
from flexd.store.documents import Document, Documents

Where = tuple[str, str, str, str]
"""Pool, type, project and name of a volume, as a request names them."""


class VolumeBackupRecord(ShelvedBackup):
    """The document `/volume-backups/POOL/PROJECT/VOLUME/NAME`."""

    volume_only: bool = False
    optimized_storage: bool = False


class BackupNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Storage volume backup not found")


class _Moment(Struct, frozen=True):
    """A volume or one of its snapshots, and the read-only tree of it."""

    record: VolumeRecord
    tree: Path


class VolumeBackups:
    """The service behind `/1.0/storage-pools/POOL/volumes/custom/NAME/backups`; `prepare` before anything else."""

    def __init__(self, parts: Parts, packer: Packer, setting: Callable[[str, str], str]) -> None:
        self._volumes = parts.volumes
        self._pools = parts.pools
        self._packer = packer
        self._operations = parts.operations
        self._locks = parts.locks
        self._events = parts.events
        self._projects = parts.projects
        self._setting = setting
        self._records = parts.records
        self._shelf = Shelf(
            "volume_backups",
            documents=Documents(parts.mirror, BACKUPS, VolumeBackupRecord),
            kind=VolumeBackupRecord,
            still_there=self._still_there,
            journal=parts.journal,
            locks=parts.locks,
            directory=parts.directory,
        )

    async def prepare(self) -> None:
        """After `journal.recover()`: clear away what a crash left unfinished."""
        await self._shelf.prepare()

    def _still_there(self, owner: Owner) -> If:
        pool, project, name = owner
        found = self._records.get(pool, "custom", project, name)
        if found is None:
            raise NotFound(f'Failed backing up storage volume "{name}": it was deleted or renamed meanwhile')
        return self._records.unchanged(found.path, found.revision)

    # --- reading ---

    def names(self, where: Where) -> list[str]:
        return [backup.name for backup in self._shelf.of(_owner(self._custom(where)))]

    def show_all(self, where: Where) -> list[StoragePoolVolumeBackup]:
        return [_show(backup) for backup in self._shelf.of(_owner(self._custom(where)))]

    def show(self, where: Where, backup: str) -> StoragePoolVolumeBackup:
        return _show(self._find(where, backup).value)

    def file(self, where: Where, backup: str) -> Path:
        found = self._find(where, backup).value
        self._event("retrieved", self._custom(where), found.name)
        return self._shelf.path(found)

    def _custom(self, where: Where) -> VolumeRecord:
        return self._volumes.custom(*where, tried="backing up").value

    def _find(self, where: Where, backup: str) -> Document[VolumeBackupRecord]:
        found = self._shelf.find(_owner(self._custom(where)), backup)
        if found is None:
            raise BackupNotFound
        return found

    def _event(self, what: str, volume: VolumeRecord, backup: str, context: dict[str, Any] | None = None) -> None:
        url = backup_url(volume_url(volume), backup)
        self._events.lifecycle(
            f"storage-volume-backup-{what}", url, volume.project, {"type": "custom", **(context or {})}
        )

    # --- making ---

    async def create(self, where: Where, post: StoragePoolVolumeBackupsPost) -> Operation:
        volume = self._custom(where)
        self._projects.check_backups(volume.project)
        algorithm = post.compression_algorithm or self._setting(volume.project, "backups.compression_algorithm")
        program = await asyncio.to_thread(find_compressor, algorithm)
        owner = _owner(volume)
        backup = post.name or self._shelf.next_name(owner)
        self._shelf.check_free(owner, backup)
        self._shelf.reserve(owner, backup)

        async def run(operation: Operation) -> None:
            try:
                await self._create(volume, backup, post, program, operation.progress)
            finally:
                self._shelf.release(owner, backup)
            self._event("created", volume, backup)

        resources = {"storage_volumes": [volume_url(volume)], "backups": [f"/1.0/backups/{backup}"]}
        return self._operations.start(
            "task", "Creating custom volume backup", volume.project, resources, run, may_cancel=True
        )

    async def _create(
        self,
        volume: VolumeRecord,
        backup: str,
        post: StoragePoolVolumeBackupsPost,
        program: Compressor,
        progress: Progress,
    ) -> None:
        incoming = self._shelf.incoming()
        made = VolumeBackupRecord(
            backup, "", now(), post.expires_at or ZERO_TIME, post.volume_only, post.optimized_storage
        )
        async with self._still(volume, post) as (parts, total_bytes):
            tick = PackMeter(progress, "create_backup", "Backing up", total_bytes).tick
            await self._packer.pack(parts, incoming, program, tick, hashed=False)
        await self._shelf.keep(_owner(volume), incoming, made, f'back up storage volume "{volume.name}"')

    @contextlib.asynccontextmanager
    async def _still(
        self, volume: VolumeRecord, post: StoragePoolVolumeBackupsPost
    ) -> AsyncIterator[tuple[Sequence[Part], int]]:
        """What goes into the archive, and about how much it is. Where a pool shows one moment of a volume, that is free
        again at once; elsewhere it stays locked: it could be deleted, or restored, while it is read."""
        streams = self._pools.driver(volume.pool).streams
        async with contextlib.AsyncExitStack() as held, contextlib.AsyncExitStack() as locked:
            await locked.enter_async_context(self._locks.hold(lock_of(volume), "backup"))
            volume = self._volumes.custom(*path_of(volume), tried="backing up").value
            snapshots = [] if post.volume_only else self._pools.list_snapshots(volume_ref(volume))
            if streams is not None and post.optimized_storage:
                parts = await held.enter_async_context(self._streamed(streams, volume, snapshots))
            else:
                parts = await held.enter_async_context(self._trees(volume, snapshots))
            total_bytes = await self._pools.disk_usage(volume_ref(volume))
            if streams is not None:
                await locked.aclose()
            yield parts, total_bytes

    @contextlib.asynccontextmanager
    async def _streamed(
        self, streams: Streams, volume: VolumeRecord, snapshots: Sequence[VolumeRecord]
    ) -> AsyncIterator[Sequence[Part]]:
        names, ref = [split_snapshot(snapshot.name)[1] for snapshot in snapshots], volume_ref(volume)
        live = bool(self._volumes.running_users(volume))
        async with streams.sending(ref.kind, ref.name, names, live=live, dress=None) as outgoing:
            yield [self._index(volume, snapshots, optimized=True), *stream_parts(outgoing, VOLUME)]

    @contextlib.asynccontextmanager
    async def _trees(self, volume: VolumeRecord, snapshots: Sequence[VolumeRecord]) -> AsyncIterator[Sequence[Part]]:
        """In LXD's order: the index, the snapshots, the volume."""
        ref, live = volume_ref(volume), bool(self._volumes.running_users(volume))
        parts: list[Part] = [self._index(volume, snapshots, optimized=False)]
        async with contextlib.AsyncExitStack() as stack:
            for record in (*snapshots, volume):
                snapshot = split_snapshot(record.name)[1] or None
                view = self._pools.view(ref, IdMap(), snapshot=snapshot, live=live and snapshot is None)
                tree = await stack.enter_async_context(view)
                parts.append(_part(_Moment(record, tree)))
            yield parts

    def _index(self, volume: VolumeRecord, snapshots: Sequence[VolumeRecord], *, optimized: bool) -> Part:
        driver = self._pools.record(volume.pool).driver
        return Text("backup/index.yaml", render_volume_index(volume, snapshots, driver, optimized=optimized))

    # --- renaming and deleting ---

    def rename(self, where: Where, backup: str, post: StoragePoolVolumeBackupPost) -> Operation:
        volume = self._custom(where)
        self._find(where, backup)
        owner = _owner(volume)
        self._shelf.check_free(owner, post.name)

        async def run(_operation: Operation) -> None:
            if await self._shelf.rename(owner, backup, post.name) is None:
                raise BackupNotFound
            self._event("renamed", volume, post.name, {"old_name": f"{volume.name}/{backup}"})

        return self._start("Renaming custom volume backup", volume, run)

    def delete(self, where: Where, backup: str) -> Operation:
        volume = self._custom(where)
        self._find(where, backup)

        async def run(_operation: Operation) -> None:
            await self._shelf.delete(self._find(where, backup))
            self._event("deleted", volume, backup)

        return self._start("Deleting custom volume backup", volume, run)

    def _start(
        self, description: str, volume: VolumeRecord, run: Callable[[Operation], Coroutine[Any, Any, None]]
    ) -> Operation:
        resources = {"storage_volumes": [volume_url(volume)]}
        return self._operations.start("task", description, volume.project, resources, run)

    async def run_schedule(self, minute: datetime) -> None:
        """Once a minute: delete what has expired, and files whose volume is gone."""
        await self._shelf.delete_expired(minute, self._tell_deleted)

    def _tell_deleted(self, found: Document[VolumeBackupRecord]) -> None:
        pool, project, name, backup = found.path
        self._event("deleted", VolumeRecord(name, pool, "custom", project), backup)


def _owner(volume: VolumeRecord) -> Owner:
    return volume.pool, volume.project, volume.name


def _part(moment: _Moment) -> Part:
    snapshot = split_snapshot(moment.record.name)[1]
    name = f"backup/volume-snapshots/{snapshot}" if snapshot else "backup/volume"
    file = file_of(moment.tree, moment.record.content_type)
    return Tree(moment.tree, name) if file is None else File(file, f"{name}.img")


def _show(record: VolumeBackupRecord) -> StoragePoolVolumeBackup:
    return StoragePoolVolumeBackup(
        name=record.name,
        created_at=record.created_at,
        expires_at=record.expires_at,
        optimized_storage=record.optimized_storage,
        volume_only=record.volume_only,
    )
