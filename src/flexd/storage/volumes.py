# SPDX-License-Identifier: Apache-2.0
"""`/1.0/storage-pools/POOL/volumes`: every volume listed; custom ones made, copied, moved, edited and deleted.

Their snapshots are `volume_snapshots.py`'s.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from flexd.api.errors import BadRequest, Conflict, Fault, raise_faults
from flexd.api.storage_volume import (
    StorageVolume,
    StorageVolumePost,
    StorageVolumePut,
    StorageVolumesPost,
    StorageVolumeState,
    StorageVolumeStateUsage,
)
from flexd.api.times import now
from flexd.api.units import parse_size
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.projects.projects import Projects
from flexd.projects.record import DEFAULT_PROJECT
from flexd.storage.contract import VolumeNotFound, VolumeRecord, VolumeRef
from flexd.storage.custom import (
    BLOCK,
    DEFAULT_BLOCK_SIZE,
    FILESYSTEM,
    ISO,
    check_config_of,
    check_kind,
    check_move,
    check_post,
    config_faults,
    file_of,
    without_empty,
)
from flexd.storage.names import (
    api_name,
    check_volume_name,
    owner_url,
    split_snapshot,
    storage_name,
    volume_ref,
    volume_url,
)
from flexd.storage.pools import Pools
from flexd.store.documents import Document, Documents, Mirror

VolumeUsedBy = Callable[[str, str, str], list[str]]
RunningUsers = Callable[[VolumeRecord], list[str]]
Check = Callable[[VolumeRecord], None]
RewriteUsers = Callable[[VolumeRecord, VolumeRecord], Awaitable[None]]
Args = dict[str, Any]


async def _rewrite_nobody(_old: VolumeRecord, _new: VolumeRecord) -> None:
    pass


class Volumes:
    """One per daemon. Pools owns what instances need; this is for people."""

    def __init__(
        self,
        *,
        pools: Pools,
        projects: Projects,
        mirror: Mirror,
        journal: Journal,
        operations: Operations,
        locks: Locks,
        events: Events,
    ) -> None:
        self._pools = pools
        self._projects = projects
        self._journal = journal
        self._operations = operations
        self._locks = locks
        self._events = events
        self._records = Documents(mirror, "storage-volumes", VolumeRecord)
        self._used_by: VolumeUsedBy = lambda _pool, _project, _name: []
        self._running: RunningUsers = lambda _record: []
        self._rewrite: RewriteUsers = _rewrite_nobody
        self._check: Check = lambda _record: None
        journal.register("storage.note_volume", self._note, self._forget)
        journal.register("storage.create_volume", self._create_volume, self._uncreate_volume)
        journal.register("storage.import_volume", self._import_volume, self._uncreate_volume)
        journal.register("storage.copy_volume", self._copy_volume, self._uncreate_volume)
        journal.register("storage.refresh_volume", self._refresh_volume)
        journal.register("storage.delete_volume", self._delete_volume)
        journal.register("storage.rename_volume", self._rename_volume, self._rename_volume_back)
        journal.register("storage.rewrite_users", self._rewrite_users, self._rewrite_users_back)

    def set_used_by(self, used_by: VolumeUsedBy) -> None:
        """Who uses a custom volume (pool, project, name), as URLs of instances and profiles."""
        self._used_by = used_by

    def set_users(self, *, running: RunningUsers, rewrite: RewriteUsers) -> None:
        """Which running instances have a volume attached; how devices follow a volume to another name or pool."""
        self._running, self._rewrite = running, rewrite

    def set_check(self, check: Check) -> None:
        """Raises if a volume, as it is to be, is more than its project may have."""
        self._check = check

    # --- reading ---

    def show_all(self, pool: str, project: str, kind: str | None = None) -> list[StorageVolume]:
        """The volumes that a project uses on a pool and their snapshots (`c1/snap0`): its instances' and custom ones,
        its own or those of `default`, which has those of images, too."""
        self._pools.record(pool)
        owner = self._projects.owner(project, "storage.volumes")
        path = (pool,) if kind is None else (pool, check_kind(kind))
        records = [document.value for document in self._records.list(*path)]
        owners = {"custom": owner}
        return [self._show(record) for record in records if record.project == owners.get(record.kind, project)]

    def of_project(self, project: str) -> list[VolumeRecord]:
        """The custom volumes that are a project's own, without snapshots."""
        records = [document.value for document in self._records.list()]
        return [r for r in records if r.kind == "custom" and r.project == project and not split_snapshot(r.name)[1]]

    def show(self, pool: str, kind: str, project: str, name: str) -> StorageVolume:
        return self._show(self.document(pool, kind, project, name).value)

    async def state(self, pool: str, kind: str, project: str, name: str) -> StorageVolumeState:
        """Usage; a volume whose pool keeps no account is walked."""
        record = self.document(pool, kind, project, name).value
        used = await self._pools.usage(volume_ref(record))
        if used is None:
            used = await self._pools.disk_usage(volume_ref(record))
        return StorageVolumeState(StorageVolumeStateUsage(parse_size(record.config.get("size", "")), used))

    def _show(self, record: VolumeRecord) -> StorageVolume:
        return StorageVolume(
            config=dict(record.config),
            content_type=record.content_type,
            created_at=record.created_at,
            description=record.description,
            location="none",
            name=api_name(record),
            project=record.project,
            type=record.kind,
            used_by=self.used_by(record),
        )

    def used_by(self, record: VolumeRecord) -> list[str]:
        if split_snapshot(record.name)[1]:
            return []
        if record.kind == "custom":
            return sorted(self._used_by(record.pool, record.project, record.name))
        return [owner_url(record)]

    def running_users(self, record: VolumeRecord) -> list[str]:
        return self._running(record)

    def document(self, pool: str, kind: str, project: str, name: str) -> Document[VolumeRecord]:
        """A volume's, never a snapshot's."""
        self._pools.record(pool)
        document = None if "@" in name else self._records.get(pool, check_kind(kind), project, name)
        if document is None:
            raise VolumeNotFound("Storage volume not found")
        return document

    def find(self, record: VolumeRecord) -> VolumeRecord | None:
        """The volume that has this one's place already."""
        found = self._records.get(*path_of(record))
        return None if found is None else found.value

    def custom(self, pool: str, kind: str, project: str, name: str, *, tried: str) -> Document[VolumeRecord]:
        document = self.document(pool, kind, project, name)
        if kind != "custom":
            raise BadRequest(f'Failed {tried} storage volume "{name}": volumes of type {kind} belong to their owner')
        return document

    # --- making ---

    async def create(self, pool: str, project: str, post: StorageVolumesPost) -> Operation | None:
        """An empty volume at once; a copy in an operation."""
        check_post(post)
        if post.source.type == "copy":
            return self._start_copy(pool, project, post)
        record = VolumeRecord(
            post.name,
            pool,
            "custom",
            project,
            post.description,
            self._new_config(pool, post),
            post.content_type or FILESYSTEM,
            now(),
        )
        check_config_of(self._pools.record(pool).driver, record)
        self._check(record)
        steps = ("storage.note_volume", "storage.create_volume")
        await self._make(record, f'create storage volume "{post.name}" on pool "{pool}"', steps, {})
        return None

    def _new_config(self, pool: str, post: StorageVolumesPost) -> dict[str, str]:
        config = without_empty(post.config)
        default = self._pools.record(pool).config.get("volume.size", "")
        if post.content_type == BLOCK:
            default = default or DEFAULT_BLOCK_SIZE
        if default:
            config.setdefault("size", default)
        return config

    async def import_iso(self, pool: str, project: str, name: str, chunks: AsyncIterator[bytes]) -> Operation:
        """An ISO image as the client sends it; it is there when the operation is done."""
        check_volume_name(name)
        record = VolumeRecord(name, pool, "custom", project, content_type=ISO, created_at=now())
        if self._records.get(*path_of(record)) is not None:
            raise Conflict("Volume by that name already exists")
        file = self._pools.spool(pool) / f".creating-{secrets.token_hex(8)}"
        try:
            await _receive(file, chunks)
        except BaseException:
            await asyncio.to_thread(file.unlink, missing_ok=True)
            raise

        async def run(_operation: Operation) -> None:
            steps = ("storage.note_volume", "storage.import_volume")
            try:
                await self._make(record, f'import storage volume "{name}" on pool "{pool}"', steps, {"file": str(file)})
            finally:
                await asyncio.to_thread(file.unlink, missing_ok=True)

        return self._start("Importing custom volume", record, run)

    async def _make(self, record: VolumeRecord, description: str, steps: tuple[str, ...], more: Args) -> None:
        async with self._locks.hold(lock_of(record), "create"):
            if self._records.get(*path_of(record)) is not None:
                raise Conflict("Volume by that name already exists")
            args = {"record": msgspec.to_builtins(record), **more}
            await self._journal.run(Plan(description, tuple(Step(action, args) for action in steps)))
        self.event("storage-volume-created", record)

    def _start(self, description: str, record: VolumeRecord, run: Any) -> Operation:
        resources = {"storage_volumes": [volume_url(record)]}
        return self._operations.start("task", description, record.project, resources, run)

    # --- copying and moving ---

    def _start_copy(self, pool: str, project: str, post: StorageVolumesPost) -> Operation:
        source = post.source
        name, _, snapshot = source.name.partition("/")
        where = (source.pool or pool, "custom", source.project or project, name)
        old = self.custom(*where, tried="copying").value
        self._pools.record(pool)
        config = without_empty(post.config) or dict(old.config)
        new = msgspec.structs.replace(
            old,
            name=post.name,
            pool=pool,
            project=project,
            config=config,
            description=post.description or old.description,
            created_at=now(),
        )
        check_config_of(self._pools.record(pool).driver, new)
        self._check(new)
        snapshots = [] if source.volume_only or snapshot else self._snapshot_names(old)
        exists = self._records.get(*path_of(new)) is not None
        if exists and not source.refresh:
            raise Conflict("Volume by that name already exists")
        run = self._refresh if exists else self._copy
        return self._start("Copying storage volume", new, lambda _operation: run(old, new, snapshot or None, snapshots))

    def _snapshot_names(self, record: VolumeRecord) -> list[str]:
        return [split_snapshot(found.name)[1] for found in self._pools.list_snapshots(volume_ref(record))]

    async def _copy(self, old: VolumeRecord, new: VolumeRecord, snapshot: str | None, snapshots: list[str]) -> None:
        async with self._locks.hold_all([lock_of(old), lock_of(new)], "copy"):
            if self._records.get(*path_of(new)) is not None:
                raise Conflict("Volume by that name already exists")
            args = _copy_args(old, new, snapshot, snapshots)
            steps = (Step("storage.note_volume", args), Step("storage.copy_volume", args))
            await self._journal.run(Plan(f'copy storage volume "{old.name}" to "{new.name}"', steps))
        self.event("storage-volume-created", new)

    async def _refresh(self, old: VolumeRecord, new: VolumeRecord, snapshot: str | None, snapshots: list[str]) -> None:
        async with self._locks.hold_all([lock_of(old), lock_of(new)], "refresh"):
            self.check_idle(new, "refreshing")
            step = Step("storage.refresh_volume", _copy_args(old, new, snapshot, snapshots))
            plan = Plan(f'refresh storage volume "{new.name}" from "{old.name}"', (step,), on_crash="finish")
            await self._journal.run(plan)
        self.event("storage-volume-updated", new)

    async def rename(self, pool: str, kind: str, project: str, name: str, post: StorageVolumePost) -> Operation | None:
        """At once within a pool and project; a move to others in an operation. Devices that attach it follow."""
        check_move(post)
        old = self.custom(pool, kind, project, name, tried="renaming").value
        new = msgspec.structs.replace(old, name=post.name, pool=post.pool or pool, project=post.project or project)
        self._pools.record(new.pool)
        self._check_free(old, new)
        if project != new.project:
            self._check(new)
        if (new.pool, new.project) != (old.pool, old.project):
            return self._start("Moving storage volume", old, lambda _operation: self._move(old, new))
        async with self._locks.hold_all([lock_of(old), lock_of(new)], "rename"):
            self._check_free(old, new)
            names = [storage_name(project, each, "custom") for each in (name, post.name)]
            args = {"pool": pool, "old": names[0], "new": names[1]}
            steps = (Step("storage.rename_volume", args), Step("storage.rewrite_users", _pair(old, new)))
            await self._journal.run(Plan(f'rename storage volume "{name}" on pool "{pool}"', steps))
        self.event("storage-volume-renamed", new, {"old_name": name})
        return None

    async def _move(self, old: VolumeRecord, new: VolumeRecord) -> None:
        """Copied whole, then its users follow, and only then the old one goes: in a plan of its own, as from there on
        there is no way back."""
        async with self._locks.hold_all([lock_of(old), lock_of(new)], "move"):
            self._check_free(old, new)
            args = _copy_args(old, new, None, self._snapshot_names(old))
            steps = (
                Step("storage.note_volume", args),
                Step("storage.copy_volume", args),
                Step("storage.rewrite_users", _pair(old, new)),
            )
            await self._journal.run(Plan(f'move storage volume "{old.name}" to pool "{new.pool}"', steps))
            await self._remove(old)
        self.event("storage-volume-renamed", new, {"old_name": old.name, "old_pool": old.pool})

    def _check_free(self, old: VolumeRecord, new: VolumeRecord) -> None:
        """Whether `old` may become `new`."""
        self.document(old.pool, old.kind, old.project, old.name)
        self.check_idle(old, "renaming")
        if old.project != new.project and self.used_by(old):
            raise BadRequest("The storage volume is still in use")
        if self._records.get(*path_of(new)) is not None:
            raise Conflict("Volume by that name already exists")

    def check_idle(self, record: VolumeRecord, tried: str) -> None:
        if self._running(record):
            what = f'Failed {tried} storage volume "{record.name}"'
            raise BadRequest(f"{what}: Volume is still in use by running instances")

    # --- editing and deleting ---

    async def update(self, pool: str, kind: str, project: str, name: str, put: StorageVolumePut) -> None:
        document = self.document(pool, kind, project, name)
        async with self._locks.hold(lock_of(document.value), "update"):
            document = self.document(pool, kind, project, name)
            old = document.value
            config = without_empty(put.config)
            raise_faults(self._update_faults(old, config))
            new = msgspec.structs.replace(old, config=config, description=put.description)
            self._check(new)
            if config.get("size") != old.config.get("size"):
                await self._resize(old, parse_size(config.get("size", "")))
            await self._write(new, document.revision)
        self.event("storage-volume-updated", new)

    async def _resize(self, record: VolumeRecord, size_bytes: int) -> None:
        if record.content_type == BLOCK:
            await self._lengthen(record, size_bytes)
        else:
            await self._pools.resize(volume_ref(record), size_bytes)

    async def _lengthen(self, record: VolumeRecord, size_bytes: int) -> None:
        file = file_of(await self._pools.data_directory(volume_ref(record)), record.content_type)
        if file is not None:
            await asyncio.to_thread(_lengthen, file, size_bytes)

    def _update_faults(self, old: VolumeRecord, config: dict[str, str]) -> list[Fault]:
        if old.kind == "custom":
            return config_faults(self._pools.record(old.pool).driver, config, old.content_type, old)
        if config != old.config:
            return [Fault("config", f"only the description of a volume of type {old.kind} can be edited")]
        return []

    async def delete(self, pool: str, kind: str, project: str, name: str) -> None:
        """With its snapshots. An image's volume is what the pool keeps of it, and may go any time (extension:
        storage_images_delete)."""
        if kind == "image":
            record = self.document(pool, kind, DEFAULT_PROJECT, name).value
            await self._pools.drop_image(pool, name)
            self.event("storage-volume-deleted", record)
            return
        record = self.custom(pool, kind, project, name, tried="deleting").value
        async with self._locks.hold(lock_of(record), "delete"):
            record = self.custom(pool, kind, project, name, tried="deleting").value
            if self.used_by(record):
                raise BadRequest("The storage volume is still in use")
            await self._remove(record)
        self.event("storage-volume-deleted", record)

    async def _remove(self, record: VolumeRecord) -> None:
        step = Step("storage.delete_volume", {"record": msgspec.to_builtins(record)})
        description = f'delete storage volume "{record.name}" on pool "{record.pool}"'
        await self._journal.run(Plan(description, (step,), on_crash="finish"))

    def event(self, action: str, record: VolumeRecord, context: Args | None = None) -> None:
        details = {"type": record.kind, **(context or {})}
        self._events.lifecycle(action, volume_url(record), record.project, details)

    # --- journalled steps ---

    async def _note(self, args: Args, _progress: Progress) -> None:
        record = _record(args)
        known = self._records.get(*path_of(record))
        await self._write(record, 0 if known is None else known.revision)

    async def _write(self, record: VolumeRecord, revision: int) -> None:
        """As far as the project's limits allow; of an instance's volume the instance counts."""
        ops = [self._records.put(path_of(record), record)]
        conditions = [self._records.unchanged(path_of(record), revision)]
        if record.kind == "custom":
            await self._projects.write([record.project], ops, conditions, lambda: self._check(record))
        else:
            await self._records.txn(ops, conditions)

    async def _forget(self, args: Args) -> None:
        await self._records.delete(path_of(_record(args)))

    async def _create_volume(self, args: Args, _progress: Progress) -> None:
        record = _record(args)
        ref, size_bytes = volume_ref(record), parse_size(record.config.get("size", ""))
        limit_bytes = size_bytes if record.content_type == FILESYSTEM else 0
        await self._pools.driver(ref.pool).create_volume(ref.kind, ref.name, size_bytes=limit_bytes)
        await self._lengthen(record, size_bytes)

    async def _import_volume(self, args: Args, _progress: Progress) -> None:
        record, file = _record(args), Path(args["file"])

        async def fill(target: Path) -> None:
            await asyncio.to_thread(file.rename, file_of(target, record.content_type) or target)

        ref = volume_ref(record)
        await self._pools.driver(ref.pool).create_from_tree(ref.kind, ref.name, fill, size_bytes=0)

    async def _uncreate_volume(self, args: Args) -> None:
        await self._pools.delete_volume(volume_ref(_record(args)))

    async def _delete_volume(self, args: Args, _progress: Progress) -> None:
        await self._uncreate_volume(args)

    async def _copy_volume(self, args: Args, _progress: Progress) -> None:
        old, new = _record(args, "old"), _record(args)
        size_bytes = parse_size(new.config.get("size", ""))
        await self._pools.copy(
            volume_ref(old),
            volume_ref(new),
            new.project,
            snapshot=args["snapshot"],
            snapshots=args["snapshots"],
            size_bytes=size_bytes if new.content_type == FILESYSTEM else 0,
            live=bool(self._running(old)),
        )
        if new.content_type == BLOCK:
            await self._lengthen(new, size_bytes)

    async def _refresh_volume(self, args: Args, _progress: Progress) -> None:
        old, new = _record(args, "old"), _record(args)
        await self._pools.refresh(
            volume_ref(old),
            volume_ref(new),
            new.project,
            snapshot=args["snapshot"],
            snapshots=args["snapshots"],
            live=bool(self._running(old)),
        )

    async def _rename_volume(self, args: Args, _progress: Progress) -> None:
        await self._pools.rename_volume(VolumeRef(args["pool"], "custom", args["old"]), args["new"])

    async def _rename_volume_back(self, args: Args) -> None:
        await self._pools.rename_volume(VolumeRef(args["pool"], "custom", args["new"]), args["old"])

    async def _rewrite_users(self, args: Args, _progress: Progress) -> None:
        await self._rewrite(_record(args, "old"), _record(args))

    async def _rewrite_users_back(self, args: Args) -> None:
        await self._rewrite(_record(args), _record(args, "old"))


def _record(args: Args, name: str = "record") -> VolumeRecord:
    return msgspec.convert(args[name], VolumeRecord)


def _pair(old: VolumeRecord, new: VolumeRecord) -> Args:
    return {"old": msgspec.to_builtins(old), "record": msgspec.to_builtins(new)}


def _copy_args(old: VolumeRecord, new: VolumeRecord, snapshot: str | None, snapshots: list[str]) -> Args:
    return {**_pair(old, new), "snapshot": snapshot, "snapshots": snapshots}


async def _receive(file: Path, chunks: AsyncIterator[bytes]) -> None:
    fd = await asyncio.to_thread(os.open, file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        async for chunk in chunks:
            await asyncio.to_thread(_write, fd, chunk)
    finally:
        await asyncio.to_thread(os.close, fd)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _lengthen(file: Path, size_bytes: int) -> None:
    """To at least this size; blocks come as they are written."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size < size_bytes:
            os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


def path_of(record: VolumeRecord) -> tuple[str, str, str, str]:
    return record.pool, record.kind, record.project, record.name


def lock_of(record: VolumeRecord) -> str:
    return f"storage-volume/{record.pool}/{record.kind}/{record.project}/{record.name}"
