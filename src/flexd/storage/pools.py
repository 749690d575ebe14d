# SPDX-License-Identifier: Apache-2.0
"""Storage pools, and the instance volumes on them.

Reads are from memory. Instance volumes are made and removed by the instances package in journalled steps, so every
method for them is idempotent and keeps the volume's document along with what is on disk.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from flexd.api.errors import BadRequest, Conflict, Fault, FlexdError, raise_faults
from flexd.api.idmap import IdMap
from flexd.api.keys import Key, check_config
from flexd.api.resources import ResourcesStoragePool, ResourcesStoragePoolInodes, ResourcesStoragePoolSpace
from flexd.api.server import ServerStorageDriverInfo
from flexd.api.storage_pool import StoragePool, StoragePoolPut, StoragePoolsPost
from flexd.api.times import ZERO_TIME, now
from flexd.api.units import parse_size
from flexd.host.contract import Host
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.projects.record import DEFAULT_PROJECT
from flexd.storage import copies, drivers
from flexd.storage.contract import (
    Driver,
    PoolNotFound,
    PoolRecord,
    PoolUnavailable,
    Stream,
    Unpack,
    VolumeRecord,
    VolumeRef,
)
from flexd.storage.copies import Moment, Place
from flexd.storage.custom import FILESYSTEM, without_empty
from flexd.storage.names import check_pool_name, owner_url, pool_url, split_snapshot, storage_name, volume_ref
from flexd.store.contract import Delete, Put
from flexd.store.documents import Document, Documents, Mirror

log = logging.getLogger(__name__)

UsedBy = Callable[[str], list[str]]

# The folder of the documents of custom volumes' backups: they go, and are renamed, with their volume.
BACKUPS = "volume-backups"

POOL_KEYS = (Key("user.*", description="Free-form"),)
_FIXED = ("source", "volatile.")


def pool_keys(driver: str) -> tuple[Key, ...]:
    """Rows of a pool's configuration; `volume.*` are defaults for new volumes."""
    found = drivers.load(driver)
    defaults = (
        msgspec.structs.replace(key, name=f"volume.{key.name}", required=False, default="") for key in found.VOLUME_KEYS
    )
    return (*found.KEYS, *POOL_KEYS, *defaults)


class Pools:
    """One per daemon; `start` before use."""

    def __init__(
        self, *, host: Host, mirror: Mirror, journal: Journal, locks: Locks, events: Events, directory: Path
    ) -> None:
        self._host = host
        self._journal = journal
        self._locks = locks
        self._events = events
        self._directory = directory
        self._records = Documents(mirror, "storage-pools", PoolRecord)
        self._volumes = Documents(mirror, "storage-volumes", VolumeRecord)
        self._backups = Documents(mirror, BACKUPS, msgspec.Raw)
        self._drivers: dict[str, Driver] = {}
        self._faults: dict[str, str] = {}
        self._supported: list[ServerStorageDriverInfo] | None = None
        self._used_by: UsedBy = lambda _name: []
        journal.register("storage.create_pool", self._create_pool, self._uncreate_pool)
        journal.register("storage.delete_pool", self._delete_pool)

    def set_used_by(self, used_by: UsedBy) -> None:
        """Who uses a pool besides its volumes (profiles, instances), as URLs."""
        self._used_by = used_by

    async def start(self) -> None:
        """Mount every pool. One that fails is shown as unavailable, with the reason in the log; the rest works."""
        await asyncio.gather(*(self._open(document.value) for document in self._records.list()))

    async def close(self) -> None:
        await asyncio.gather(*(driver.close() for driver in self._drivers.values()))

    async def _open(self, record: PoolRecord) -> None:
        driver = self._make_driver(record.name, record.driver, record.config)
        self._drivers[record.name] = driver
        try:
            fault = await driver.probe()
            if fault is None:
                await driver.mount_pool()
        except (FlexdError, OSError) as error:
            fault = str(error)
        if fault is not None:
            self._faults[record.name] = fault
            log.error('storage pool "%s" is unavailable: %s', record.name, fault)

    # --- reading ---

    def names(self) -> list[str]:
        return [document.value.name for document in self._records.list()]

    def record(self, name: str) -> PoolRecord:
        return self._document(name).value

    def show(self, name: str) -> StoragePool:
        record = self.record(name)
        return StoragePool(
            config=dict(record.config),
            description=record.description,
            driver=record.driver,
            locations=["none"],  # LXD's word for a daemon that is in no cluster
            name=record.name,
            status="Unavailable" if name in self._faults else "Created",
            used_by=self.used_by(name),
        )

    def show_all(self) -> list[StoragePool]:
        return [self.show(name) for name in self.names()]

    def used_by(self, name: str) -> list[str]:
        volumes = {owner_url(document.value) for document in self._volumes.list(name)}
        return sorted(volumes | set(self._used_by(name)))

    async def resources(self, name: str) -> ResourcesStoragePool:
        self.driver(name)
        usage = await self._host.files.filesystem(self._directory / name)
        return ResourcesStoragePool(
            inodes=ResourcesStoragePoolInodes(total=usage.inodes_total, used=usage.inodes_used),
            space=ResourcesStoragePoolSpace(total=usage.total_bytes, used=usage.used_bytes),
        )

    async def drivers(self) -> list[ServerStorageDriverInfo]:
        """The drivers that work on this host, found out once."""
        if self._supported is None:
            self._supported = await self._probe_drivers()
        return self._supported

    async def _probe_drivers(self) -> list[ServerStorageDriverInfo]:
        found = []
        for name in drivers.names():
            driver = self._make_driver("", name, {})
            if await driver.probe() is None:
                found.append(ServerStorageDriverInfo(Name=name, Remote=False, Version=driver.version))
        return found

    def fault(self, name: str) -> str | None:
        """Why a pool cannot be used now; None if it can."""
        return self._faults.get(name)

    def spool(self, name: str) -> Path:
        """Where a file may be received that becomes part of a volume: names `.creating-*` go at the next start."""
        self.driver(name)
        return self._directory / name

    def driver(self, name: str) -> Driver:
        """The driver of a pool that can be used now."""
        self._document(name)
        fault = self._faults.get(name)
        if fault is not None:
            raise PoolUnavailable(f'Storage pool "{name}" is unavailable: {fault}')
        return self._drivers[name]

    def _document(self, name: str) -> Document[PoolRecord]:
        document = self._records.get(name)
        if document is None:
            raise PoolNotFound("Storage pool not found")
        return document

    def _make_driver(self, name: str, driver: str, config: Mapping[str, str]) -> Driver:
        return drivers.load(driver)(host=self._host, pool=name, directory=self._directory / name, config=config)

    # --- pools ---

    async def create(self, post: StoragePoolsPost) -> None:
        check_pool_name(post.name)
        raise_faults(self._new_pool_faults(post))
        driver = self._make_driver(post.name, post.driver, post.config)
        fault = await driver.probe()
        if fault is not None:
            raise BadRequest(f'Failed creating storage pool "{post.name}": {fault}')
        async with self._locks.hold(f"storage-pool/{post.name}", "create"):
            if self._records.get(post.name) is not None:
                raise Conflict(f'Storage pool "{post.name}" already exists')
            await driver.check_new_pool()
            record = PoolRecord(post.name, post.driver, post.description, without_empty(post.config), now())
            step = Step("storage.create_pool", {"record": msgspec.to_builtins(record)})
            await self._journal.run(Plan(f'create storage pool "{post.name}"', (step,)))
        self._events.lifecycle("storage-pool-created", pool_url(post.name), DEFAULT_PROJECT, {"driver": post.driver})

    async def update(self, name: str, put: StoragePoolPut) -> None:
        """Replace description and configuration; what is fixed stays where it is not given."""
        async with self._locks.hold(f"storage-pool/{name}", "update"):
            document = self._document(name)
            old = document.value
            kept = {key: old.config[key] for key in old.config if key.startswith(_FIXED)}
            config = without_empty({**kept, **put.config})
            faults = check_config(config, pool_keys(old.driver))
            raise_faults([*faults, *_fixed_faults(old.config, config)])
            new = msgspec.structs.replace(old, config=config, description=put.description)
            await self._records.update((name,), new, document.revision)
        self._events.lifecycle("storage-pool-updated", pool_url(name), DEFAULT_PROJECT)

    async def delete(self, name: str) -> None:
        async with self._locks.hold(f"storage-pool/{name}", "delete"):
            record = self.record(name)
            # Unpacked images are a cache that goes with the pool.
            if any(not url.startswith("/1.0/images/") for url in self.used_by(name)):
                raise BadRequest("The storage pool is currently in use")
            step = Step("storage.delete_pool", {"record": msgspec.to_builtins(record)})
            await self._journal.run(Plan(f'delete storage pool "{name}"', (step,), on_crash="finish"))
        self._events.lifecycle("storage-pool-deleted", pool_url(name), DEFAULT_PROJECT)

    def _new_pool_faults(self, post: StoragePoolsPost) -> list[Fault]:
        if not post.driver:
            return [Fault("driver", "No driver provided")]
        faults = check_config(post.config, pool_keys(post.driver))
        given = [key for key, value in post.config.items() if key.startswith("volatile.") and value]
        return faults + [Fault(f"config.{key}", "volatile keys are set by the daemon") for key in given]

    async def _create_pool(self, args: dict[str, Any], _progress: Progress) -> None:
        record = msgspec.convert(args["record"], PoolRecord)
        driver = self._make_driver(record.name, record.driver, record.config)
        filled = await driver.create_pool()
        full = msgspec.structs.replace(record, config={**record.config, **filled})
        self._faults.pop(record.name, None)
        self._drivers[record.name] = self._make_driver(record.name, record.driver, full.config)
        await self._records.txn([self._records.put((record.name,), full)])

    async def _uncreate_pool(self, args: dict[str, Any]) -> None:
        record = msgspec.convert(args["record"], PoolRecord)
        await self._records.delete((record.name,))
        self._drivers.pop(record.name, None)
        await self._make_driver(record.name, record.driver, record.config).delete_pool()

    async def _delete_pool(self, args: dict[str, Any], _progress: Progress) -> None:
        record = msgspec.convert(args["record"], PoolRecord)
        driver = self._drivers.get(record.name) or self._make_driver(record.name, record.driver, record.config)
        await driver.delete_pool()
        for image in self._volumes.list(record.name, "image"):
            await self._volumes.delete(image.path)
        await self._records.delete((record.name,))
        self._drivers.pop(record.name, None)
        self._faults.pop(record.name, None)

    # --- instance volumes ---

    async def create_instance(
        self, ref: VolumeRef, project: str, *, image: tuple[str, Unpack] | None, size_bytes: int
    ) -> None:
        """The root volume of an instance: a copy of the image (fingerprint, how to unpack it), or empty."""
        driver = self.driver(ref.pool)
        size_bytes = size_bytes or self.default_size(ref.pool)
        if image is None:
            await driver.create_volume(ref.kind, ref.name, size_bytes=size_bytes)
        else:
            fingerprint, unpack = image
            await driver.create_from_image(ref.kind, ref.name, fingerprint, unpack, size_bytes=size_bytes)
            if driver.optimized_images:
                await self._note(VolumeRecord(fingerprint, ref.pool, "image", created_at=now()))
        await self._note(VolumeRecord(_name(ref, project), ref.pool, ref.kind, project, created_at=now()))

    async def create_from_tree(self, ref: VolumeRef, project: str, fill: Unpack, *, size_bytes: int) -> None:
        """A volume whose files the caller writes into an empty directory, with ids as an image has them (a backup)."""
        size_bytes = size_bytes or self.default_size(ref.pool)
        await self.driver(ref.pool).create_from_tree(ref.kind, ref.name, fill, size_bytes=size_bytes)
        await self._note(VolumeRecord(_name(ref, project), ref.pool, ref.kind, project, created_at=now()))

    async def create_from_streams(
        self,
        ref: VolumeRef,
        project: str,
        place: Path,
        streams: Sequence[Stream],
        *,
        size_bytes: int,
        owners: Mapping[str, IdMap],
    ) -> None:
        """A volume of what a reception of its pool took (`Streams.create_from_streams`); the documents of its snapshots
        are made by `create_snapshot`, which finds them there."""
        own = self.driver(ref.pool).streams
        assert own is not None  # they were received there
        size_bytes = size_bytes or self.default_size(ref.pool)
        await own.create_from_streams(ref.kind, ref.name, place, streams, size_bytes=size_bytes, owners=owners)
        await self._note(VolumeRecord(_name(ref, project), ref.pool, ref.kind, project, created_at=now()))

    async def refresh_from_tree(self, ref: VolumeRef, fill: Unpack) -> None:
        """Make a volume, not in use, equal to what the caller writes into an empty directory; what did not change it
        goes on sharing with its snapshots."""
        driver = self.driver(ref.pool)
        scratch = scratch_of(ref).name
        try:
            await driver.create_from_tree(ref.kind, scratch, fill, size_bytes=0)
            # An archive's times may be whole seconds, within which a file can change and keep its size.
            view = partial(driver.view, ref.kind, scratch)
            await driver.refresh_volume(ref.kind, ref.name, view, by_content=True)
        finally:
            await driver.delete_volume(ref.kind, scratch)

    async def delete_volume(self, ref: VolumeRef) -> None:
        """Remove a volume, its snapshots and their documents; a pool that is gone has none."""
        if self._records.get(ref.pool) is None:
            return
        await self.driver(ref.pool).delete_volume(ref.kind, ref.name)
        found = [self._volumes.delete_op(document.path) for document in (*self._of(ref), *self._snapshots_of(ref))]
        for volume in self._of(ref):
            found += [self._backups.delete_op(backup.path) for backup in self._backups_of(volume.value)]
        await self._volumes.txn(found)

    async def rename_volume(self, ref: VolumeRef, new_name: str, project: str | None = None) -> None:
        """`new_name` is a storage name too, of the same project, or of `project`, to which it moves."""
        await self.driver(ref.pool).rename_volume(ref.kind, ref.name, new_name)
        target = VolumeRef(ref.pool, ref.kind, new_name)
        for volume in self._of(ref):
            owner = project or volume.value.project
            await self._rename_backups(volume.value, owner, _name(target, owner))
        for document in (*self._of(ref), *self._snapshots_of(ref)):
            owner, snapshot = project or document.value.project, split_snapshot(document.value.name)[1]
            name = _name(target, owner)
            await self._rename_document(document, f"{name}@{snapshot}" if snapshot else name, owner)

    async def resize(self, ref: VolumeRef, size_bytes: int) -> None:
        await self.driver(ref.pool).resize_volume(ref.kind, ref.name, size_bytes)

    async def data_directory(self, ref: VolumeRef) -> Path:
        """A custom volume's own directory, whatever it holds."""
        return await self.driver(ref.pool).mount_volume("custom", ref.name, IdMap())

    async def usage(self, ref: VolumeRef) -> int | None:
        """Bytes used where the pool knows without walking the volume; None where it doesn't."""
        return await self.driver(ref.pool).volume_usage(ref.kind, ref.name)

    async def disk_usage(self, ref: VolumeRef) -> int:
        """Bytes used, by walking the volume."""
        return await self._host.files.disk_usage(self.driver(ref.pool).volume_path(ref.kind, ref.name))

    async def mount(self, ref: VolumeRef, idmap: IdMap) -> Path:
        """The container's root, or a custom volume's directory (its map is always the empty one)."""
        if ref.kind == "custom" and self.content_type(ref) not in (None, FILESYSTEM):
            what = f'Failed attaching storage volume "{ref.name}"'
            raise BadRequest(f"{what}: Block volumes cannot be used on containers")
        return await self.driver(ref.pool).mount_volume(ref.kind, ref.name, idmap)

    async def rewrites_owners(self, ref: VolumeRef, idmap: IdMap) -> bool:
        """Whether mounting it under this map would change owners on disk (security.protection.shift)."""
        return await self.driver(ref.pool).rewrites_owners(ref.kind, ref.name, idmap)

    async def unmount(self, ref: VolumeRef) -> None:
        await self.driver(ref.pool).unmount_volume(ref.kind, ref.name)

    def writing_idmap(self, ref: VolumeRef, idmap: IdMap) -> IdMap:
        """The map to mount a volume under for writing its files from the host, when it will be used under `idmap`. An
        idmapped mount takes no new file from the host's root, whom it does not map (EOVERFLOW)."""
        return idmap if self.driver(ref.pool).shifted_on_disk else IdMap()

    async def sync(self, ref: VolumeRef) -> None:
        """Wait until all that was written to a volume's file system is on the disk."""
        await self._host.processes.run(["sync", "-f", os.fspath(self.volume_path(ref))])

    def content_type(self, ref: VolumeRef) -> str | None:
        """`filesystem`, `block` or `iso`; containers can have only the first. None: there is no such volume."""
        return next((found.value.content_type for found in self._of(ref)), None)

    def volume_path(self, ref: VolumeRef) -> Path:
        """Where a volume lies, for telling which disk that is on."""
        return self.driver(ref.pool).volume_path(ref.kind, ref.name)

    def state_directory(self, ref: VolumeRef) -> Path:
        """Of an instance volume: the daemon's own, beside the files."""
        return self.driver(ref.pool).state_directory(ref.name)

    # --- snapshots and copies, of instance volumes and custom ones ---

    async def create_snapshot(
        self,
        ref: VolumeRef,
        snapshot: str,
        project: str,
        *,
        live: bool = False,
        created_at: datetime | None = None,
        expires_at: datetime = ZERO_TIME,
        description: str = "",
    ) -> None:
        """`live`: the volume is in use. It is then frozen by the caller, if the files are to fit together."""
        await self.driver(ref.pool).create_snapshot(ref.kind, ref.name, snapshot, live=live)
        own = self._own_record(ref, project)
        record = msgspec.structs.replace(
            own,
            name=f"{own.name}@{snapshot}",
            description=description,
            created_at=created_at or now(),
            expires_at=expires_at,
        )
        await self._note(record)

    async def delete_snapshot(self, ref: VolumeRef, snapshot: str) -> None:
        if self._records.get(ref.pool) is None:
            return
        await self.driver(ref.pool).delete_snapshot(ref.kind, ref.name, snapshot)
        for document in self._snapshots_of(ref, snapshot):
            await self._volumes.delete(document.path)

    async def rename_snapshot(self, ref: VolumeRef, snapshot: str, new_snapshot: str) -> None:
        await self.driver(ref.pool).rename_snapshot(ref.kind, ref.name, snapshot, new_snapshot)
        for document in self._snapshots_of(ref, snapshot):
            name = f"{split_snapshot(document.value.name)[0]}@{new_snapshot}"
            await self._rename_document(document, name, document.value.project)

    async def restore_snapshot(self, ref: VolumeRef, snapshot: str) -> None:
        """The volume is not in use; it is unmounted."""
        await self.driver(ref.pool).restore_snapshot(ref.kind, ref.name, snapshot)

    def list_snapshots(self, ref: VolumeRef) -> list[VolumeRecord]:
        """The oldest first."""
        found = [document.value for document in self._snapshots_of(ref)]
        return sorted(found, key=lambda record: (record.created_at, record.name))

    async def mount_snapshot(self, ref: VolumeRef, snapshot: str, idmap: IdMap) -> Path:
        """Read-only, under any map."""
        return await self.driver(ref.pool).mount_snapshot(ref.kind, ref.name, snapshot, idmap)

    async def unmount_snapshot(self, ref: VolumeRef, snapshot: str) -> None:
        await self.driver(ref.pool).unmount_snapshot(ref.kind, ref.name, snapshot)

    async def snapshot_usage(self, ref: VolumeRef, snapshot: str) -> int:
        return await self.driver(ref.pool).snapshot_usage(ref.kind, ref.name, snapshot)

    def view(
        self, ref: VolumeRef, idmap: IdMap, *, snapshot: str | None = None, live: bool = False
    ) -> AbstractAsyncContextManager[Path]:
        """A volume or a snapshot as a read-only tree for the time of the block; with the empty map ids are as an image
        has them, which is what backups and images want."""
        return self.driver(ref.pool).view(ref.kind, ref.name, idmap, snapshot=snapshot, live=live)

    def changing_view(self, ref: VolumeRef, idmap: IdMap) -> AbstractAsyncContextManager[Path]:
        """A volume in use, as it changes; nothing is copied for it."""
        return self.driver(ref.pool).changing_view(ref.kind, ref.name, idmap)

    async def copy(
        self,
        source: VolumeRef,
        target: VolumeRef,
        project: str,
        *,
        snapshot: str | None = None,
        snapshots: Sequence[str] = (),
        size_bytes: int = 0,
        live: bool = False,
    ) -> None:
        """A new volume of `project` with what a volume (or one of its snapshots) holds, in any pool; `snapshots` (the
        oldest first) come along with their dates. Taken back by `delete_volume`."""
        own = self._own_record(source, project)
        if own.content_type == FILESYSTEM:  # others are as large as their file
            size_bytes = size_bytes or self.default_size(target.pool)
        places = self._place(source), self._place(target)
        await copies.copy(self._host, *places, Moment(snapshot, live), snapshots, size_bytes=size_bytes)
        await self._note(msgspec.structs.replace(own, **_belonging(target, project), created_at=now()))
        await self._note_snapshots(source, target, project, snapshots)

    async def refresh(
        self,
        source: VolumeRef,
        target: VolumeRef,
        project: str,
        *,
        snapshot: str | None = None,
        snapshots: Sequence[str] = (),
        live: bool = False,
    ) -> None:
        """Make an existing volume, not in use, equal to another; its snapshots are to be these: others go, and so does
        one of another date."""
        wanted = {split_snapshot(s.name)[1]: s.created_at for s in self.list_snapshots(source)}
        for record in self.list_snapshots(target):
            name = split_snapshot(record.name)[1]
            if name not in snapshots or wanted.get(name) != record.created_at:
                await self.delete_snapshot(target, name)
        places = self._place(source), self._place(target)
        await copies.refresh(*places, Moment(snapshot, live), snapshots)
        await self._note_snapshots(source, target, project, snapshots)

    def _place(self, ref: VolumeRef) -> Place:
        return Place(self.driver(ref.pool), ref.pool, ref.kind, ref.name)

    def _own_record(self, ref: VolumeRef, project: str) -> VolumeRecord:
        """A volume's document; after a crash it may be missing, then what it would say."""
        found = self._of(ref)
        return found[0].value if found else VolumeRecord(_name(ref, project), ref.pool, ref.kind, project)

    async def _note_snapshots(
        self, source: VolumeRef, target: VolumeRef, project: str, snapshots: Sequence[str]
    ) -> None:
        for document in self._snapshots_of(source):
            name = split_snapshot(document.value.name)[1]
            if name in snapshots:
                await self._note(msgspec.structs.replace(document.value, **_belonging(target, project, name)))

    async def has_quota(self, pool: str) -> str | None:
        """None if sizes can be enforced on a pool, else why not."""
        return await self.driver(pool).quota_fault()

    async def delete_image(self, fingerprint: str) -> None:
        """Drop an image from all pools; volumes made from it stay."""
        for name in self.names():
            await self.drop_image(name, fingerprint)

    async def drop_image(self, pool: str, fingerprint: str) -> None:
        """What one pool keeps of an image; it is unpacked again when it is wanted again."""
        if pool not in self._faults:
            await self._drivers[pool].delete_image(fingerprint)
        await self._volumes.delete((pool, "image", DEFAULT_PROJECT, fingerprint))

    def default_size(self, pool: str) -> int:
        """`volume.size` of a pool, for volumes made without one."""
        return parse_size(self.record(pool).config.get("volume.size", ""))

    async def _note(self, record: VolumeRecord) -> None:
        """Keep a volume's document; one that is there stays as it is."""
        path = _path(record)
        if self._volumes.get(*path) is None:
            await self._volumes.txn([self._volumes.put(path, record)])

    def _of(self, ref: VolumeRef) -> list[Document[VolumeRecord]]:
        """The document of a volume, found by its storage name."""
        return [found for found in self._volumes.list(ref.pool, ref.kind) if volume_ref(found.value) == ref]

    def _snapshots_of(self, ref: VolumeRef, snapshot: str = "") -> list[Document[VolumeRecord]]:
        """The documents of a volume's snapshots, or of one."""
        prefix = f"{ref.name}@"
        found = [(volume_ref(d.value).name, d) for d in self._volumes.list(ref.pool, ref.kind)]
        return [d for name, d in found if name.startswith(prefix) and snapshot in ("", name.removeprefix(prefix))]

    def _backups_of(self, volume: VolumeRecord) -> list[Document[msgspec.Raw]]:
        return self._backups.list(volume.pool, volume.project, volume.name) if volume.kind == "custom" else []

    async def _rename_backups(self, volume: VolumeRecord, project: str, new_name: str) -> None:
        ops: list[Put | Delete] = []
        for backup in self._backups_of(volume):
            path = (volume.pool, project, new_name, backup.path[-1])
            ops += [self._backups.delete_op(backup.path), self._backups.put(path, backup.value)]
        if ops:
            await self._backups.txn(ops)

    async def _rename_document(self, document: Document[VolumeRecord], name: str, project: str) -> None:
        new = msgspec.structs.replace(document.value, name=name, project=project)
        if new != document.value:
            await self._volumes.txn([self._volumes.delete_op(document.path), self._volumes.put(_path(new), new)])


def scratch_of(ref: VolumeRef) -> VolumeRef:
    """What `refresh_from_tree` makes for a while, and leaves if the daemon is killed meanwhile."""
    return VolumeRef(ref.pool, ref.kind, f"{ref.name}.scratch")


def _path(record: VolumeRecord) -> tuple[str, str, str, str]:
    return record.pool, record.kind, record.project, record.name


def _name(ref: VolumeRef, project: str) -> str:
    """A volume's name in its project."""
    return ref.name.removeprefix(storage_name(project, "", ref.kind))


def _belonging(ref: VolumeRef, project: str, snapshot: str = "") -> dict[str, Any]:
    """The fields of a document that say whose it is."""
    name = _name(ref, project)
    return {"name": f"{name}@{snapshot}" if snapshot else name, "pool": ref.pool, "kind": ref.kind, "project": project}


def _fixed_faults(old: Mapping[str, str], new: Mapping[str, str]) -> Iterable[Fault]:
    for key in sorted(old.keys() | new.keys()):
        if key.startswith(_FIXED) and old.get(key, "") != new.get(key, ""):
            yield Fault(f"config.{key}", f'the key "{key}" can\'t be changed once the pool exists')
