# SPDX-License-Identifier: Apache-2.0
"""The threads in which blocking system calls run, apart from the loop's default executor.

The default one is small (cores + 4) and everyone's; a slow disk there must not hold up a mount.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Threads are made on demand and idle ones are reused first, so the number only bounds how many calls may hang.
_MAX_THREADS = 16


class Threads:
    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="host")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in a thread. A cancelled caller stops waiting; the call itself runs to its end."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def close(self) -> None:
        self._pool.shutdown(wait=False)
