# SPDX-License-Identifier: Apache-2.0
"""Making archives of container trees: `tar | compressor -> file`, hashed on the way, nothing copied in between.

Each tree is read by a tar of its own, confined; their archives become one by leaving out what ends them.
"""

import asyncio
import contextlib
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO

from msgspec import Struct

from flexd.api.errors import FlexdError
from flexd.host.contract import Host, Spawned
from flexd.images.compress import Compressor
from flexd.images.confine import OUTPUT, TREE, powerless, reading
from flexd.images.programs import Finished, Outcome, read_chain, read_messages, run_chain, wide_pipe

_BLOCK = 512
# Of GNU tar, for what somebody wrote to meanwhile (where a view is not of one moment); the archive is whole.
_TAR_DIFFERS = 1
_CHANGED = (": file changed as we read it", ": File removed before we read it")
_PIECE_BYTES = 1 << 20
_END = bytes(2 * _BLOCK)
_WRITEBACK_BYTES = 16 << 20
# Fast, and small enough: what an image store keeps and a pool unpacks (as build.py's).
_SQUASHFS = ("-comp", "zstd", "-Xcompression-level", "9", "-noappend", "-no-exports", "-no-progress", "-no-recovery")


class PackFailed(FlexdError):
    pass


class Text(Struct, frozen=True):
    """A small file of the archive."""

    name: str
    data: bytes
    mode: int = 0o644
    mtime: int = 0


class Folder(Struct, frozen=True):
    name: str
    mode: int = 0o755
    mtime: int = 0


class Tree(Struct, frozen=True):
    """A directory on this host, and what it is called in the archive."""

    path: Path
    name: str


class File(Struct, frozen=True):
    """A file on this host, which may grow meanwhile, as large as it is when its turn comes."""

    path: Path
    name: str
    mode: int = 0o600


class Written(Struct, frozen=True):
    """What a function writes to a descriptor; kept in a file beside the archive until its size is known."""

    name: str
    write: Callable[[int], Awaitable[None]]
    mode: int = 0o600


Part = Text | Folder | Tree | File | Written
Tick = Callable[[int], None]
"""Told how many bytes of archive have been made, before compression."""


class Packed(Struct, frozen=True):
    fingerprint: str
    size_bytes: int
    tar_bytes: int


class Packer:
    """`stage`: an empty directory of ours to mount on in private namespaces."""

    def __init__(self, host: Host, stage: Path) -> None:
        self._host, self._stage = host, stage

    async def pack(
        self, parts: Sequence[Part], target: Path, compressor: Compressor, tick: Tick, *, hashed: bool = True
    ) -> Packed:
        """Write a new file; on failure it is gone. Not `hashed`: it has no fingerprint."""
        try:
            async with self._output(target, compressor, hashed) as output:
                for part in parts:
                    if isinstance(part, Written):
                        await self._add_written(part, target, output, tick)
                    else:
                        await self._add(part, output, tick)
                await output.write(_END)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(target.unlink, missing_ok=True))
            raise
        return output.packed()

    async def squash(self, tree: Path, target: Path) -> None:
        """A squashfs of a tree, in a new file."""
        argv = ["mksquashfs", f"{TREE}/rootfs", OUTPUT, *_SQUASHFS]
        try:
            await asyncio.to_thread(target.touch, 0o600)
            command = reading(argv, stage=self._stage, tree=tree, name="rootfs", output=target)
            _check(await run_chain(self._host.processes, [command], stdin=None), tree)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(target.unlink, missing_ok=True))
            raise

    async def _add_written(self, part: Written, target: Path, output: "_Output", tick: Tick) -> None:
        spool = target.with_name(f"{target.name}.part")
        try:
            file = await asyncio.to_thread(_open_new, spool)
            try:
                await part.write(file)
            finally:
                await asyncio.to_thread(os.close, file)
            await self._add(File(spool, part.name, part.mode), output, tick)
        finally:
            await asyncio.shield(asyncio.to_thread(spool.unlink, missing_ok=True))

    async def _add(self, part: Text | Folder | Tree | File, output: "_Output", tick: Tick) -> None:
        if isinstance(part, File):
            await asyncio.to_thread(_add_file, part, output, tick)
            return
        if not isinstance(part, Tree):
            await output.write(_member(part))
            return
        argv = [
            *("tar", "-C", TREE, "-cf", "-", "--format=posix", "--numeric-owner", "--sort=name", "--sparse"),
            *("--acls", "--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability"),
            # Times to the second, as LXD writes them: three headers a file less.
            *("--pax-option=delete=atime,delete=ctime,delete=mtime", "--warning=no-file-ignored", part.name),
        ]
        command = reading(argv, stage=self._stage, tree=part.path, name=part.name)
        consume = partial(_join, output=output, tick=tick)
        _check(await read_chain(self._host.processes, [command], stdin=None, consume=consume), part.path)

    @contextlib.asynccontextmanager
    async def _output(self, target: Path, compressor: Compressor, hashed: bool) -> AsyncIterator["_Output"]:
        output = await _Output.open(self._host, target, compressor, hashed)
        try:
            yield output
        except BaseException as error:
            await asyncio.shield(output.abandon())
            # A writer only sees a closed pipe; what happened behind it says why.
            if output.failure is not None and isinstance(error, BrokenPipeError | PackFailed):
                raise output.failure from error
            raise
        await output.close()


class _Output:
    """The file being written: a pipe, perhaps a compressor behind it, and a thread that hashes and stores."""

    def __init__(self, target: Path, compressor: Compressor) -> None:
        self._target, self._compressor = target, compressor
        self._write_end = -1
        self._child: Spawned | None = None
        self._messages: IO[bytes] | None = None
        self._storing: asyncio.Task[tuple[str, int]] | None = None
        self.failure: BaseException | None = None
        self.tar_bytes = 0

    @classmethod
    async def open(cls, host: Host, target: Path, compressor: Compressor, hashed: bool) -> "_Output":
        output = cls(target, compressor)
        read_end, output._write_end = wide_pipe()
        try:
            if compressor.argv:
                read_end = await output._start(host, read_end)
        except BaseException:
            os.close(read_end)
            os.close(output._write_end)
            raise
        output._storing = asyncio.create_task(asyncio.to_thread(_store, read_end, target, hashed))
        return output

    async def _start(self, host: Host, read_end: int) -> int:
        compressed, out = wide_pipe()
        self._messages = await asyncio.to_thread(tempfile.TemporaryFile)
        try:
            argv = powerless(self._compressor.argv)
            self._child = await host.processes.spawn(argv, stdin=read_end, stdout=out, stderr=self._messages.fileno())
        except BaseException:
            os.close(compressed)
            raise
        finally:
            os.close(out)
        os.close(read_end)
        return compressed

    async def write(self, data: bytes) -> None:
        await asyncio.to_thread(self.write_now, data)

    def write_now(self, data: bytes | memoryview) -> None:
        """Blocking; BrokenPipeError if what is behind has given up."""
        self.tar_bytes += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._write_end, view) :]

    async def close(self) -> None:
        """No more is to come: wait until all is on disk."""
        os.close(self._write_end)
        self._write_end = -1
        try:
            await self._finish()
        except BaseException:
            await asyncio.shield(self.abandon())
            raise

    async def _finish(self) -> None:
        assert self._storing is not None
        await asyncio.wait([self._storing])
        if self._child is not None and self._messages is not None:
            status = await self._child.wait()
            said = await asyncio.to_thread(read_messages, self._messages)
            await asyncio.to_thread(self._messages.close)
            if status != 0 and self._storing.exception() is None:
                raise PackFailed(f"Failed compressing with {self._compressor.name}: {said.strip() or status}")
        self._storing.result()

    async def abandon(self) -> None:
        """End all of it; `failure` is what was wrong behind the pipe, if anything was."""
        if self._write_end >= 0:
            os.close(self._write_end)
            self._write_end = -1
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
            await self._child.wait()
        if self._storing is not None:
            await asyncio.wait([self._storing])
            self.failure = self._storing.exception()

    def packed(self) -> Packed:
        assert self._storing is not None
        return Packed(*self._storing.result(), self.tar_bytes)


def _store(descriptor: int, target: Path, hashed: bool) -> tuple[str, int]:
    """Read to the end into a new file, and to the disk; returns the sha256 (if wanted) and the size."""
    digest, total, begun = hashlib.sha256(), 0, 0
    try:
        with open(descriptor, "rb", buffering=0) as source, target.open("xb", buffering=0) as file:
            while block := source.read(_PIECE_BYTES):
                if hashed:
                    digest.update(block)
                total += len(block)
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]
                if total - begun >= _WRITEBACK_BYTES:
                    # The disk begins now (posix_fadvise(2)), so that little is left to wait for in the end.
                    os.posix_fadvise(file.fileno(), begun, total - begun, os.POSIX_FADV_DONTNEED)
                    begun = total
            os.fsync(file.fileno())
    except OSError as error:
        raise PackFailed(f"Failed writing {target.name}: {error.strerror or error}") from error
    return digest.hexdigest() if hashed else "", total


def _open_new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _add_file(part: File, output: _Output, tick: Tick) -> None:
    with part.path.open("rb", buffering=0) as file:
        info = tarfile.TarInfo(part.name)
        found = os.fstat(file.fileno())
        info.mode, info.mtime, info.size = part.mode, int(found.st_mtime), found.st_size
        output.write_now(info.tobuf(tarfile.PAX_FORMAT))
        left = info.size
        while left:
            block = file.read(min(left, _PIECE_BYTES))
            if not block:
                raise PackFailed(f"Failed reading {part.path}: it became shorter meanwhile")
            output.write_now(block)
            left -= len(block)
            tick(output.tar_bytes)
        output.write_now(bytes(-info.size % _BLOCK))


def _member(part: Text | Folder) -> bytes:
    """The header (and content) of a member that we write ourselves."""
    info = tarfile.TarInfo(part.name)
    info.mode, info.mtime = part.mode, part.mtime
    if isinstance(part, Folder):
        info.type = tarfile.DIRTYPE
        return info.tobuf(tarfile.PAX_FORMAT)
    info.size = len(part.data)
    padding = -info.size % _BLOCK
    return info.tobuf(tarfile.PAX_FORMAT) + part.data + bytes(padding)


# --- joining archives --------------------------------------------------------------------------------------------


class Joiner:
    """Follows a tar stream from header to header, to pass on all but the zeros that end it."""

    def __init__(self) -> None:
        self.ended = False
        self._head = b""
        self._left = 0  # of the current member's content, with its padding
        self._extended: bytearray | None = None  # an extended header (POSIX pax) being read
        self._next_size: int | None = None  # what that says of the next member

    def feed(self, data: memoryview) -> list[bytes | memoryview]:
        """What to pass on of this piece."""
        found: list[bytes | memoryview] = []
        while data and not self.ended:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                self._note(piece)
                found.append(piece)
                continue
            take = _BLOCK - len(self._head)
            self._head += bytes(data[:take])
            data = data[take:]
            if len(self._head) == _BLOCK:
                found.extend(self._header())
        return found

    def _header(self) -> list[bytes]:
        head, self._head = self._head, b""
        if not head.strip(b"\0"):
            self.ended = True
            return []
        kind = head[156:157]
        size = _number(head[124:136])
        if kind in (b"x", b"g"):
            self._extended = bytearray() if kind == b"x" else None
        else:
            if self._next_size is not None:
                size, self._next_size = self._next_size, None
            if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
                size = 0  # links, devices, directories and pipes have no content whatever they say
        self._left = size + -size % _BLOCK
        return [head]

    def _note(self, piece: memoryview) -> None:
        if self._extended is None:
            return
        self._extended += piece
        if not self._left:
            self._next_size = _pax_size(bytes(self._extended))
            self._extended = None


def _number(text: bytes) -> int:
    """A number of a tar header: octal, or binary where that does not fit (GNU)."""
    if text[0] & 0x80:
        return int.from_bytes(text, "big") & ~(0x80 << 8 * (len(text) - 1))
    return int(text.strip(b" \0") or b"0", 8)


def _pax_size(records: bytes) -> int | None:
    """`size` among the records `LENGTH KEY=VALUE\\n` of an extended header."""
    stream = io.BytesIO(records)
    while (length := _digits(stream)) is not None:
        rest = stream.read(max(length - len(str(length)) - 1, 0))
        key, _, value = rest.rstrip(b"\n").partition(b"=")
        if key == b"size":
            return int(value)
    return None


def _digits(stream: BinaryIO) -> int | None:
    text = b""
    while (digit := stream.read(1)).isdigit():
        text += digit
    return int(text) if text and digit == b" " else None


def _join(stream: BinaryIO, output: _Output, tick: Tick) -> None:
    joiner = Joiner()
    while piece := stream.read(_PIECE_BYTES):
        for part in joiner.feed(memoryview(piece)):
            output.write_now(part)
        tick(output.tar_bytes)
    if not joiner.ended:
        raise PackFailed("the archive ended too early")


def _check(outcome: Outcome[None], tree: Path) -> None:
    """The program's own words come first: a broken pipe or an early end only follow from them."""
    finished: Finished = outcome.programs[0]
    if isinstance(outcome.failure, BrokenPipeError):
        raise outcome.failure
    lines = [line.strip() for line in finished.messages.splitlines() if line.strip()]
    changed = finished.returncode == _TAR_DIFFERS and all(line.endswith(_CHANGED) for line in lines)
    if finished.returncode != 0 and not changed:
        said = "; ".join(lines[-3:]) or f"exited with status {finished.returncode}"
        raise PackFailed(f"Failed reading {tree}: {said}") from outcome.failure
    if outcome.failure is not None:
        raise outcome.failure
