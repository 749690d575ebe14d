# SPDX-License-Identifier: Apache-2.0
"""The store of one host, in one SQLite file: durable when `txn` returns (WAL, synchronous=FULL).

`kv` holds the documents, `log` the history that a watch replays. The writer thread hands each committed
transaction to the loop before its `txn` returns, so watchers hear of it in order and nothing polls.
"""

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from flexd.api.errors import NotFound
from flexd.store.contract import Change, Delete, Entry, HistoryGone, If, Put, RevisionConflict, Store
from flexd.store.database import Database, transaction
from flexd.store.limits import check_transaction

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
# Revisions kept for watches that resume; a mirror resumes within seconds, so an hour of heavy writing is plenty.
HISTORY = 10_000
# How often the log is cut, in revisions: one DELETE then costs as much as one write.
PRUNE_EVERY = 256
# Changes a watcher may lag behind before it is told to read the log instead; bounds its memory.
WATCH_BACKLOG = 4096

Changes = list[Change]
Written = tuple[int, Changes]


class SqliteStore(Store):
    """`await SqliteStore.open(path)`; contract and semantics: `flexd.store.contract`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._loop = asyncio.get_running_loop()
        self._watchers: set[_Watcher] = set()
        self._leases: dict[int, _Lease] = {}
        self._expiring: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, path: Path) -> "SqliteStore":
        """Open or create the file; leases of an earlier run get their full time again."""
        store = cls(await Database.open(path, MIGRATIONS, "FULL"))
        for lease, ttl_s in await store._database.run(_leases):
            store._arm(lease, ttl_s)
        return store

    async def get(self, key: str) -> Entry | None:
        return await self._database.run(lambda connection: _get(connection, key))

    async def list(self, prefix: str) -> list[Entry]:
        return await self._database.run(lambda connection: _list(connection, prefix))

    async def txn(self, ops: Sequence[Put | Delete], conditions: Sequence[If] = ()) -> int:
        check_transaction(ops)
        return await self._write(lambda connection: _apply(connection, ops, conditions))

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[Change]:
        watcher = _Watcher(prefix)
        self._watchers.add(watcher)
        last = replayed = from_revision
        try:
            while not watcher.closed:
                if watcher.behind:
                    watcher.behind = False
                    changes, replayed = await self._database.run(partial(_replay, prefix, last))
                    last = replayed
                    for change in changes:
                        yield change
                while watcher.pending:
                    change = watcher.pending.popleft()
                    if change.revision > replayed:
                        last = change.revision
                        yield change
                await watcher.wait_news()
        finally:
            self._watchers.discard(watcher)

    async def grant(self, ttl_s: float) -> int:
        lease = await self._database.run(lambda connection: _grant(connection, ttl_s))
        self._arm(lease, ttl_s)
        return lease

    async def keepalive(self, lease: int) -> bool:
        held = self._leases.get(lease)
        if held is None:
            return False
        held.timer.cancel()
        self._arm(lease, held.ttl_s)
        return True

    async def revoke(self, lease: int) -> None:
        held = self._leases.pop(lease, None)
        if held is not None:
            held.timer.cancel()
        await self._write(lambda connection: _revoke(connection, lease))

    async def revision(self) -> int:
        return await self._database.run(lambda connection: _counter(connection, "revision"))

    async def close(self) -> None:
        """End the watches; leases stay in the file."""
        for held in self._leases.values():
            held.timer.cancel()
        self._leases.clear()
        await asyncio.gather(*self._expiring)
        for watcher in self._watchers:
            watcher.close()
        await self._database.close()

    async def _write(self, job: Callable[[sqlite3.Connection], Written]) -> int:
        def whole(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                revision, changes = job(connection)
            if changes:
                # From this thread, not after the await: a caller that was cancelled must not swallow the news.
                self._loop.call_soon_threadsafe(self._publish, changes)
            return revision

        return await self._database.run(whole)

    def _publish(self, changes: Changes) -> None:
        for watcher in self._watchers:
            watcher.offer(changes)

    def _arm(self, lease: int, ttl_s: float) -> None:
        self._leases[lease] = _Lease(ttl_s, self._loop.call_later(ttl_s, self._expire, lease))

    def _expire(self, lease: int) -> None:
        self._leases.pop(lease, None)
        task = self._loop.create_task(self._end_lease(lease))
        self._expiring.add(task)
        task.add_done_callback(self._expiring.discard)

    async def _end_lease(self, lease: int) -> None:
        try:
            await self.revoke(lease)
        except Exception:  # border: a background task; the lease is ended again after the next restart
            log.exception("Failed ending lease %d", lease)


class _Lease:
    def __init__(self, ttl_s: float, timer: asyncio.TimerHandle) -> None:
        self.ttl_s, self.timer = ttl_s, timer


class _Watcher:
    """What one watch has not delivered yet. `behind`: read the log, the queue does not hold everything."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.pending: deque[Change] = deque()
        self.behind = True
        self.closed = False
        self._news = asyncio.Event()

    def offer(self, changes: Iterable[Change]) -> None:
        """One transaction, whole: either all of it is queued or the watch goes back to the log."""
        if len(self.pending) >= WATCH_BACKLOG:
            self.behind = True
        else:
            self.pending.extend(change for change in changes if change.key.startswith(self.prefix))
        self._news.set()

    async def wait_news(self) -> None:
        if not (self.pending or self.behind or self.closed):
            await self._news.wait()
        self._news.clear()

    def close(self) -> None:
        self.closed = True
        self._news.set()


# Below: the statements. All run in the database's thread.


def _counter(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute("SELECT value FROM counter WHERE name = ?", (name,)).fetchone()[0])


def _set_counter(connection: sqlite3.Connection, name: str, value: int) -> None:
    connection.execute("UPDATE counter SET value = ? WHERE name = ?", (value, name))


def _get(connection: sqlite3.Connection, key: str) -> Entry | None:
    row = connection.execute("SELECT key, value, revision FROM kv WHERE key = ?", (key,)).fetchone()
    return None if row is None else Entry(*row)


def _list(connection: sqlite3.Connection, prefix: str) -> list[Entry]:
    rows = connection.execute(
        "SELECT key, value, revision FROM kv WHERE key >= ? AND key < ? ORDER BY key", _range(prefix)
    )
    return [Entry(*row) for row in rows]


def _range(prefix: str) -> tuple[str, str]:
    """SQLite compares text as UTF-8 bytes, in which the last code point sorts after every key's next character."""
    return prefix, prefix + "\U0010ffff"


def _apply(connection: sqlite3.Connection, ops: Sequence[Put | Delete], conditions: Sequence[If]) -> Written:
    for condition in conditions:
        entry = _get(connection, condition.key)
        found = 0 if entry is None else entry.revision
        if found != condition.revision:
            raise RevisionConflict(condition.key, condition.revision, found)
    revision = _counter(connection, "revision") + 1
    changes = [change for op in ops if (change := _apply_one(connection, op, revision)) is not None]
    return _record(connection, revision, changes)


def _apply_one(connection: sqlite3.Connection, op: Put | Delete, revision: int) -> Change | None:
    if isinstance(op, Delete):
        gone = connection.execute("DELETE FROM kv WHERE key = ?", (op.key,)).rowcount
        return Change(op.key, None, revision) if gone else None
    if op.lease and not connection.execute("SELECT 1 FROM lease WHERE id = ?", (op.lease,)).fetchone():
        raise NotFound(f'Failed writing "{op.key}": lease {op.lease} has ended')
    row = (op.key, op.value, revision, op.lease)
    connection.execute("INSERT OR REPLACE INTO kv (key, value, revision, lease) VALUES (?, ?, ?, ?)", row)
    return Change(op.key, op.value, revision)


def _record(connection: sqlite3.Connection, revision: int, changes: list[Change]) -> Written:
    if not changes:
        return revision - 1, []
    connection.executemany(
        "INSERT INTO log (revision, position, key, value) VALUES (?, ?, ?, ?)",
        [(revision, position, change.key, change.value) for position, change in enumerate(changes)],
    )
    _set_counter(connection, "revision", revision)
    if revision % PRUNE_EVERY == 0 and revision > HISTORY:
        connection.execute("DELETE FROM log WHERE revision <= ?", (revision - HISTORY,))
        _set_counter(connection, "pruned", revision - HISTORY)
    return revision, changes


def _replay(prefix: str, from_revision: int, connection: sqlite3.Connection) -> tuple[Changes, int]:
    pruned = _counter(connection, "pruned")
    if from_revision < pruned:
        raise HistoryGone(from_revision, pruned)
    rows = connection.execute(
        "SELECT key, value, revision FROM log WHERE revision > ? AND key >= ? AND key < ? ORDER BY revision, position",
        (from_revision, *_range(prefix)),
    )
    return [Change(*row) for row in rows], max(from_revision, _counter(connection, "revision"))


def _leases(connection: sqlite3.Connection) -> list[tuple[int, float]]:
    return connection.execute("SELECT id, ttl_s FROM lease").fetchall()


def _grant(connection: sqlite3.Connection, ttl_s: float) -> int:
    lease = connection.execute("INSERT INTO lease (ttl_s) VALUES (?)", (ttl_s,)).lastrowid
    assert lease is not None
    return lease


def _revoke(connection: sqlite3.Connection, lease: int) -> Written:
    keys = connection.execute("SELECT key FROM kv WHERE lease = ? ORDER BY key", (lease,)).fetchall()
    connection.execute("DELETE FROM lease WHERE id = ?", (lease,))
    return _apply(connection, [Delete(key) for (key,) in keys], ())
