# SPDX-License-Identifier: Apache-2.0
"""Backups of instances: files in LXD's format, kept here until they are fetched, deleted or expired."""

import asyncio
import logging
import secrets
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from flexd.api.errors import BadRequest, Conflict, FlexdError, NotFound
from flexd.api.instance_backup import InstanceBackup, InstanceBackupPost, InstanceBackupsPost
from flexd.api.keys import Key
from flexd.api.times import ZERO_TIME, now
from flexd.host.contract import Host
from flexd.images.compress import Compressor, algorithm_fault, find_compressor
from flexd.images.pack import Folder, Packer, Part, Text, Tree
from flexd.instances.backup_format import Source, render_backup, render_index
from flexd.instances.metadata import MetadataDocuments, MetadataRecord
from flexd.instances.publish import Meter, render_metadata
from flexd.instances.record import BackupRecord, InstanceRecord
from flexd.instances.registry import Registry, show_backup, show_instance, show_profile, show_snapshot
from flexd.instances.stills import Still, Stills
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.projects.projects import Projects
from flexd.storage.pools import Pools
from flexd.store.documents import Document

log = logging.getLogger(__name__)

Args = dict[str, Any]

INCOMING = ".incoming-"
# Whoever puts a file among the backups and then writes its document, and whoever removes files without one.
_FILES_KEY = "instance-backup-files"

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
        self._journal = journal
        self._operations = operations
        self._locks = locks
        self._events = events
        self._setting = setting
        self._directory = directory
        self._under_way: set[tuple[str, str, str]] = set()
        journal.register("backups.place", self._place, self._unplace)
        journal.register("backups.record", self._record)

    async def prepare(self) -> None:
        """After `journal.recover()`: clear away what a crash left unfinished."""

        def prepare() -> None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._directory.glob(f"{INCOMING}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

        await asyncio.to_thread(prepare)
        await self._sweep()

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
        self._events.lifecycle("instance-backup-retrieved", backup_url(record, found.name), project)
        return self._directory / found.file

    def _find(self, project: str, name: str, backup: str) -> Document[BackupRecord]:
        self._registry.instance(project, name)
        found = self._registry.backups.get(project, name, backup)
        if found is None:
            raise BackupNotFound
        return found

    # --- making ---

    async def create(self, project: str, name: str, post: InstanceBackupsPost) -> Operation:
        record = self._registry.instance(project, name)
        self._projects.check_backups(project)
        algorithm = post.compression_algorithm or self._setting(project, "backups.compression_algorithm")
        program = await asyncio.to_thread(find_compressor, algorithm)
        if post.optimized_storage:
            driver = self._pools.record(record.pool).driver
            raise BadRequest(
                f'Failed backing up instance "{name}": the storage driver "{driver}" has no optimized format of its '
                "own; leave out optimized_storage"
            )
        backup = post.name or self._next_name(record)
        self._check_free(record, backup)
        reserved = (project, name, backup)
        self._under_way.add(reserved)

        async def run(operation: Operation) -> None:
            try:
                await self._create(record, backup, post, program, operation.progress)
            finally:
                self._under_way.discard(reserved)

        resources = {"instances": [record.url], "backups": [f"/1.0/backups/{backup}"]}  # `lxc` 5.0 cuts the name out
        return self._operations.start("task", "Backing up instance", project, resources, run, may_cancel=True)

    def _next_name(self, record: InstanceRecord) -> str:
        taken = {backup.name for backup in self._registry.backups_of(record)}
        taken |= {name for *instance, name in self._under_way if instance == [record.project, record.name]}
        return next(name for number in range(len(taken) + 1) if (name := f"backup{number}") not in taken)

    def _check_free(self, record: InstanceRecord, backup: str) -> None:
        check_backup_name(backup)
        reserved = (record.project, record.name, backup) in self._under_way
        if reserved or self._registry.backups.get(record.project, record.name, backup) is not None:
            raise Conflict(f'Backup "{record.name}/{backup}" already exists')

    async def _create(
        self, record: InstanceRecord, backup: str, post: InstanceBackupsPost, program: Compressor, progress: Progress
    ) -> None:
        alone = post.instance_only or post.container_only
        incoming = self._directory / f"{INCOMING}{secrets.token_hex(8)}"
        created_at = now()
        async with self._stills.hold(record.project, record.name, snapshots=not alone) as still:
            total_bytes = await self._size(still)
            tick = Meter(progress, "create_backup", "Backing up", total_bytes).tick
            await self._packer.pack(self._parts(still), incoming, program, tick)
        made = BackupRecord(
            backup, incoming.name.removeprefix(INCOMING), created_at, post.expires_at or ZERO_TIME, alone
        )
        where = {"project": record.project, "name": record.name}
        steps = (
            Step("backups.place", {"file": made.file}),
            Step("backups.record", {**where, "document": msgspec.json.encode(made).decode()}),
        )
        try:
            async with self._locks.hold(_FILES_KEY, "create"):
                await self._journal.run(Plan(f'back up instance "{record.name}"', steps))
        finally:
            await asyncio.to_thread(incoming.unlink, missing_ok=True)
        self._events.lifecycle("instance-backup-created", backup_url(record, backup), record.project)

    async def _size(self, still: Still) -> int:
        trees = [still.tree, *(tree for _, tree in still.snapshots)]
        return sum([await self._host.files.disk_usage(tree) for tree in trees if tree is not None])

    def _parts(self, still: Still) -> list[Part]:
        """In LXD's order: the index, the snapshots, the instance."""
        source = self._source(still)
        backup = render_backup(source)
        driver = self._pools.record(still.record.pool).driver
        parts: list[Part] = [Text("backup/index.yaml", render_index(source, driver))]
        for snapshot, tree in still.snapshots:
            parts += self._volume_parts(f"backup/snapshots/{snapshot.name}", snapshot.instance, tree, backup)
        assert still.tree is not None
        return parts + self._volume_parts("backup/container", still.record, still.tree, backup)

    def _source(self, still: Still) -> Source:
        """In the API's words. The status is of no use to whoever restores it."""
        record = still.record
        snapshots = [show_snapshot(each, self._registry.expand_past(each.instance)) for each, _ in still.snapshots]
        profiles = [self._registry.find_profile(record.project, name).value for name in record.profiles]
        return Source(
            show_instance(record, self._registry.expand(record), "Stopped"),
            snapshots,
            self._pools.show(record.pool),
            [show_profile(profile, []) for profile in profiles],
        )

    def _volume_parts(self, base: str, record: InstanceRecord, tree: Path, backup: bytes) -> list[Part]:
        kept = self._metadata.of(record) or MetadataRecord()
        parts: list[Part] = [Folder(base, 0o100), Text(f"{base}/backup.yaml", backup, 0o400)]
        if record.metadata:
            parts.append(Text(f"{base}/metadata.yaml", render_metadata(kept.metadata)))
        parts.append(Tree(tree, f"{base}/rootfs"))
        if kept.templates:
            parts.append(Folder(f"{base}/templates"))
            parts += [Text(f"{base}/templates/{name}", text.encode()) for name, text in sorted(kept.templates.items())]
        return parts

    async def _place(self, args: Args, _progress: Progress) -> None:
        incoming, final = self._directory / f"{INCOMING}{args['file']}", self._directory / args["file"]

        def place() -> None:
            if not final.exists():
                incoming.rename(final)

        await asyncio.to_thread(place)

    async def _unplace(self, args: Args) -> None:
        await asyncio.to_thread((self._directory / args["file"]).unlink, missing_ok=True)

    async def _record(self, args: Args, _progress: Progress) -> None:
        made = msgspec.json.decode(args["document"], type=BackupRecord)
        path = (args["project"], args["name"])
        instances, backups = self._registry.instances, self._registry.backups
        found = instances.get(*path)
        if found is None:
            raise NotFound(f'Failed backing up instance "{args["name"]}": it was deleted or renamed meanwhile')
        conditions = [instances.unchanged(path, found.revision), backups.unchanged((*path, made.name), 0)]
        await backups.txn([backups.put((*path, made.name), made)], conditions)

    # --- renaming and deleting ---

    def rename(self, project: str, name: str, backup: str, post: InstanceBackupPost) -> Operation:
        record = self._registry.instance(project, name)
        self._find(project, name, backup)
        self._check_free(record, post.name)

        async def run(_operation: Operation) -> None:
            backups, found = self._registry.backups, self._find(project, name, backup)
            path = (project, name, post.name)
            renamed = msgspec.structs.replace(found.value, name=post.name)
            conditions = [backups.unchanged(found.path, found.revision), backups.unchanged(path, 0)]
            await backups.txn([backups.delete_op(found.path), backups.put(path, renamed)], conditions)
            context = {"old_name": f"{name}/{backup}"}
            self._events.lifecycle("instance-backup-renamed", backup_url(record, post.name), project, context)

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
        """The document first: a file that nothing names is swept away, whatever happens."""
        await self._registry.backups.delete(found.path)
        await asyncio.to_thread((self._directory / found.value.file).unlink, missing_ok=True)
        url = backup_url(record, found.value.name)
        self._events.lifecycle("instance-backup-deleted", url, record.project)

    # --- by the clock ---

    async def run_schedule(self, minute: datetime) -> None:
        """Once a minute: delete what has expired, and files whose instance is gone."""
        for record in self._registry.all_instances():
            for found in self._registry.backups.list(record.project, record.name):
                if ZERO_TIME < found.value.expires_at <= minute:
                    await self._try_delete(record, found)
        await self._sweep()

    async def _try_delete(self, record: InstanceRecord, found: Document[BackupRecord]) -> None:
        try:
            await self._delete(record, found)
        except (FlexdError, OSError) as error:
            log.error('Failed deleting expired backup "%s/%s": %s', record.name, found.value.name, error)

    async def _sweep(self) -> None:
        def sweep(known: set[str]) -> None:
            for path in self._directory.iterdir():
                if not path.name.startswith(".") and path.name not in known:
                    path.unlink()

        async with self._locks.hold(_FILES_KEY, "sweep"):
            known = {found.value.file for found in self._registry.backups.list()}
            await asyncio.to_thread(sweep, known)


def check_backup_name(name: str) -> None:
    if "/" in name:
        raise BadRequest("Backup names may not contain slashes")
    if not name or len(name) > 64 or name in (".", "..") or not name.isprintable() or " " in name:
        raise BadRequest(f'Invalid backup name "{name}": 1 to 64 printable characters without slash and space')


def backup_url(record: InstanceRecord, backup: str) -> str:
    base, _, query = record.url.partition("?")
    return f"{base}/backups/{backup}" + (f"?{query}" if query else "")
