# SPDX-License-Identifier: Apache-2.0
"""What is SQLite's own: the file, its history's length, a slow watcher."""

import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from flexd.api.errors import FlexdError
from flexd.store import sqlite
from flexd.store.contract import HistoryGone, Put
from flexd.store.database import Database, DatabaseFailed
from flexd.store.sqlite import SqliteStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "store.db")
    yield store
    await store.close()


async def test_the_file_is_for_root_only(store: SqliteStore, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "store.db").stat().st_mode) == 0o600


async def test_a_second_daemon_is_refused(store: SqliteStore, tmp_path: Path) -> None:
    await store.txn([Put("/a", b"1")])
    with pytest.raises(DatabaseFailed, match=r"store\.db.*another daemon"):
        await SqliteStore.open(tmp_path / "store.db")


async def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(DatabaseFailed, match=r"store\.db.*not a database"):
        await SqliteStore.open(path)


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(FlexdError, match="schema 999 is newer"):
        await SqliteStore.open(path)


async def test_a_failed_migration_leaves_the_schema_as_it_was(tmp_path: Path) -> None:
    migrations = tmp_path / "migrations"
    migrations.mkdir()
    (migrations / "0001_first.sql").write_text("CREATE TABLE first (a);")
    (migrations / "0002_second.sql").write_text("CREATE TABLE second (a); CREATE TABLE first (a);")
    path = tmp_path / "store.db"
    with pytest.raises(DatabaseFailed, match="already exists"):
        await Database.open(path, migrations, "FULL")
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("first",)]
    connection.close()


async def test_history_is_pruned_and_a_watch_from_before_is_told(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "HISTORY", 5)
    monkeypatch.setattr(sqlite, "PRUNE_EVERY", 1)
    for number in range(10):
        await store.txn([Put("/a", b"%d" % number)])
    with pytest.raises(HistoryGone) as caught:
        await anext(store.watch("/", 4))
    assert caught.value.oldest == 5
    async with aclosing(store.watch("/", 5)) as watch:
        assert [(await anext(watch)).value for _ in range(5)] == [b"5", b"6", b"7", b"8", b"9"]


async def test_a_slow_watcher_catches_up_from_the_log(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "WATCH_BACKLOG", 3)
    async with aclosing(store.watch("/", 0)) as watch:
        await store.txn([Put("/first", b"")])
        assert (await anext(watch)).key == "/first"
        for number in range(20):
            await store.txn([Put(f"/a{number:02}", b""), Put(f"/b{number:02}", b"")])
        seen = [(await anext(watch)).key for _ in range(40)]
    assert seen == [key for number in range(20) for key in (f"/a{number:02}", f"/b{number:02}")]


async def test_a_cancelled_job_is_carried_out_before_the_cancellation_shows(store: SqliteStore) -> None:
    writer = asyncio.create_task(store.txn([Put("/a", b"1")]))
    await asyncio.sleep(0)
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    assert await store.get("/a") is not None
