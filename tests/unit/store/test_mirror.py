# SPDX-License-Identifier: Apache-2.0
"""The mirror over a real SQLite store, and over one whose watch fails."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.api.errors import Unavailable
from flexd.store import mirror as mirror_module
from flexd.store import sqlite
from flexd.store.contract import Change, Delete, If, Put, RevisionConflict
from flexd.store.mirror import StoreMirror
from flexd.store.sqlite import SqliteStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "store.db")
    yield store
    await store.close()


@pytest.fixture
async def mirror(store: SqliteStore) -> AsyncIterator[StoreMirror]:
    mirror = await StoreMirror.open(store)
    yield mirror
    await mirror.close()


async def test_it_opens_with_what_is_there(store: SqliteStore) -> None:
    await store.txn([Put("/a", b"1")])
    await store.txn([Put("/b", b"2"), Delete("/a")])
    mirror = await StoreMirror.open(store)
    assert [entry.key for entry in mirror.list("/")] == ["/b"]
    await mirror.close()


async def test_a_write_shows_at_once(mirror: StoreMirror) -> None:
    revision = await mirror.txn([Put("/a", b"1"), Put("/b", b"1")])
    entry = mirror.get("/a")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"1", revision)
    await mirror.txn([Delete("/a")])
    assert mirror.get("/a") is None
    assert [entry.key for entry in mirror.list("/")] == ["/b"]


async def test_a_write_that_changes_nothing_returns(mirror: StoreMirror) -> None:
    await mirror.txn([Delete("/absent")])


async def test_another_writers_change_arrives(store: SqliteStore, mirror: StoreMirror) -> None:
    arrived = asyncio.Event()
    mirror.subscribe("/a", lambda change: arrived.set())
    await store.txn([Put("/a", b"1")])
    await asyncio.wait_for(arrived.wait(), 10)
    assert mirror.get("/a") is not None


async def test_a_conflict_reaches_the_writer(mirror: StoreMirror) -> None:
    await mirror.txn([Put("/a", b"1")])
    with pytest.raises(RevisionConflict):
        await mirror.txn([Put("/a", b"2")], [If("/a", 0)])


async def test_a_mirror_of_a_part_writes_anywhere(store: SqliteStore) -> None:
    mirror = await StoreMirror.open(store, "/instances/")
    await mirror.txn([Put("/images/x", b"")])
    await mirror.txn([Put("/instances/c1", b"")])
    await mirror.txn([Delete("/images/x"), Delete("/instances/absent")])
    assert [entry.key for entry in mirror.list("/")] == ["/instances/c1"]
    await mirror.close()


async def test_subscribers_hear_whole_transactions_in_order_before_the_writer_returns(mirror: StoreMirror) -> None:
    heard: list[tuple[str, bool]] = []

    def listen(change: Change) -> None:
        heard.append((change.key, mirror.get("/p/a") is not None and mirror.get("/p/b") is not None))

    unsubscribe = mirror.subscribe("/p/", listen)
    await mirror.txn([Put("/p/a", b""), Put("/q/a", b""), Put("/p/b", b"")])
    assert heard == [("/p/a", True), ("/p/b", True)]
    unsubscribe()
    unsubscribe()
    await mirror.txn([Put("/p/a", b"2")])
    assert len(heard) == 2


async def test_a_failing_subscriber_disturbs_nobody(mirror: StoreMirror, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []
    mirror.subscribe("/", lambda change: int("x"))
    mirror.subscribe("/", lambda change: heard.append(change.key))
    await mirror.txn([Put("/a", b"")])
    assert heard == ["/a"]
    assert "Failed telling a subscriber" in caplog.text


async def test_concurrent_writers_each_see_their_own_write(mirror: StoreMirror) -> None:
    async def write(number: int) -> bool:
        await mirror.txn([Put(f"/k{number}", b"")])
        return mirror.get(f"/k{number}") is not None

    assert all(await asyncio.gather(*(write(number) for number in range(100))))


async def test_pruned_history_makes_it_read_anew(
    store: SqliteStore, mirror: StoreMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mirror.txn([Put("/old", b"1"), Put("/kept", b"1")])
    heard: list[str] = []
    mirror.subscribe("/", lambda change: heard.append(change.key))
    monkeypatch.setattr(sqlite, "HISTORY", 1)
    monkeypatch.setattr(sqlite, "PRUNE_EVERY", 1)
    monkeypatch.setattr(sqlite, "WATCH_BACKLOG", 0)
    await store.txn([Delete("/old")])
    for number in range(5):
        await store.txn([Put(f"/new{number}", b"")])
    await mirror.txn([Put("/last", b"")])
    assert [entry.key for entry in mirror.list("/")] == ["/kept", "/last", *(f"/new{number}" for number in range(5))]
    assert {"/old", "/new0", "/new4", "/last"} <= set(heard)


async def test_it_outlives_an_engine_that_fails(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror_module, "RETRY_S", 0.0)
    failures = iter([True, True])
    watch = store.watch

    async def failing(prefix: str, from_revision: int) -> AsyncIterator[Change]:
        if next(failures, False):
            raise ConnectionError("no leader")
        async for change in watch(prefix, from_revision):
            yield change

    monkeypatch.setattr(store, "watch", failing)
    mirror = await StoreMirror.open(store)
    await mirror.txn([Put("/a", b"")])
    assert mirror.get("/a") is not None
    assert "no leader" in caplog.text
    await mirror.close()


async def test_a_closed_mirror_leaves_nobody_waiting(store: SqliteStore) -> None:
    mirror = await StoreMirror.open(store)
    await mirror.close()
    with pytest.raises(Unavailable):
        await mirror.txn([Put("/a", b"")])


@given(st.sets(st.text("/abé\U0001f600", max_size=6)), st.text("/ab", max_size=3))
def test_a_prefix_list_is_a_filtered_sort(keys: set[str], prefix: str) -> None:
    async def listed() -> list[str]:
        mirror = StoreMirror(None, "")  # type: ignore[arg-type]  # only its memory is asked
        for key in keys:
            mirror._apply(Change(key, b"", 1))
        return [entry.key for entry in mirror.list(prefix)]

    assert asyncio.run(listed()) == sorted(key for key in keys if key.startswith(prefix))
