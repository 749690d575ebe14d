# SPDX-License-Identifier: Apache-2.0
"""Trees of files between this host and a channel: programs at both ends, bytes in between.

A stream ends with an empty text message, as everywhere in LXD's protocol.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import IO

import flexd
from flexd.api.idmap import IdMap
from flexd.host.contract import Host, Spawned
from flexd.host.streams import make_pipe, read_some, write_all
from flexd.instances.migration.peer import MigrationFailed, PeerGone
from flexd.instances.migration.scratch import scratch_file, to_the_end
from flexd.operations.contract import Channel

Count = Callable[[int], None]
"""Told of bytes that went over the channel."""

_PACKAGE = str(Path(flexd.__file__).parent.parent)
_PROGRAM = "import sys; sys.path.insert(0, {place!r}); from flexd.host.{module} import main; main()"
_STDERR_TAIL_BYTES = 4096
# A listing has about 60 bytes for a file: this is one of ten million files.
LISTING_BYTES = 1 << 30
# Fewer and larger pieces cost less; the kernel's limit for everybody is 1 MiB (pipe(7), pipe-max-size).
_F_SETPIPE_SZ, _PIPE_BYTES = 1031, 1 << 19


class StreamFailed(MigrationFailed):
    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"Failed {what}: {reason}")


async def send_tree(
    host: Host,
    tree: Path,
    channel: Channel,
    count: Count,
    *,
    known: Path | None = None,
    exact: bool = False,
    note: Path | None = None,
) -> None:
    """Send a tree whose ids are the container's. `known`: the receiver's listing; or, `exact`, our note of the pass
    before, and only what differs is sent. `note`: where to keep what was sent, for the next pass."""
    options = ["--known", str(known)] if known is not None else []
    options += ["--exact"] if exact else []
    options += ["--note", str(note)] if note is not None else []
    program = _program("tree_send", "send", str(tree), *options)
    await _from_program(host, program, channel, count, f"reading {tree}")


async def send_listing(host: Host, tree: Path, idmap: IdMap, channel: Channel, count: Count) -> None:
    """Tell what a tree holds, whose ids are the host's under a map."""
    program = _program("tree_send", "list", str(tree))
    await _from_program(host, program, channel, count, f"listing {tree}", stdin=_map_lines(idmap))


async def receive_tree(host: Host, tree: Path, idmap: IdMap, channel: Channel, count: Count) -> None:
    """Apply what arrives to a tree, with ids of the host under a map."""
    reading, writing = make_pipe()
    try:
        program = _program("tree_receive", str(tree), str(reading))
        async with running(host, program, f"writing {tree}", stdin=_map_lines(idmap), pass_fds=(reading,)) as child:
            os.close(reading)
            reading = -1
            await drain(channel, writing, count)
            os.close(writing)
            writing = -1
            await child.wait()
    finally:
        for fd in (reading, writing):
            if fd >= 0:
                os.close(fd)


async def receive_listing(channel: Channel, file: Path, count: Count) -> bool:
    """Keep what the receiver lists; False if it has nothing."""
    total = 0
    with await asyncio.to_thread(file.open, "wb") as target:
        async for piece in pieces(channel, count):
            total += len(piece)
            if total > LISTING_BYTES:
                raise StreamFailed("receiving the target's listing", f"it has more than {LISTING_BYTES} bytes")
            await asyncio.to_thread(target.write, piece)
    return total > 0


async def pieces(channel: Channel, count: Count) -> AsyncIterator[bytes]:
    """What arrives until the end of the stream."""
    while (message := await channel.receive()) is not None:
        if isinstance(message, str):
            return
        count(len(message))
        yield message
    raise PeerGone


async def end_stream(channel: Channel) -> None:
    try:
        await channel.send("")
    except ConnectionError as error:
        raise PeerGone from error


async def _from_program(
    host: Host, argv: Sequence[str], channel: Channel, count: Count, what: str, *, stdin: str = ""
) -> None:
    reading, writing = make_pipe()
    try:
        async with running(host, argv, what, stdin=stdin, stdout=writing) as child:
            os.close(writing)
            writing = -1
            await fill(channel, reading, count)
            await child.wait()
    finally:
        for fd in (reading, writing):
            if fd >= 0:
                os.close(fd)
    await end_stream(channel)


async def fill(channel: Channel, fd: int, count: Count) -> None:
    """Send what can be read from a pipe until its end."""
    _widen(fd)
    os.set_blocking(fd, False)
    try:
        while data := await read_some(fd):
            count(len(data))
            await channel.send(data)
    except ConnectionError as error:
        raise PeerGone from error


async def drain(channel: Channel, fd: int, count: Count) -> None:
    """Write what arrives into a pipe; who reads it and ends says why itself."""
    _widen(fd)
    os.set_blocking(fd, False)
    async for piece in pieces(channel, count):
        if not await write_all(fd, piece):
            return


def _widen(fd: int) -> None:
    import fcntl

    with contextlib.suppress(OSError):  # more than the user's share of pipe memory: it works with less
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_BYTES)


@contextlib.asynccontextmanager
async def running(
    host: Host,
    argv: Sequence[str],
    what: str,
    *,
    stdin: str = "",
    given: int | None = None,
    stdout: int | None = None,
    pass_fds: Sequence[int] = (),
    forgiven: Callable[[int, str], bool] = lambda _status, _said: False,
) -> AsyncIterator[Spawned]:
    """A program for the time of the block, which waits for its end; it fails with what the program said, unless its
    status and words are `forgiven`. Input is a text, or a descriptor."""
    child: Spawned | None = None
    async with scratch_file() as messages, scratch_file(stdin) as text:
        try:
            child = await host.processes.spawn(
                argv,
                stdin=text.fileno() if given is None else given,
                stdout=stdout,
                stderr=messages.fileno(),
                pass_fds=pass_fds,
            )
            yield child
        finally:
            if child is not None and child.returncode is None:
                child.kill()
                await to_the_end(child.wait())
            # One that was killed by us was in the middle of it: another failure is under way.
            status = child.returncode if child is not None else None
            said = await asyncio.to_thread(_tail, messages) if status else ""
            if status and status > 0 and not forgiven(status, said):
                raise StreamFailed(what, said or f"exited with status {status}")


def _tail(file: IO[bytes]) -> str:
    size = os.fstat(file.fileno()).st_size
    start = max(0, size - _STDERR_TAIL_BYTES)
    return os.pread(file.fileno(), _STDERR_TAIL_BYTES, start).decode(errors="replace").strip()


def _program(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", _PROGRAM.format(place=_PACKAGE, module=module), *arguments]


def _map_lines(idmap: IdMap) -> str:
    return "".join(f"{kind} {line}\n" for kind in "ug" for line in idmap.proc_lines(users=kind == "u").splitlines())
