# SPDX-License-Identifier: Apache-2.0
"""`/1.0/storage-pools/POOL/volumes`: every volume listed, custom ones made, edited, renamed and deleted."""

from collections.abc import Callable
from typing import Any, get_args

import msgspec

from flexd.api.errors import BadRequest, Conflict, Fault, NotSupported, raise_faults
from flexd.api.keys import Key, check_config
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
from flexd.storage import drivers
from flexd.storage.contract import VolumeKind, VolumeNotFound, VolumeRecord, VolumeRef
from flexd.storage.names import check_volume_name, owner_url, storage_name, volume_ref, volume_url
from flexd.storage.pools import Pools
from flexd.store.documents import Document, Documents, Mirror

VolumeUsedBy = Callable[[str, str, str], list[str]]

VOLUME_KEYS = (
    Key(
        "security.shifted",
        kind="bool",
        description="Whether instances with different id maps may share the volume; these drivers always allow it",
    ),
    Key("user.*", description="Free-form"),
)


def volume_keys(driver: str) -> tuple[Key, ...]:
    """Rows of a custom volume's configuration."""
    return (*drivers.load(driver).VOLUME_KEYS, *VOLUME_KEYS)


class Volumes:
    """One per daemon. Pools owns what instances need; this is for people."""

    def __init__(self, *, pools: Pools, mirror: Mirror, journal: Journal, locks: Locks, events: Events) -> None:
        self._pools = pools
        self._journal = journal
        self._locks = locks
        self._events = events
        self._records = Documents(mirror, "storage-volumes", VolumeRecord)
        self._used_by: VolumeUsedBy = lambda _pool, _project, _name: []
        journal.register("storage.note_volume", self._note, self._forget)
        journal.register("storage.create_volume", self._create_volume, self._uncreate_volume)
        journal.register("storage.delete_volume", self._delete_volume)
        journal.register("storage.rename_volume", self._rename_volume, self._rename_volume_back)

    def set_used_by(self, used_by: VolumeUsedBy) -> None:
        """Who uses a custom volume (pool, project, name), as URLs of instances and profiles."""
        self._used_by = used_by

    # --- reading ---

    def show_all(self, pool: str, project: str, kind: str | None = None) -> list[StorageVolume]:
        """The volumes of a project on a pool; images belong to all projects."""
        self._pools.record(pool)
        path = (pool,) if kind is None else (pool, check_kind(kind))
        records = [document.value for document in self._records.list(*path)]
        return [self._show(record) for record in records if record.project == project or record.kind == "image"]

    def show(self, pool: str, kind: str, project: str, name: str) -> StorageVolume:
        return self._show(self._document(pool, kind, project, name).value)

    async def state(self, pool: str, kind: str, project: str, name: str) -> StorageVolumeState:
        """Usage; a volume whose pool keeps no account is walked."""
        record = self._document(pool, kind, project, name).value
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
            name=record.name,
            project=record.project,
            type=record.kind,
            used_by=self.used_by(record),
        )

    def used_by(self, record: VolumeRecord) -> list[str]:
        if record.kind == "custom":
            return sorted(self._used_by(record.pool, record.project, record.name))
        return [owner_url(record)]

    def _document(self, pool: str, kind: str, project: str, name: str) -> Document[VolumeRecord]:
        self._pools.record(pool)
        document = self._records.get(pool, check_kind(kind), project, name)
        if document is None:
            raise VolumeNotFound("Storage volume not found")
        return document

    def _custom(self, pool: str, kind: str, project: str, name: str, *, tried: str) -> Document[VolumeRecord]:
        document = self._document(pool, kind, project, name)
        if kind != "custom":
            raise BadRequest(f'Failed {tried} storage volume "{name}": volumes of type {kind} belong to their owner')
        return document

    # --- writing ---

    async def create(self, pool: str, project: str, post: StorageVolumesPost) -> None:
        driver = self._pools.record(pool).driver
        _check_post(post)
        config = {key: value for key, value in post.config.items() if value}
        default = self._pools.record(pool).config.get("volume.size")
        if default:
            config.setdefault("size", default)
        raise_faults(check_config(config, volume_keys(driver)))
        record = VolumeRecord(post.name, pool, "custom", project, post.description, config, created_at=now())
        async with self._locks.hold(_lock(record), "create"):
            if self._records.get(*_path(record)) is not None:
                raise Conflict("Volume by that name already exists")
            args = {"record": msgspec.to_builtins(record)}
            steps = (Step("storage.note_volume", args), Step("storage.create_volume", args))
            await self._journal.run(Plan(f'create storage volume "{post.name}" on pool "{pool}"', steps))
        self._event("storage-volume-created", record)

    async def update(self, pool: str, kind: str, project: str, name: str, put: StorageVolumePut) -> None:
        if put.restore:
            raise NotSupported(f'Failed restoring storage volume "{name}": snapshots of volumes are not supported')
        document = self._document(pool, kind, project, name)
        async with self._locks.hold(_lock(document.value), "update"):
            document = self._document(pool, kind, project, name)
            old = document.value
            config = {key: value for key, value in put.config.items() if value}
            raise_faults(self._update_faults(old, config))
            if config.get("size") != old.config.get("size"):
                await self._pools.resize(volume_ref(old), parse_size(config.get("size", "")))
            new = msgspec.structs.replace(old, config=config, description=put.description)
            await self._records.update(_path(new), new, document.revision)
        self._event("storage-volume-updated", new)

    async def rename(self, pool: str, kind: str, project: str, name: str, post: StorageVolumePost) -> None:
        old = self._custom(pool, kind, project, name, tried="renaming").value
        if post.migration or post.pool not in ("", pool) or post.project not in ("", project):
            raise NotSupported(f'Failed moving storage volume "{name}": only a rename within its pool is supported')
        check_volume_name(post.name)
        new = msgspec.structs.replace(old, name=post.name)
        async with self._locks.hold_all([_lock(old), _lock(new)], "rename"):
            self._check_unused(self._custom(pool, kind, project, name, tried="renaming").value)
            if self._records.get(*_path(new)) is not None:
                raise Conflict("Volume by that name already exists")
            args = {"pool": pool, "old": storage_name(project, name), "new": storage_name(project, post.name)}
            plan = Plan(f'rename storage volume "{name}" on pool "{pool}"', (Step("storage.rename_volume", args),))
            await self._journal.run(plan)
        self._event("storage-volume-renamed", new, {"old_name": name})

    async def delete(self, pool: str, kind: str, project: str, name: str) -> None:
        record = self._custom(pool, kind, project, name, tried="deleting").value
        async with self._locks.hold(_lock(record), "delete"):
            self._check_unused(self._custom(pool, kind, project, name, tried="deleting").value)
            step = Step("storage.delete_volume", {"record": msgspec.to_builtins(record)})
            plan = Plan(f'delete storage volume "{name}" on pool "{pool}"', (step,), on_crash="finish")
            await self._journal.run(plan)
        self._event("storage-volume-deleted", record)

    def _check_unused(self, record: VolumeRecord) -> None:
        if self.used_by(record):
            raise BadRequest("The storage volume is still in use")

    def _update_faults(self, old: VolumeRecord, config: dict[str, str]) -> list[Fault]:
        if old.kind == "custom":
            return check_config(config, volume_keys(self._pools.record(old.pool).driver))
        if config != old.config:
            return [Fault("config", f"only the description of a volume of type {old.kind} can be edited")]
        return []

    def _event(self, action: str, record: VolumeRecord, context: dict[str, Any] | None = None) -> None:
        details = {"type": record.kind, **(context or {})}
        self._events.lifecycle(action, volume_url(record), record.project, details)

    # --- journalled steps ---

    async def _note(self, args: dict[str, Any], _progress: Progress) -> None:
        record = msgspec.convert(args["record"], VolumeRecord)
        await self._records.txn([self._records.put(_path(record), record)])

    async def _forget(self, args: dict[str, Any]) -> None:
        await self._records.delete(_path(msgspec.convert(args["record"], VolumeRecord)))

    async def _create_volume(self, args: dict[str, Any], _progress: Progress) -> None:
        record = msgspec.convert(args["record"], VolumeRecord)
        ref, size_bytes = volume_ref(record), parse_size(record.config.get("size", ""))
        await self._pools.driver(ref.pool).create_volume(ref.kind, ref.name, size_bytes=size_bytes)

    async def _uncreate_volume(self, args: dict[str, Any]) -> None:
        await self._pools.delete_volume(volume_ref(msgspec.convert(args["record"], VolumeRecord)))

    async def _delete_volume(self, args: dict[str, Any], _progress: Progress) -> None:
        await self._uncreate_volume(args)

    async def _rename_volume(self, args: dict[str, Any], _progress: Progress) -> None:
        await self._pools.rename_volume(VolumeRef(args["pool"], "custom", args["old"]), args["new"])

    async def _rename_volume_back(self, args: dict[str, Any]) -> None:
        await self._pools.rename_volume(VolumeRef(args["pool"], "custom", args["new"]), args["old"])


def check_kind(kind: str) -> VolumeKind:
    for known in get_args(VolumeKind):
        if kind == known:
            found: VolumeKind = known
            return found
    raise BadRequest(f'Invalid storage volume type "{kind}"')


def _check_post(post: StorageVolumesPost) -> None:
    check_volume_name(post.name)
    if post.type != "custom":
        raise BadRequest(f"Currently not allowed to create storage volumes of type {post.type or 'none'}")
    if post.content_type not in ("", "filesystem"):
        raise BadRequest(
            f'Failed creating storage volume "{post.name}": content type "{post.content_type}" is not '
            'supported (expected "filesystem")'
        )
    if post.source.type not in ("", "none"):
        raise NotSupported(
            f'Failed creating storage volume "{post.name}": a source of type "{post.source.type}" is not supported'
        )


def _path(record: VolumeRecord) -> tuple[str, str, str, str]:
    return record.pool, record.kind, record.project, record.name


def _lock(record: VolumeRecord) -> str:
    return f"storage-volume/{record.pool}/{record.kind}/{record.project}/{record.name}"
