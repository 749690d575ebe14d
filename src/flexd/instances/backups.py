# SPDX-License-Identifier: Apache-2.0
"""Backups of instances: files in LXD's format, kept here until they are fetched, deleted or expired."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from flexd.api.errors import NotFound
from flexd.api.instance_backup import InstanceBackup, InstanceBackupPost, InstanceBackupsPost
from flexd.api.keys import Key
from flexd.api.times import ZERO_TIME, now
from flexd.backups.optimized import INSTANCE, stream_parts
from flexd.backups.shelf import Owner, Shelf, backup_url
from flexd.host.contract import Host
from flexd.images.compress import Compressor, algorithm_fault, find_compressor
from flexd.images.meter import PackMeter
from flexd.images.pack import Folder, Packer, Part, Text, Tree
from flexd.instances.backup_format import Source, render_backup, render_index
from flexd.instances.metadata import MetadataDocuments, MetadataRecord
from flexd.instances.publish import render_metadata
from flexd.instances.record import BackupRecord, InstanceRecord, instance_url
from flexd.instances.registry import Registry, show_backup, show_instance, show_profile, show_snapshot
from flexd.instances.stills import Records, Still, Stills
from flexd.operations.contract import Progress
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.projects.projects import Projects
from flexd.storage.contract import Dress
from flexd.storage.pools import Pools
from flexd.store.contract import If
from flexd.store.documents import Document

log = logging.getLogger(__name__)

Args = dict[str, Any]

KEYS = (
    Key(
        "backups.compression_algorithm",
        default="gzip",
        description="How backups are compressed: a program, with its level (`zstd -9`), or none",
        check=algorithm_fault,
    ),
)


class BackupNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Instance backup not found")


class Backups:
    """The service behind `/1.0/instances/NAME/backups`. Call `prepare` before anything else."""

    def __init__(
        self,
        *,
        host: Host,
        registry: Registry,
        projects: Projects,
        pools: Pools,
        metadata: MetadataDocuments,
        stills: Stills,
        packer: Packer,
        journal: Journal,
        operations: Operations,
        locks: Locks,
        events: Events,
        setting: Callable[[str, str], str],
        directory: Path,
    ) -> None:
        self._host = host
        self._registry = registry
        self._projects = projects
        self._pools = pools
        self._metadata = metadata
        self._stills = stills
        self._packer = packer
        self._operations = operations
        self._events = events
        self._setting = setting
        self._shelf = Shelf(
            "backups",
            documents=registry.backups,
            kind=BackupRecord,
            still_there=self._still_there,
            journal=journal,
            locks=locks,
            directory=directory,
        )

    async def prepare(self) -> None:
        """After `journal.recover()`: clear away what a crash left unfinished."""
        await self._shelf.prepare()

    def _still_there(self, owner: Owner) -> If:
        found = self._registry.instances.get(*owner)
        if found is None:
            raise NotFound(f'Failed backing up instance "{owner[-1]}": it was deleted or renamed meanwhile')
        return self._registry.instances.unchanged(found.path, found.revision)

    # --- reading ---

    def names(self, project: str, name: str) -> list[str]:
        return [backup.name for backup in self._registry.backups_of(self._registry.instance(project, name))]

    def show(self, project: str, name: str, backup: str) -> InstanceBackup:
        return show_backup(self._find(project, name, backup).value)

    def show_all(self, project: str, name: str) -> list[InstanceBackup]:
        return [show_backup(backup) for backup in self._registry.backups_of(self._registry.instance(project, name))]

    def file(self, project: str, name: str, backup: str) -> Path:
        record = self._registry.instance(project, name)
        found = self._find(project, name, backup).value
        self._events.lifecycle("instance-backup-retrieved", backup_url(record.url, found.name), project)
        return self._shelf.path(found)

    def _find(self, project: str, name: str, backup: str) -> Document[BackupRecord]:
        self._registry.instance(project, name)
        found = self._shelf.find((project, name), backup)
        if found is None:
            raise BackupNotFound
        return found

    # --- making ---

    async def create(self, project: str, name: str, post: InstanceBackupsPost) -> Operation:
        record = self._registry.instance(project, name)
        self._projects.check_backups(project)
        algorithm = post.compression_algorithm or self._setting(project, "backups.compression_algorithm")
        program = await asyncio.to_thread(find_compressor, algorithm)
        owner = (project, name)
        backup = post.name or self._shelf.next_name(owner)
        self._shelf.check_free(owner, backup)
        self._shelf.reserve(owner, backup)

        async def run(operation: Operation) -> None:
            try:
                await self._create(record, backup, post, program, operation.progress)
            finally:
                self._shelf.release(owner, backup)

        resources = {"instances": [record.url], "backups": [f"/1.0/backups/{backup}"]}  # `lxc` 5.0 cuts the name out
        return self._operations.start("task", "Backing up instance", project, resources, run, may_cancel=True)

    async def _create(
        self, record: InstanceRecord, backup: str, post: InstanceBackupsPost, program: Compressor, progress: Progress
    ) -> None:
        alone = post.instance_only or post.container_only
        incoming = self._shelf.incoming()
        made = BackupRecord(backup, "", now(), post.expires_at or ZERO_TIME, alone, post.optimized_storage)
        async with self._held(record, post, alone) as (parts, total_bytes):
            tick = PackMeter(progress, "create_backup", "Backing up", total_bytes).tick
            await self._packer.pack(parts, incoming, program, tick, hashed=False)
        await self._shelf.keep((record.project, record.name), incoming, made, f'back up instance "{record.name}"')
        self._events.lifecycle("instance-backup-created", backup_url(record.url, backup), record.project)

    @contextlib.asynccontextmanager
    async def _held(
        self, record: InstanceRecord, post: InstanceBackupsPost, alone: bool
    ) -> AsyncIterator[tuple[Sequence[Part], int]]:
        """What goes into the archive, in LXD's order (the index, the snapshots, the instance), and about how much it
        is. A driver without a format of its own is not asked for it, as in LXD."""
        where, streams = (record.project, record.name), self._pools.driver(record.pool).streams
        if streams is None or not post.optimized_storage:
            async with self._stills.hold(*where, snapshots=not alone) as still:
                yield self._parts(still), await self._size(still)
            return
        async with self._stills.hold_streams(*where, streams, self._dress, snapshots=not alone) as (records, outgoing):
            parts = [self._index(records, optimized=True), *stream_parts(outgoing, INSTANCE)]
            yield parts, await self._pools.disk_usage(record.volume)

    async def _size(self, still: Still) -> int:
        trees = [still.tree, *(tree for _, tree in still.snapshots)]
        return sum([await self._host.files.disk_usage(tree) for tree in trees if tree is not None])

    def _index(self, records: Records, *, optimized: bool = False) -> Part:
        driver = self._pools.record(records.instance.pool).driver
        return Text("backup/index.yaml", render_index(self._source(records), driver, optimized=optimized))

    def _parts(self, still: Still) -> list[Part]:
        records = still.records()
        backup = render_backup(self._source(records))
        parts = [self._index(records)]
        for snapshot, tree in still.snapshots:
            parts += self._volume_parts(f"backup/snapshots/{snapshot.name}", snapshot.instance, tree, backup)
        assert still.tree is not None
        return parts + self._volume_parts("backup/container", still.record, still.tree, backup)

    def _dress(self, records: Records) -> Dress:
        """Writes what is beside a root file system."""
        backup = render_backup(self._source(records))
        moments = {"": records.instance} | {snapshot.name: snapshot.instance for snapshot in records.snapshots}
        texts = {name: [self._backup_text(backup), *self._image_parts(record)] for name, record in moments.items()}

        def dress(snapshot: str, top: Path) -> None:
            for part in texts[snapshot]:
                path = top / part.name
                if isinstance(part, Text):
                    path.write_bytes(part.data)
                else:
                    path.mkdir()
                path.chmod(part.mode)

        return dress

    def _source(self, records: Records) -> Source:
        """In the API's words. The status is of no use to whoever restores it."""
        record = records.instance
        snapshots = [show_snapshot(each, self._registry.expand_past(each.instance)) for each in records.snapshots]
        profiles = [self._registry.find_profile(record.project, name).value for name in record.profiles]
        return Source(
            show_instance(record, self._registry.expand(record), "Stopped"),
            snapshots,
            self._pools.show(record.pool),
            [show_profile(profile, []) for profile in profiles],
        )

    def _volume_parts(self, base: str, record: InstanceRecord, tree: Path, backup: bytes) -> list[Part]:
        beside = [self._backup_text(backup), *self._image_parts(record)]
        named: list[Part] = [msgspec.structs.replace(part, name=f"{base}/{part.name}") for part in beside]
        # As in LXD's, the root file system comes behind what describes it and before the templates.
        described = 2 if record.metadata else 1
        return [Folder(base, 0o100), *named[:described], Tree(tree, f"{base}/rootfs"), *named[described:]]

    def _backup_text(self, backup: bytes) -> Text:
        return Text("backup.yaml", backup, 0o400)

    def _image_parts(self, record: InstanceRecord) -> list[Text | Folder]:
        """What it keeps of its image."""
        kept = self._metadata.of(record) or MetadataRecord()
        parts: list[Text | Folder] = []
        if record.metadata:
            parts.append(Text("metadata.yaml", render_metadata(kept.metadata)))
        if kept.templates:
            parts.append(Folder("templates"))
            parts += [Text(f"templates/{name}", text.encode()) for name, text in sorted(kept.templates.items())]
        return parts

    # --- renaming and deleting ---

    def rename(self, project: str, name: str, backup: str, post: InstanceBackupPost) -> Operation:
        record = self._registry.instance(project, name)
        self._find(project, name, backup)
        self._shelf.check_free((project, name), post.name)

        async def run(_operation: Operation) -> None:
            if await self._shelf.rename((project, name), backup, post.name) is None:
                raise BackupNotFound
            context = {"old_name": f"{name}/{backup}"}
            self._events.lifecycle("instance-backup-renamed", backup_url(record.url, post.name), project, context)

        return self._start("Renaming instance backup", record, run)

    def delete(self, project: str, name: str, backup: str) -> Operation:
        record = self._registry.instance(project, name)
        self._find(project, name, backup)

        async def run(_operation: Operation) -> None:
            await self._delete(record, self._find(project, name, backup))

        return self._start("Removing instance backup", record, run)

    def _start(self, description: str, record: InstanceRecord, run: Any) -> Operation:
        return self._operations.start("task", description, record.project, {"instances": [record.url]}, run)

    async def _delete(self, record: InstanceRecord, found: Document[BackupRecord]) -> None:
        await self._shelf.delete(found)
        url = backup_url(record.url, found.value.name)
        self._events.lifecycle("instance-backup-deleted", url, record.project)

    # --- by the clock ---

    async def run_schedule(self, minute: datetime) -> None:
        """Once a minute: delete what has expired, and files whose instance is gone."""
        await self._shelf.delete_expired(minute, self._tell_deleted)

    def _tell_deleted(self, found: Document[BackupRecord]) -> None:
        project, name, backup = found.path
        url = backup_url(instance_url(project, name), backup)
        self._events.lifecycle("instance-backup-deleted", url, project)
