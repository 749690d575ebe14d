# SPDX-License-Identifier: Apache-2.0
"""Ends of pipes, sockets and terminals on the event loop: reads and writes that wait without blocking it."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

# A pipe holds 64 KiB by default (pipe(7)); websocket frames of 32-128 KiB cost least (style.md 7.2).
CHUNK_BYTES = 64 * 1024


async def _wait(
    fd: int, add: Callable[..., None], remove: Callable[[int], bool], stop: asyncio.Event | None = None
) -> None:
    """Return when the descriptor is ready, or when `stop` is set."""
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    add(fd, note_ready)
    stopping = asyncio.ensure_future(stop.wait()) if stop is not None else None
    awaited: list[asyncio.Future[Any]] = [ready] if stopping is None else [ready, stopping]
    try:
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        remove(fd)
        if stopping is not None:
            stopping.cancel()


async def read_some(fd: int, stop: asyncio.Event | None = None) -> bytes:
    """What is there, at least a byte; empty at the end. Once `stop` is set: what is still there, then the end, even
    if somebody else keeps the other end open. `fd` must not block."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            if stop is not None and stop.is_set():
                return b""
        except OSError:  # EIO: the last user of a terminal's other side has gone (pty(7))
            return b""
        await _wait(fd, loop.add_reader, loop.remove_reader, stop)


async def write_all(fd: int, data: bytes) -> bool:
    """Write everything; False if nobody reads any more. `fd` must not block."""
    loop = asyncio.get_running_loop()
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await _wait(fd, loop.add_writer, loop.remove_writer)
        except OSError:  # EPIPE, EIO
            return False
    return True


def make_pipe() -> tuple[int, int]:
    """(read end, write end), close-on-exec; both block until `os.set_blocking` says otherwise."""
    return os.pipe2(os.O_CLOEXEC)
