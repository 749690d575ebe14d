# SPDX-License-Identifier: Apache-2.0
"""Named locks: one operation at a time on an instance, a volume or a network.

Keys are free text (`instance/default/c1`); a lock exists while somebody holds or awaits it. Not re-entrant.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from flexd.api.errors import BadRequest


class Busy(BadRequest):
    """Somebody else is at work on it."""

    def __init__(self, subject: str, reason: str) -> None:
        self.subject, self.reason = subject, reason
        super().__init__(f'{subject} is busy running a "{reason}" operation')


class _Lock:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.reason = ""
        self.users = 0


class Locks:
    def __init__(self) -> None:
        self._locks: dict[str, _Lock] = {}

    @asynccontextmanager
    async def hold(self, key: str, reason: str) -> AsyncIterator[None]:
        """Hold the lock for the body; wait for whoever came first. `reason` is told to those who do not wait."""
        held = self._locks.setdefault(key, _Lock())
        held.users += 1
        try:
            async with held.lock:
                held.reason = reason
                yield
        finally:
            held.users -= 1
            if not held.users:
                del self._locks[key]

    @asynccontextmanager
    async def try_hold(self, key: str, reason: str, subject: str = "Instance") -> AsyncIterator[None]:
        """As `hold`, but `Busy` instead of waiting: `Instance is busy running a "start" operation`."""
        running = self.busy(key)
        if running is not None:
            raise Busy(subject, running)
        async with self.hold(key, reason):
            yield

    @asynccontextmanager
    async def hold_all(self, keys: Iterable[str], reason: str) -> AsyncIterator[None]:
        """Hold several. All callers take them in the same order, so none waits for another in a circle."""
        async with AsyncExitStack() as stack:
            for key in sorted(set(keys)):
                await stack.enter_async_context(self.hold(key, reason))
            yield

    def busy(self, key: str) -> str | None:
        """The reason of whoever holds or is about to hold the lock; None if it is free."""
        held = self._locks.get(key)
        return None if held is None else held.reason
