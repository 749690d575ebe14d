# SPDX-License-Identifier: Apache-2.0
"""What the drivers share that keep a pool in a directory of an existing file system.

Whatever is made is made in `.creating-*` and renamed into place; whatever is removed is renamed to `.deleting-*` and
removed in the background; leftovers of both go when the pool is next mounted.
"""

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from weakref import WeakValueDictionary

from flexd.api.errors import BadRequest, Conflict
from flexd.api.idmap import IdMap
from flexd.api.keys import Key
from flexd.host.contract import CommandFailed, Host, HostError
from flexd.operations.undo import Undo
from flexd.storage.contract import PoolUnavailable, QuotaUnsupported, VolumeKind, VolumeNotFound
from flexd.storage.facts import parse_idmap, read_fact, read_number, render_idmap, write_fact

log = logging.getLogger(__name__)

_FOLDERS: dict[VolumeKind, str] = {
    "container": "containers",
    "virtual-machine": "virtual-machines",
    "custom": "custom",
    "image": "images",
}
# How long the daemon's end waits for removals; systemd's own patience is 90 s.
CLOSE_TIMEOUT_S = 5.0
# Below the pool: what snapshots hold (`flexd.storage.snapshots`).
FROZEN = "frozen"
Fill = Callable[[Path], Awaitable[None]]


class DirectoryDriver:
    """Subclasses say how an instance volume is laid out (`_lay_out`), mounted (`_mount`) and given another id map."""

    name: str
    KEYS: tuple[Key, ...] = (
        Key("source", description="An existing empty directory; by default one below the daemon's own"),
        Key("volatile.initial_source", description="The source that was given when the pool was created"),
    )
    shifted_on_disk = False
    VOLUME_KEYS: tuple[Key, ...] = (
        Key("size", kind="size", description="Limit of the volume's size, kept by a project quota"),
    )

    def __init__(self, *, host: Host, pool: str, directory: Path, config: Mapping[str, str]) -> None:
        self._host = host
        self._pool = pool
        self._directory = directory
        self._config = config
        self._quotas: bool | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._removals: set[asyncio.Task[None]] = set()

    # --- what a driver adds ---

    async def _lay_out(self, volume: Path, *, bare: bool) -> None:
        """Fill the new directory of an instance volume; `bare`: without what is to hold the files."""
        raise NotImplementedError

    async def _mount(self, volume: Path, idmap: IdMap) -> None:
        """Mount `volume`, whose ids are ready for this map, on its `rootfs`."""
        raise NotImplementedError

    async def _change_idmap(self, volume: Path, old: IdMap | None, new: IdMap) -> None:
        """Make a volume last mounted under `old` (None: never) ready for `new`, and `_admit` its container."""
        raise NotImplementedError

    async def _recover(self, kind: VolumeKind, volume: Path) -> None:
        """Before a mount: finish or forget what a crash left inside a volume."""

    async def _make_data(self, path: Path, mode: int) -> None:
        """The directory that holds a volume's files where it is one."""
        await asyncio.to_thread(_make_directory, path, mode)

    async def _erase(self, path: Path) -> None:
        """Remove a tree, with all that this driver may have made in it."""
        await self._host.files.remove_tree(path)

    def _layer(self, volume: Path) -> Path:
        """The directory that the fact `idmap` is true of."""
        return volume

    def _content(self, volume: Path) -> Path:
        """What of an instance volume is its own on disk."""
        return volume / "data"

    # --- the pool ---

    async def check_new_pool(self) -> None:
        await asyncio.to_thread(self._check_source, self._config.get("source", ""))

    async def create_pool(self) -> dict[str, str]:
        given = self._config.get("source", "")
        filled = {"source": given or str(self._directory), "volatile.initial_source": given}
        async with Undo() as undo:
            undo.push(self.delete_pool)
            await self._mount_source()
            await asyncio.to_thread(self._make_folders)
        return {key: value for key, value in filled.items() if value}

    async def delete_pool(self) -> None:
        """Only what a driver makes is removed: the source may be a directory that somebody else made."""
        await self.settle()
        for entry in await asyncio.to_thread(self._own_entries):
            await self._erase(entry)
        await self._host.mounts.unmount(self._directory)
        await self._host.files.remove_tree(self._directory)

    async def mount_pool(self) -> None:
        await self._require_source()
        await self._mount_source()
        await asyncio.to_thread(self._make_folders)
        for leftover in await asyncio.to_thread(self._leftovers):
            self._remove_in_background(leftover)

    async def _require_source(self) -> None:
        source = self._config.get("source", "")
        if not await asyncio.to_thread(os.path.isdir, source or self._directory):
            raise PoolUnavailable(f"Source path '{source}' of storage pool \"{self._pool}\" doesn't exist")

    async def quota_fault(self) -> str | None:
        fault = await self._host.quotas.available(self._directory)
        self._quotas = fault is None
        return fault

    async def settle(self) -> None:
        await asyncio.gather(*self._removals)

    async def close(self) -> None:
        if self._removals:
            await asyncio.wait(self._removals, timeout=CLOSE_TIMEOUT_S)
        for task in self._removals:
            task.cancel()
        await asyncio.gather(*self._removals, return_exceptions=True)

    def _check_source(self, given: str) -> None:
        source = Path(given or self._directory)
        if given and source != self._directory:
            if not source.is_absolute() or not source.is_dir():
                raise BadRequest(f"Source path '{given}' doesn't exist")
            if source.resolve().is_relative_to(self._directory.parent.parent.resolve()):
                raise BadRequest(f"Source path '{given}' is within the flexd directory")
        if source.is_dir() and any(source.iterdir()):
            raise BadRequest(f"Source path '{source}' isn't empty")

    async def _mount_source(self) -> None:
        source = Path(self._config.get("source", "") or self._directory)
        await asyncio.to_thread(self._directory.mkdir, 0o711, parents=True, exist_ok=True)
        if source != self._directory and not await self._host.mounts.mounted(self._directory):
            await self._host.mounts.bind(source, self._directory)
        # Containers pass through to their own volumes; nobody lists the pool.
        await asyncio.to_thread(self._directory.chmod, 0o711)

    def _make_folders(self) -> None:
        for kind, folder in _FOLDERS.items():
            path = self._directory / folder
            path.mkdir(exist_ok=True)
            path.chmod(0o711 if kind in ("container", "virtual-machine") else 0o700)
        (self._directory / FROZEN).mkdir(mode=0o700, exist_ok=True)

    def _own_entries(self) -> list[Path]:
        folders = [self._directory / folder for folder in (*_FOLDERS.values(), FROZEN)]
        return self._leftovers() + [folder for folder in folders if folder.is_dir()]

    def _leftovers(self) -> list[Path]:
        found = list(self._directory.iterdir()) if self._directory.is_dir() else []
        return [entry for entry in found if entry.name.startswith((".creating-", ".deleting-"))]

    # --- volumes ---

    async def create_volume(self, kind: VolumeKind, name: str, *, size_bytes: int) -> None:
        await self._create(kind, name, size_bytes=size_bytes)

    async def delete_volume(self, kind: VolumeKind, name: str) -> None:
        volume = self._volume(kind, name)
        async with self._lock(str(volume)):
            if not await asyncio.to_thread(volume.exists):
                return
            await self._unmount_all(volume)
            await self._lift_limit(volume)
            await self._discard(volume)

    async def rename_volume(self, kind: VolumeKind, name: str, new_name: str) -> None:
        volume, target = self._volume(kind, name), self._volume(kind, new_name)
        if not await asyncio.to_thread(volume.exists):
            await self._require(kind, new_name)
            return
        if await asyncio.to_thread(target.exists):
            raise Conflict(f'Failed renaming volume "{name}" of storage pool "{self._pool}": "{new_name}" exists')
        await self._unmount_all(volume)
        await asyncio.to_thread(volume.rename, target)

    async def resize_volume(self, kind: VolumeKind, name: str, size_bytes: int) -> None:
        await self._require(kind, name)
        await self._limit(self._volume(kind, name), size_bytes)

    async def volume_usage(self, kind: VolumeKind, name: str) -> int | None:
        if self._quotas is None:
            await self.quota_fault()
        if not self._quotas:  # asked for each of a long list: no thread for nothing
            return None
        volume = self._volume(kind, name)
        project = await asyncio.to_thread(read_number, volume, "project")
        return None if project is None else await self._host.quotas.usage(volume, project)

    def volume_path(self, kind: VolumeKind, name: str) -> Path:
        volume = self._volume(kind, name)
        return volume / "data" if kind == "custom" else self._content(volume)

    def state_directory(self, name: str) -> Path:
        return self._volume("container", name) / "state"

    async def mount_volume(self, kind: VolumeKind, name: str, idmap: IdMap) -> Path:
        await self._require(kind, name)
        volume = self._volume(kind, name)
        async with self._lock(str(volume)):
            await self._recover(kind, volume)
            if kind == "custom":
                return volume / "data"
            try:
                await self._mount_under(volume, idmap)
            except HostError as error:
                what = f'Failed mounting volume "{name}" of storage pool "{self._pool}"'
                raise HostError(f"{what}: {error}", error.errno) from error
        return volume / "rootfs"

    async def rewrites_owners(self, kind: VolumeKind, name: str, idmap: IdMap) -> bool:
        """As here, where ids on disk are the container's own."""
        del kind, name, idmap
        return False

    async def unmount_volume(self, kind: VolumeKind, name: str) -> None:
        if kind != "custom":
            volume = self._volume(kind, name)
            async with self._lock(str(volume)):
                await self._host.mounts.unmount(volume / "rootfs")

    async def _unmount_all(self, volume: Path) -> None:
        """Before a volume goes or is renamed."""
        await self._host.mounts.unmount(volume / "rootfs")

    async def list_volumes(self) -> list[tuple[VolumeKind, str]]:
        def scan() -> list[tuple[VolumeKind, str]]:
            found = [(kind, self._directory / folder) for kind, folder in _FOLDERS.items()]
            return [(kind, name) for kind, path in found if path.is_dir() for name in sorted(os.listdir(path))]

        return await asyncio.to_thread(scan)

    async def _mount_under(self, volume: Path, idmap: IdMap) -> None:
        text = await asyncio.to_thread(read_fact, self._layer(volume), "idmap")
        last = None if text is None else parse_idmap(text)
        if await self._host.mounts.mounted(volume / "rootfs"):
            if last == idmap:
                return
            await self._host.mounts.unmount(volume / "rootfs")
        if last != idmap:
            await self._change_idmap(volume, last, idmap)
        await self._mount(volume, idmap)

    def _admit(self, volume: Path, idmap: IdMap) -> None:
        """Let the container's root pass through to its root file system, by group so that it can't change anything
        on the way, and no other user: files in there may be setuid. Then remember the map. In a thread."""
        os.chown(volume, -1, idmap.host_gid(0) or 0)
        volume.chmod(0o710)
        write_fact(self._layer(volume), "idmap", render_idmap(idmap))

    async def _create(
        self, kind: VolumeKind, name: str, *, size_bytes: int, fill: Fill | None = None, bare: bool = False
    ) -> None:
        """Make a volume whole or not at all; `bare`: `fill` makes what is to hold the files, too."""
        volume, staging = self._volume(kind, name), self._staging()
        async with self._lock(str(volume)), Undo() as undo:
            if await asyncio.to_thread(volume.exists):
                return
            undo.push(self._erase, staging)
            await self._stage(kind, staging, bare=bare)
            undo.push(self._lift_limit, staging)
            await self._limit(staging, size_bytes)
            if fill is not None:
                await fill(staging)
            await asyncio.to_thread(staging.rename, volume)

    async def _stage(self, kind: VolumeKind, staging: Path, *, bare: bool) -> None:
        await asyncio.to_thread(_make_directory, staging, 0o700)
        if kind != "custom":
            await self._lay_out(staging, bare=bare)
        elif not bare:
            await self._make_data(staging / "data", 0o711)

    def _volume(self, kind: VolumeKind, name: str) -> Path:
        if not name or "/" in name or name.startswith("."):
            raise BadRequest(f'Invalid volume name "{name}" in storage pool "{self._pool}"')
        return self._directory / _FOLDERS[kind] / name

    def _staging(self) -> Path:
        return self._directory / f".creating-{secrets.token_hex(8)}"

    async def _require(self, kind: VolumeKind, name: str) -> None:
        if not await asyncio.to_thread(self._volume(kind, name).exists):
            raise VolumeNotFound(f'Storage volume not found: "{name}" ({kind}) in storage pool "{self._pool}"')

    def _lock(self, key: str) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    # --- sizes ---

    async def _limit(self, volume: Path, size_bytes: int) -> None:
        """Keep a volume within `size_bytes` (0: no limit). Where quotas work, every volume gets a project, so that
        its usage is known without walking it."""
        if size_bytes or self._quotas is None:
            fault = await self.quota_fault()
            if size_bytes and fault is not None:
                raise QuotaUnsupported(
                    f'Failed setting a size of {size_bytes} bytes in storage pool "{self._pool}" ({self._directory}): '
                    f"{fault}"
                )
        if not self._quotas:
            return
        project = await asyncio.to_thread(read_number, volume, "project")
        if project is None:
            project = await self._new_project()
            await asyncio.to_thread(write_fact, volume, "project", str(project))
        await self._host.quotas.assign(volume, project)
        await self._host.quotas.set_limit(volume, project, size_bytes)
        await asyncio.to_thread(write_fact, volume, "size", str(size_bytes))

    async def _new_project(self) -> int:
        """A project id nobody uses on this file system, which other pools and programs share: a high random number
        under which nothing is charged."""
        while True:
            project = 1 << 30 | secrets.randbits(30)
            if await self._host.quotas.usage(self._directory, project) == 0:
                return project

    async def _lift_limit(self, volume: Path) -> None:
        project = await asyncio.to_thread(read_number, volume, "project")
        if project is not None:
            await self._host.quotas.set_limit(volume, project, 0)

    # --- removal ---

    async def _discard(self, path: Path) -> None:
        """Take a tree out of sight at once and remove it in the background."""
        doomed = self._directory / f".deleting-{secrets.token_hex(8)}"
        await asyncio.to_thread(path.rename, doomed)
        self._remove_in_background(doomed)

    def _remove_in_background(self, path: Path) -> None:
        task = asyncio.get_running_loop().create_task(self._remove(path), name=f"remove {path}")
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def _remove(self, path: Path) -> None:
        try:
            await self._erase(path)
        except (HostError, CommandFailed, OSError) as error:
            log.warning("%s of storage pool %s stays until the next start: %s", path, self._pool, error)


def _make_directory(path: Path, mode: int) -> None:
    path.mkdir(mode=mode)
    path.chmod(mode)
