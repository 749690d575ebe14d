# SPDX-License-Identifier: Apache-2.0
"""Backups in the format of LXD's btrfs driver: a stream for each subvolume (btrfs-send(8)).

LXD's subvolume of an instance holds `rootfs/` and small files beside it, ours the root file system itself; on the way
out and in, what is at the top goes one directory down or up, in snapshots made for that.
"""

import asyncio
import os
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from flexd.api.errors import BadRequest
from flexd.api.idmap import IdMap
from flexd.host.contract import Host
from flexd.operations.undo import Undo
from flexd.storage.contract import Dress, Outgoing, Reception, Stream, VolumeKind
from flexd.storage.drivers.dir import DirDriver

# LXD's name for what the volume itself is sent as.
_NOW = ".backup"
_ROOTFS = "rootfs"
_WRITTEN_BESIDE = ("backup.yaml", "metadata.yaml", "templates")
# backup.yaml grows with an instance's snapshots; all of it is held in memory.
_BESIDE_BYTES = 8 << 20


class StreamDriver(DirDriver):
    """A `DirDriver` whose `data` are subvolumes."""

    async def _apply_limit(self, data: Path) -> None:
        """Put a volume's limit on a subvolume that is to be its own."""
        raise NotImplementedError

    @property
    def streams(self) -> "StreamDriver":
        return self

    # --- out ---

    @asynccontextmanager
    async def sending(
        self, kind: VolumeKind, name: str, snapshots: Sequence[str], *, live: bool, dress: Dress | None
    ) -> AsyncIterator[Sequence[Outgoing]]:
        staging = self._staging()
        async with AsyncExitStack() as stack:
            await asyncio.to_thread(staging.mkdir, mode=0o700)
            stack.push_async_callback(self._discard, staging)
            for snapshot in (*snapshots, None):
                content = await stack.enter_async_context(self._held(kind, name, snapshot, live=live))
                top = staging / (snapshot or _NOW)
                await self._host.btrfs.snapshot(self._directory / content / "data", top)
                if kind != "custom":
                    await self._wrap(top)
                if dress is not None:
                    await asyncio.to_thread(dress, snapshot or "", top)
                await self._host.btrfs.set_readonly(top, True)
            yield await self._outgoing(staging, snapshots)

    async def _outgoing(self, staging: Path, snapshots: Sequence[str]) -> list[Outgoing]:
        found: list[Outgoing] = []
        parent: Path | None = None
        for snapshot in (*snapshots, ""):
            top = staging / (snapshot or _NOW)
            for path in ("", *await self._host.btrfs.subvolumes(top)):
                subvolume = top / path
                stream = Stream(snapshot, f"/{path}", await self._host.btrfs.uuid(subvolume), bool(snapshot))
                # What a container made in between has no part in common that we know of: it is sent whole.
                write = partial(self._send_subvolume, subvolume, None if path else parent)
                found.append(Outgoing(stream, write))
            parent = top
        return found

    async def _send_subvolume(self, subvolume: Path, parent: Path | None, output: int) -> None:
        await self._host.btrfs.send(subvolume, parent=parent, output=output)

    # --- in ---

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[Reception]:
        staging = self._staging()
        await asyncio.to_thread(staging.mkdir, mode=0o700)
        try:
            yield _Reception(self._host, staging)
        finally:
            await asyncio.shield(self._discard(staging))

    async def create_from_streams(
        self,
        kind: VolumeKind,
        name: str,
        place: Path,
        streams: Sequence[Stream],
        *,
        size_bytes: int,
        owners: Mapping[str, IdMap],
    ) -> None:
        pinned: list[str] = []

        async def assemble(snapshot: str, data: Path) -> None:
            own = [(number, each.path) for number, each in enumerate(streams) if each.snapshot == snapshot]
            await self._assemble(kind, place, own, data)
            await self._clean(data, owners.get(snapshot, IdMap()))

        async def fill(staging: Path) -> None:
            for snapshot in dict.fromkeys(each.snapshot for each in streams if each.snapshot):
                self._check_snapshot(snapshot)
                async with self._freezing() as (content, frozen):
                    await assemble(snapshot, frozen / "data")
                    await self._host.btrfs.set_readonly(frozen / "data", True)
                pinned.append(content)
                await self._note_snapshot(staging, snapshot, content)
            await assemble("", staging / "data")
            await self._apply_limit(staging / "data")

        async with Undo() as undo:
            undo.push(self._let_go, pinned)
            await self._create(kind, name, size_bytes=size_bytes, fill=fill, bare=True)
        await self._let_go(pinned)

    async def _let_go(self, pinned: list[str]) -> None:
        while pinned:
            content = pinned.pop()
            self._pinned[content] -= 1
            await self._drop(content)

    async def _assemble(self, kind: VolumeKind, place: Path, own: Sequence[tuple[int, str]], data: Path) -> None:
        """One tree of its subvolumes, the outer ones first."""
        (top, _), *nested = sorted(own, key=lambda found: found[1].count("/") if found[1] != "/" else 0)
        await self._host.btrfs.snapshot(place / str(top), data)
        for number, path in nested:
            await self._host.btrfs.graft(place / str(number), data, path)
        if kind != "custom":
            await self._unwrap(data)

    async def _wrap(self, top: Path) -> None:
        """What is in a directory goes into `rootfs` in it, with what the directory had."""
        inner = await asyncio.to_thread(_move_down, top)
        await self._host.files.copy_attributes(top, inner)
        await asyncio.to_thread(_close, top, inner)

    async def _unwrap(self, top: Path) -> None:
        """The other way round; what was beside it goes."""
        inner = await asyncio.to_thread(_move_up, top)
        await self._host.files.copy_attributes(inner, top)
        await asyncio.to_thread(inner.rmdir)

    async def _clean(self, data: Path, idmap: IdMap) -> None:
        """As what is unpacked from an archive: no devices (overlayfs marks of a container engine are none), owners as
        an image has them."""
        devices = ["find", str(data), "(", "-type", "b", "-o", "-type", "c", ")", "-print0"]
        found = await self._host.processes.run(devices)
        await asyncio.to_thread(_remove_devices, found.stdout)
        if idmap:
            await self._host.files.shift_tree(data, old=idmap, new=IdMap())


class _Reception:
    """The subvolumes in `place` are numbered in the order in which they came."""

    def __init__(self, host: Host, place: Path) -> None:
        self._host = host
        self.place = place
        self._taken: list[Stream] = []

    async def take(self, stream: Stream, source: int) -> None:
        arrived = await self._host.btrfs.receive(self.place, input=source)
        await asyncio.to_thread(arrived.rename, self.place / str(len(self._taken)))
        self._taken.append(stream)

    async def beside(self, snapshot: str) -> dict[str, bytes]:
        number = next(n for n, each in enumerate(self._taken) if each.snapshot == snapshot and each.path == "/")
        return await asyncio.to_thread(_read_beside, self.place / str(number), snapshot)


# --- in threads ------------------------------------------------------------------------------------------------------


def _move_down(top: Path) -> Path:
    names, inner = os.listdir(top), top / f".{_ROOTFS}-{secrets.token_hex(8)}"
    inner.mkdir(mode=0o700)
    for name in names:
        (top / name).rename(inner / name)
    return inner


def _close(top: Path, inner: Path) -> None:
    inner.rename(top / _ROOTFS)
    top.chmod(0o100)


def _move_up(top: Path) -> Path:
    inner = top / f".{_ROOTFS}-{secrets.token_hex(8)}"
    for name in os.listdir(top):
        if name == _ROOTFS:
            (top / name).rename(inner)
        elif stat.S_ISDIR(os.lstat(top / name).st_mode):
            shutil.rmtree(top / name)
        else:
            (top / name).unlink()
    for name in os.listdir(inner):
        (inner / name).rename(top / name)
    return inner


def _read_beside(top: Path, snapshot: str) -> dict[str, bytes]:
    """From somebody else's tree: no link is followed, no device read."""
    rootfs = top / _ROOTFS
    if rootfs.is_symlink() or not rootfs.is_dir():
        raise BadRequest(
            f"Invalid backup: the stream of {f'snapshot {snapshot}' if snapshot else 'the instance'} has no rootfs"
        )
    found: dict[str, bytes] = {}
    for name in _WRITTEN_BESIDE:
        path = top / name
        if path.is_dir() and not path.is_symlink():
            found |= {f"{name}/{entry}": _read_plain(path / entry) for entry in sorted(os.listdir(path))}
        elif os.path.lexists(path):
            found[name] = _read_plain(path)
    return found


def _read_plain(path: Path) -> bytes:
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_size > _BESIDE_BYTES:
        raise BadRequest(f'Invalid backup: "{path.name}" in a stream is no plain file of at most {_BESIDE_BYTES} bytes')
    return path.read_bytes()


def _remove_devices(names: bytes) -> None:
    for name in filter(None, names.split(b"\0")):
        if os.lstat(name).st_rdev != 0:
            os.unlink(name)
