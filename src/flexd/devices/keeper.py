# SPDX-License-Identifier: Apache-2.0
"""Processes beside a running instance (a proxy): one that dies is started again, later each time if it dies often."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from flexd.api.errors import FlexdError

log = logging.getLogger(__name__)

Key = tuple[str, str]  # runtime name, device

# At once for one that was killed; for one that cannot live (its port is taken meanwhile), not more than twice a minute.
_FIRST_S, _LONGEST_S = 0.1, 30.0
# One that lived for so long starts over with the shortest delay.
_STEADY_S = 60.0


class Keeper:
    """One per daemon; costs nothing while nothing is kept."""

    def __init__(self, first_s: float = _FIRST_S) -> None:
        self._first_s = first_s
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    async def keep(self, key: Key, gone: Callable[[], Awaitable[None]], again: Callable[[], Awaitable[None]]) -> None:
        """In the place of what was kept so far. `gone` returns when the process has ended, at once if there is none;
        `again` starts another."""
        await self.release(key)
        self._tasks[key] = asyncio.create_task(self._run(key, gone, again), name=f"keep {key[1]} of {key[0]}")

    async def release(self, key: Key) -> None:
        """After this nothing is started any more, nor still being started."""
        await self._end([task for task in (self._tasks.pop(key, None),) if task is not None])

    async def close(self) -> None:
        """The processes stay; the next daemon takes them up."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        await self._end(tasks)

    async def _end(self, tasks: list["asyncio.Task[None]"]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: Key, gone: Callable[[], Awaitable[None]], again: Callable[[], Awaitable[None]]) -> None:
        loop, delay_s = asyncio.get_running_loop(), self._first_s
        while True:
            began = loop.time()
            await gone()
            if loop.time() - began > _STEADY_S:
                delay_s = self._first_s
            log.warning('device "%s" of "%s": its process ended; another is started in %g s', key[1], key[0], delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_S)
            try:
                await again()
            except FlexdError as error:
                log.error('device "%s" of "%s": %s', key[1], key[0], error)
