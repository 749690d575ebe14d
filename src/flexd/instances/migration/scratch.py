# SPDX-License-Identifier: Apache-2.0
"""Things on this host's disk for the time of a migration, gone after it even if it is cancelled while they are made."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")


async def made(make: Callable[[], T], discard: Callable[[T], None]) -> T:
    """The result of `make`, in a thread; discarded if it is not wanted any more when it is there."""
    making = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await to_the_end(asyncio.wait([making]))
        if making.exception() is None:
            await to_the_end(asyncio.to_thread(discard, making.result()))
        raise


async def to_the_end(work: Awaitable[object]) -> None:
    """See a short piece of clearing up to its end; a cancellation that arrives meanwhile has nothing left to stop."""
    doing = asyncio.ensure_future(work)
    while not doing.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(doing)


@contextlib.asynccontextmanager
async def scratch_directory() -> AsyncIterator[Path]:
    path = await made(_new_directory, _remove)
    try:
        yield path
    finally:
        await to_the_end(asyncio.to_thread(_remove, path))


@contextlib.asynccontextmanager
async def scratch_file(text: str = "") -> AsyncIterator[IO[bytes]]:
    """A file without a name, at its beginning."""

    def make() -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        file.write(text.encode())
        file.seek(0)
        return file

    file = await made(make, lambda file: file.close())
    try:
        yield file
    finally:
        file.close()


def _new_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="flexd-migration-"))


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
