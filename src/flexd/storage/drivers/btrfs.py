# SPDX-License-Identifier: Apache-2.0
"""`btrfs`: what is a directory of files to the dir driver is a subvolume here, and a copy a snapshot of it.

The pool is a file system of its own (in a file, or on a block device) or a directory of a btrfs that is there already.
Ids are on disk as the container sees them. Sizes are limits of quota groups, on what a volume refers to.
"""

import asyncio
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from flexd.api.errors import BadRequest
from flexd.api.keys import Key
from flexd.api.units import is_true, parse_size
from flexd.host.contract import CommandFailed, Spawned
from flexd.operations.undo import Undo
from flexd.storage.contract import PoolUnavailable, Unpack, VolumeKind
from flexd.storage.facts import read_number, write_fact
from flexd.storage.streams import StreamDriver

_GIB = 1 << 30
# LXD's default of a pool in a file: a fifth of what is free, within these bounds.
_DEFAULT_SHARE = 5
_DEFAULT_BYTES = (5 * _GIB, 30 * _GIB)
# mkfs.btrfs(8) refuses less than about 109 MiB for a mixed set of profiles.
_LEAST_BYTES = 128 << 20

Form = Literal["file", "device", "directory"]


class BtrfsDriver(StreamDriver):
    name = "btrfs"
    optimized_images = True
    KEYS = (
        Key("source", description="A block device, or an empty directory on btrfs; by default a file of the daemon's"),
        Key("source.wipe", kind="bool", default="false", description="Whether to use a block device that is not empty"),
        Key("size", kind="size", description="Size of the pool's file; by default a fifth of what is free, 5-30 GiB"),
        Key("btrfs.mount_options", default="user_subvol_rm_allowed", description="Options of a file system of its own"),
        Key("volatile.initial_source", description="The source that was given when the pool was created"),
    )
    VOLUME_KEYS: tuple[Key, ...] = (
        Key("size", kind="size", description="Limit of what the volume refers to, kept by a quota group"),
    )

    async def probe(self) -> str | None:
        return await self._host.btrfs.available()

    # --- the pool ---

    async def check_new_pool(self) -> None:
        source, form = await self._form(self._config)
        if self._config.get("size"):
            self._check_size(form)
        if form == "directory":
            await asyncio.to_thread(self._check_source, self._config.get("source", ""))
            await self._check_btrfs(source)
        elif form == "device" and not is_true(self._config.get("source.wipe")):
            await self._check_empty(source)
        elif form == "file" and await asyncio.to_thread(source.exists):
            raise BadRequest(f"Source path '{source}' exists already")

    def _check_size(self, form: Form) -> None:
        if form != "file":
            raise BadRequest(f'Failed creating storage pool "{self._pool}": only a pool in a file has a size')
        if parse_size(self._config["size"]) < _LEAST_BYTES:
            raise BadRequest(
                f'Failed creating storage pool "{self._pool}": size "{self._config["size"]}" is too small for btrfs '
                f"(at least {_LEAST_BYTES >> 20}MiB)"
            )

    async def _check_btrfs(self, source: Path) -> None:
        kind = await self._host.files.filesystem_type(source if source != self._directory else self._root)
        if kind != "btrfs":
            raise BadRequest(f"Source path '{source}' isn't on btrfs but on {kind}")

    async def _check_empty(self, device: Path) -> None:
        argv = ["blkid", "--probe", "--output", "value", "--match-tag", "TYPE", "--", str(device)]
        found = await self._host.processes.run(argv, check=False)
        text = found.stdout.decode().strip()
        if text:
            raise BadRequest(f"Source '{device}' holds {text}; set source.wipe to use it all the same")

    async def create_pool(self) -> dict[str, str]:
        source, form = await self._form(self._config)
        filled = {"source": str(source), "volatile.initial_source": self._config.get("source", "")}
        async with Undo() as undo:
            undo.push(self.delete_pool)
            if form != "directory" and not await self._host.mounts.mounted(self._directory):
                if form == "file":
                    await asyncio.to_thread(_make_file, source, await self._size_bytes())
                await self._host.btrfs.format(source, label=self._pool, force=True)
            await self._mount_source()
            await asyncio.to_thread(self._make_folders)
        if form == "file":
            filled["size"] = self._config.get("size") or f"{await self._size_bytes() // _GIB}GiB"
        return {key: value for key, value in filled.items() if value}

    async def delete_pool(self) -> None:
        source, form = await self._form(self._config)
        if form == "directory":
            await super().delete_pool()
            return
        await self.settle()
        await self._close_views()
        await self._host.mounts.unmount(self._directory)
        await self._host.files.remove_tree(self._directory)
        if form == "file":
            await self._host.files.remove_tree(source)
        else:
            # Nothing of it can be reached any more; left there, it would keep the device from being used again.
            await self._host.processes.run(["wipefs", "--all", "--quiet", "--", str(source)])

    async def _require_source(self) -> None:
        source, _ = await self._form(self._config)
        if not await asyncio.to_thread(source.exists):
            raise PoolUnavailable(f"Source path '{source}' of storage pool \"{self._pool}\" doesn't exist")

    async def _mount_source(self) -> None:
        source, form = await self._form(self._config)
        if form == "directory":
            await super()._mount_source()
            return
        await asyncio.to_thread(self._directory.mkdir, 0o711, parents=True, exist_ok=True)
        if not await self._host.mounts.mounted(self._directory):
            options = self._config.get("btrfs.mount_options", "") or "user_subvol_rm_allowed"
            if form == "file":
                await self._host.mounts.mount_file(source, self._directory, "btrfs", options)
            else:
                await self._host.mounts.mount(str(source), self._directory, "btrfs", options)
        await asyncio.to_thread(self._directory.chmod, 0o711)

    @property
    def _root(self) -> Path:
        """The daemon's own directory."""
        return self._directory.parent.parent

    async def _form(self, config: Mapping[str, str]) -> tuple[Path, Form]:
        given, file = config.get("source", ""), self._root / "disks" / f"{self._pool}.img"
        if given:
            return Path(given), await asyncio.to_thread(_form_of, Path(given), file)
        if not config.get("size") and not await asyncio.to_thread(file.exists) and await self._is_on_btrfs():
            return self._directory, "directory"
        return file, "file"

    async def _is_on_btrfs(self) -> bool:
        """Whether the daemon's directory needs no file system in a file."""
        await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)
        return await self._host.files.filesystem_type(self._root) == "btrfs"

    async def _size_bytes(self) -> int:
        """Of a pool in a file: what was asked for, what it has, or the default."""
        given = parse_size(self._config.get("size", ""))
        if given:
            return given
        if await self._host.mounts.mounted(self._directory):
            return (await self._host.files.filesystem(self._directory)).total_bytes
        usage = await self._host.files.filesystem(self._root)
        share = (usage.total_bytes - usage.used_bytes) // _DEFAULT_SHARE
        return min(max(share, _DEFAULT_BYTES[0]), _DEFAULT_BYTES[1]) // _GIB * _GIB

    # --- images ---

    async def has_image(self, fingerprint: str) -> bool:
        return await asyncio.to_thread(self._volume("image", fingerprint).exists)

    async def create_image(self, fingerprint: str, unpack: Unpack) -> None:
        async with self._lock(fingerprint):
            await self._ensure_image(fingerprint, unpack)

    async def delete_image(self, fingerprint: str) -> None:
        """Volumes made from it keep what they share with it."""
        async with self._lock(fingerprint):
            image = self._volume("image", fingerprint)
            if await asyncio.to_thread(image.exists):
                await self._discard(image)

    async def _ensure_image(self, fingerprint: str, unpack: Unpack) -> None:
        image, staging = self._volume("image", fingerprint), self._staging()
        if await asyncio.to_thread(image.exists):
            return
        async with Undo() as undo:
            undo.push(self._erase, staging)
            await asyncio.to_thread(staging.mkdir, mode=0o700)
            await self._make_data(staging / "data", 0o755)
            await unpack(staging / "data")
            await self._host.btrfs.set_readonly(staging / "data", True)
            await asyncio.to_thread(staging.rename, image)

    async def create_from_image(
        self, kind: VolumeKind, name: str, fingerprint: str, unpack: Unpack, *, size_bytes: int
    ) -> None:
        async def clone(staging: Path) -> None:
            await self._clone(self._volume("image", fingerprint) / "data", staging / "data")

        async with self._lock(fingerprint):
            await self._ensure_image(fingerprint, unpack)
            await self._create(kind, name, size_bytes=size_bytes, fill=clone, bare=True)

    # --- subvolumes in the place of directories ---

    async def _make_data(self, path: Path, mode: int) -> None:
        await self._host.btrfs.create_subvolume(path)
        await asyncio.to_thread(path.chmod, mode)
        await self._apply_limit(path)

    async def _clone(self, source: Path, target: Path) -> None:
        await self._host.btrfs.delete_subvolumes(target)
        await self._host.btrfs.snapshot(source, target)
        await self._apply_limit(target)

    async def _clone_over(self, source: Path, volume: Path) -> None:
        await self._clone(source, volume / "data.new")

    async def _clone_frozen(self, source: Path, target: Path) -> None:
        await self._host.btrfs.snapshot(source, target, readonly=True)

    async def _hold_now(self, kind: VolumeKind, volume: Path, *, live: bool) -> str:
        return await self._freeze(kind, volume, live=live)

    async def _erase(self, path: Path) -> None:
        await self._host.btrfs.delete_subvolumes(path)
        await self._host.files.remove_tree(path)

    async def snapshot_usage(self, kind: VolumeKind, name: str, snapshot: str) -> int:
        """What would be free without it, where quotas count that."""
        content = await self._content_of(self._volume(kind, name), snapshot)
        usage = None if content is None else await self._host.btrfs.usage(self._directory / content / "data")
        return await super().snapshot_usage(kind, name, snapshot) if usage is None else usage.exclusive_bytes

    # --- sizes ---

    async def quota_fault(self) -> str | None:
        return None

    async def volume_usage(self, kind: VolumeKind, name: str) -> int | None:
        usage = await self._host.btrfs.usage(self._volume(kind, name) / "data")
        return None if usage is None else usage.referenced_bytes

    async def _limit(self, volume: Path, size_bytes: int) -> None:
        """Quotas cost with every snapshot, so they are not on before the first size is set."""
        if size_bytes and await self._host.btrfs.usage(self._directory) is None:
            await self._host.btrfs.enable_quotas(self._directory)
        if not size_bytes and await asyncio.to_thread(read_number, volume, "size") is None:
            return
        await asyncio.to_thread(write_fact, volume, "size", str(size_bytes))
        if await asyncio.to_thread((volume / "data").exists):
            await self._apply_limit(volume / "data")

    async def _apply_limit(self, data: Path) -> None:
        """The limit is the subvolume's, of which a volume may have a new one (a copy, a restore)."""
        size_bytes = await asyncio.to_thread(read_number, data.parent, "size")
        if size_bytes is not None:
            await self._host.btrfs.set_limit(data, size_bytes)

    async def _lift_limit(self, volume: Path) -> None:
        """A limit goes with its subvolume."""

    # --- streams ---

    async def send(self, kind: VolumeKind, name: str, snapshot: str, *, parent: str | None, output: int) -> Spawned:
        """Start writing a snapshot (what changed since `parent`) into the descriptor `output`, for `receive`."""
        volume, argv = self._volume(kind, name), ["btrfs", "--quiet", "send"]
        for option, wanted in (("-p", parent), ("", snapshot)):
            if wanted is not None:
                content = await self._content_of(volume, wanted)
                if content is None:
                    raise self._no_snapshot(name, wanted)
                argv += [part for part in (option, str(self._directory / content / "data")) if part]
        return await self._host.processes.spawn(argv, stdout=output)

    async def receive(self, kind: VolumeKind, name: str, snapshot: str, *, input: int) -> None:
        """Make a snapshot of a volume that is there from a stream; one with a parent needs that received before."""
        self._check_snapshot(snapshot)
        async with self._at_work(kind, name) as volume:
            async with self._freezing() as (content, staging):
                argv = ["btrfs", "--quiet", "receive", "-e", str(staging)]
                child = await self._host.processes.spawn(argv, stdin=input)
                status = await child.wait()
                if status != 0:
                    raise CommandFailed(argv, status, f'snapshot "{snapshot}" of volume "{name}" did not arrive whole')
            async with self._letting_go(content):
                await self._note_snapshot(volume, snapshot, content)


def _make_file(path: Path, size_bytes: int) -> None:
    """Without blocks: they come as they are written."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)
    path.chmod(0o600)


def _form_of(source: Path, own_file: Path) -> Form:
    if source == own_file:
        return "file"
    try:
        return "device" if stat.S_ISBLK(os.stat(source).st_mode) else "directory"
    except FileNotFoundError:
        return "directory"


DRIVER = BtrfsDriver
