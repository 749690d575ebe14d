# SPDX-License-Identifier: Apache-2.0
"""Everything below a prefix, in memory: filled by list, kept by watch. Reads never touch the engine.

The daemon holds one mirror; `Documents` decode what it holds. It watches all keys, so that it sees every revision
and knows when a write has arrived.
"""

import asyncio
import logging
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

from flexd.api.errors import Unavailable
from flexd.store.contract import Change, Delete, Entry, HistoryGone, If, Put, Store
from flexd.store.documents import Mirror

log = logging.getLogger(__name__)

# Before the mirror asks an engine again that failed; an election in etcd takes 1-2 s.
RETRY_S = 1.0

Callback = Callable[[Change], None]


class StoreMirror(Mirror):
    """`await StoreMirror.open(store)`; satisfies `documents.Mirror`."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._entries: dict[str, Entry] = {}
        self._keys: list[str] = []
        self._applied = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._subscribers: list[tuple[str, Callback]] = []
        self._follower: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, store: Store, prefix: str = "/") -> "StoreMirror":
        """A mirror that shows all that was written before this call."""
        mirror = cls(store, prefix)
        await mirror._fill()
        mirror._follower = asyncio.create_task(mirror._follow(), name="store mirror")
        await mirror._wait_applied(await store.revision())
        return mirror

    async def close(self) -> None:
        """Stop following; the store stays open, who waits for a write is told."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
            self._follower = None
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(Unavailable("The daemon is shutting down"))
        self._waiting.clear()

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def list(self, prefix: str) -> list[Entry]:
        """Entries below prefix, sorted by key."""
        start = bisect_left(self._keys, prefix)
        end = bisect_left(self._keys, prefix + "\U0010ffff", start)
        return [self._entries[key] for key in self._keys[start:end]]

    async def txn(self, ops: Sequence[Put | Delete], conditions: Sequence[If] = ()) -> int:
        """As the store's, and the mirror shows the change when it returns."""
        revision = await self._store.txn(ops, conditions)
        await self._wait_applied(revision)
        return revision

    def subscribe(self, prefix: str, callback: Callback) -> Callable[[], None]:
        """Call back with every change below prefix, in order, in the loop, after its whole transaction is shown and
        before the `txn` that made it returns. Returns the function that ends it."""
        subscriber = (prefix, callback)
        self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)

        return unsubscribe

    async def _wait_applied(self, revision: int) -> None:
        if self._applied >= revision:
            return
        if self._follower is None:
            raise Unavailable("The daemon is shutting down")
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((revision, future))
        await future

    async def _fill(self) -> None:
        """Take over the engine's present state; what changed meanwhile comes again through the watch."""
        start = await self._store.revision()
        entries = {entry.key: entry for entry in await self._store.list(self._prefix)}
        for key in [key for key in self._keys if key not in entries]:
            self._apply(Change(key, None, start))
        for entry in entries.values():
            self._apply(Change(entry.key, entry.value, entry.revision))
        self._reached(start)

    async def _follow(self) -> None:
        while True:
            try:
                async for change in self._store.watch("", self._applied):
                    if change.key.startswith(self._prefix):
                        self._apply(change)
                    self._reached(change.revision)
                return  # the store was closed
            except HistoryGone:
                log.info("The store's history was pruned beyond revision %d: reading all of it", self._applied)
            except Exception:  # border: a background task that must outlive an engine's failure
                log.exception("Failed following the store; trying again")
                await asyncio.sleep(RETRY_S)
            await self._refill()

    async def _refill(self) -> None:
        while True:
            try:
                return await self._fill()
            except Exception:  # border: as above
                log.exception("Failed reading the store; trying again")
                await asyncio.sleep(RETRY_S)

    def _apply(self, change: Change) -> None:
        known = self._entries.get(change.key)
        if known is not None and known.revision >= change.revision and change.value is not None:
            return
        if change.value is None:
            if known is None or known.revision > change.revision:
                return
            del self._entries[change.key]
            del self._keys[bisect_left(self._keys, change.key)]
        else:
            self._entries[change.key] = Entry(change.key, change.value, change.revision)
            if known is None:
                insort(self._keys, change.key)
        self._announce(change)

    def _announce(self, change: Change) -> None:
        loop = asyncio.get_running_loop()
        for prefix, callback in self._subscribers:
            if change.key.startswith(prefix):
                # Soon, not now: by then the rest of the transaction is applied too.
                loop.call_soon(_call, callback, change)

    def _reached(self, revision: int) -> None:
        self._applied = max(self._applied, revision)
        if not self._waiting:
            return
        for wanted, future in self._waiting:
            if wanted <= self._applied and not future.done():
                future.set_result(None)
        self._waiting = [(wanted, future) for wanted, future in self._waiting if not future.done()]


def _call(callback: Callback, change: Change) -> None:
    try:
        callback(change)
    except Exception:  # border: one subscriber's mistake must not stop the others
        log.exception('Failed telling a subscriber that "%s" changed', change.key)
