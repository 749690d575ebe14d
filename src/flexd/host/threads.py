# SPDX-License-Identifier: Apache-2.0
"""The threads in which blocking system calls run, apart from the loop's default executor.

The default one is small (cores + 4) and everyone's; a slow disk there must not hold up a mount.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Descriptor = TypeVar("Descriptor", int, int | None)

# Threads are made on demand and idle ones are reused first, so the number only bounds how many calls may hang.
_MAX_THREADS = 16


class Threads:
    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="host")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in a thread. A cancelled caller stops waiting; the call itself runs to its end."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))

    async def open(self, function: Callable[P, Descriptor], *args: P.args, **kwargs: P.kwargs) -> Descriptor:
        """As `run`, of what opens a file descriptor: a caller that is cancelled meanwhile leaves none open."""
        opening = asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise

    def close(self) -> None:
        self._pool.shutdown(wait=False)


def _close_opened(opening: "asyncio.Future[Descriptor]") -> None:
    if not opening.cancelled() and opening.exception() is None and (fd := opening.result()) is not None:
        os.close(fd)
