# SPDX-License-Identifier: Apache-2.0
"""What every engine of the store must do."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from flexd.api.errors import NotFound, TooLarge
from flexd.store.contract import Change, Delete, Entry, If, Put, RevisionConflict, Store
from tests.contract.store.engines import OpenStore

ROOT = Path(__file__).parents[3]


async def take(watch: AsyncIterator[Change], count: int) -> list[Change]:
    """The next changes of a watch."""
    async with asyncio.timeout(10):
        return [await anext(watch) for _ in range(count)]


async def gone(store: Store, key: str) -> None:
    """Wait until a key has vanished."""
    async with asyncio.timeout(10):
        async with aclosing(store.watch(key, 0)) as changes:
            async for change in changes:
                if change.value is None:
                    return


async def test_a_written_document_is_read_back(store: Store) -> None:
    revision = await store.txn([Put("/instances/default/c1", b"{}")])
    assert await store.get("/instances/default/c1") == Entry("/instances/default/c1", b"{}", revision)


async def test_an_absent_key_reads_as_none(store: Store) -> None:
    assert await store.get("/nothing") is None


async def test_a_list_holds_what_is_below_the_prefix_sorted(store: Store) -> None:
    await store.txn([Put(key, b"1") for key in ("/b/2", "/a/1", "/b/10", "/b/ü", "/b/\U0001f600", "/c")])
    assert [entry.key for entry in await store.list("/b/")] == ["/b/10", "/b/2", "/b/ü", "/b/\U0001f600"]
    assert len(await store.list("")) == 6


async def test_wildcards_in_a_prefix_are_plain_characters(store: Store) -> None:
    await store.txn([Put("/a%b", b""), Put("/axb", b""), Put("/a_c", b"")])
    assert [entry.key for entry in await store.list("/a%")] == ["/a%b"]
    assert [entry.key for entry in await store.list("/a_")] == ["/a_c"]


async def test_revisions_rise_and_are_shared_within_a_transaction(store: Store) -> None:
    first = await store.txn([Put("/a", b"1"), Put("/b", b"1")])
    second = await store.txn([Put("/b", b"2")])
    assert second > first
    assert {entry.key: entry.revision for entry in await store.list("/")} == {"/a": first, "/b": second}
    assert await store.revision() == second


async def test_a_transaction_that_changes_nothing_has_the_present_revision(store: Store) -> None:
    revision = await store.txn([Put("/a", b"1")])
    assert await store.txn([Delete("/absent")]) == revision
    assert await store.txn([], [If("/a", revision)]) == revision


async def test_create_only_if_absent(store: Store) -> None:
    await store.txn([Put("/a", b"1")], [If("/a", 0)])
    with pytest.raises(RevisionConflict) as caught:
        await store.txn([Put("/a", b"2")], [If("/a", 0)])
    assert caught.value.key == "/a"
    entry = await store.get("/a")
    assert entry is not None
    assert entry.value == b"1"


async def test_compare_and_set(store: Store) -> None:
    old = await store.txn([Put("/a", b"1")])
    new = await store.txn([Put("/a", b"2")], [If("/a", old)])
    with pytest.raises(RevisionConflict) as caught:
        await store.txn([Put("/a", b"3")], [If("/a", old)])
    assert (caught.value.expected, caught.value.found) == (old, new)


async def test_a_failed_condition_undoes_the_whole_transaction(store: Store) -> None:
    await store.txn([Put("/a", b"1"), Put("/b", b"1")])
    revision = await store.revision()
    with pytest.raises(RevisionConflict):
        await store.txn([Put("/a", b"2"), Delete("/b"), Put("/c", b"2")], [If("/absent", 7)])
    assert [(entry.key, entry.value) for entry in await store.list("/")] == [("/a", b"1"), ("/b", b"1")]
    assert await store.revision() == revision


async def test_the_limits_of_a_transaction(store: Store) -> None:
    await store.txn([Put(f"/k{number}", b"") for number in range(128)])
    with pytest.raises(TooLarge):
        await store.txn([Put(f"/k{number}", b"") for number in range(129)])
    with pytest.raises(TooLarge):
        await store.txn([Put("/big", b"x" * (2 * 1024 * 1024))])
    with pytest.raises(ValueError, match="twice"):
        await store.txn([Put("/a", b"1"), Delete("/a")])


async def test_concurrent_counters_lose_nothing(store: Store) -> None:
    await store.txn([Put("/counter", b"0")])

    async def increment() -> None:
        while True:
            entry = await store.get("/counter")
            assert entry is not None
            try:
                await store.txn([Put("/counter", b"%d" % (int(entry.value) + 1))], [If("/counter", entry.revision)])
            except RevisionConflict:
                continue
            return

    await asyncio.gather(*(increment() for _ in range(20)))
    entry = await store.get("/counter")
    assert entry is not None
    assert entry.value == b"20"


async def test_concurrent_writers_get_a_revision_each(store: Store) -> None:
    revisions = await asyncio.gather(*(store.txn([Put(f"/k{number}", b"")]) for number in range(50)))
    assert len(set(revisions)) == 50
    assert len(await store.list("/k")) == 50


async def test_a_watch_replays_then_goes_live(store: Store) -> None:
    before = await store.txn([Put("/a", b"1")])
    second = await store.txn([Put("/a", b"2"), Put("/b", b"2")])
    async with aclosing(store.watch("/", before)) as watch:
        assert await take(watch, 2) == [Change("/a", b"2", second), Change("/b", b"2", second)]
        third = await store.txn([Delete("/a")])
        assert await take(watch, 1) == [Change("/a", None, third)]


async def test_a_watch_sees_its_prefix_only(store: Store) -> None:
    async with aclosing(store.watch("/a/", 0)) as watch:
        await store.txn([Put("/b/1", b""), Put("/a/1", b""), Put("/a", b"")])
        revision = await store.txn([Put("/a/2", b"")])
        assert [change.key for change in await take(watch, 2)] == ["/a/1", "/a/2"]
        assert await store.revision() == revision


async def test_a_watch_resumed_from_any_revision_misses_and_repeats_nothing(store: Store) -> None:
    revisions = [await store.txn([Put("/a", b"%d" % number), Put(f"/k{number}", b"")]) for number in range(10)]
    for resumed_at, revision in enumerate(revisions):
        async with aclosing(store.watch("/a", revision)) as watch:
            assert [change.value for change in await take(watch, 9 - resumed_at)] == [
                b"%d" % number for number in range(resumed_at + 1, 10)
            ]


async def test_every_watcher_sees_every_change_in_order_while_writers_run(store: Store) -> None:
    async def follow() -> list[Change]:
        async with aclosing(store.watch("/", 0)) as watch:
            return await take(watch, 100)

    followers = [asyncio.create_task(follow()) for _ in range(5)]
    await asyncio.gather(*(store.txn([Put(f"/a{number}", b""), Put(f"/b{number}", b"")]) for number in range(50)))
    seen = await asyncio.gather(*followers)
    revisions = [change.revision for change in seen[0]]
    assert revisions == sorted(revisions)
    assert all(other == seen[0] for other in seen)


async def test_a_cancelled_writer_does_not_hide_its_change(store: Store) -> None:
    async with aclosing(store.watch("/", 0)) as watch:
        writer = asyncio.create_task(store.txn([Put("/a", b"1")]))
        await asyncio.sleep(0)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        await store.txn([Put("/b", b"1")])
        seen = [change.key for change in await take(watch, len(await store.list("/")))]
    assert seen == [entry.key for entry in await store.list("/")]


async def test_a_closed_store_ends_its_watches(open_store: OpenStore) -> None:
    store = await open_store()

    async def follow() -> list[Change]:
        return [change async for change in store.watch("/", 0)]

    follower = asyncio.create_task(follow())
    await store.txn([Put("/a", b"1")])
    await store.close()
    assert [change.key for change in await asyncio.wait_for(follower, 10)] in ([], ["/a"])


async def test_a_lease_that_ends_takes_its_keys(store: Store) -> None:
    lease = await store.grant(0.05)
    await store.txn([Put("/live/m1", b"", lease), Put("/live/m2", b"")])
    await gone(store, "/live/m1")
    assert [entry.key for entry in await store.list("/live/")] == ["/live/m2"]
    assert not await store.keepalive(lease)


async def test_a_lease_kept_alive_outlives_its_time(store: Store) -> None:
    kept, ended = await store.grant(0.4), await store.grant(0.6)
    await store.txn([Put("/kept", b"", kept), Put("/ended", b"", ended)])
    ending = asyncio.create_task(gone(store, "/ended"))
    while not ending.done():
        assert await store.keepalive(kept)
        await asyncio.wait([ending], timeout=0.05)
    assert await store.get("/kept") is not None


async def test_a_revoked_lease_takes_its_keys(store: Store) -> None:
    lease = await store.grant(600)
    await store.txn([Put("/a", b"", lease)])
    await store.revoke(lease)
    assert await store.get("/a") is None
    assert not await store.keepalive(lease)
    await store.revoke(lease)


async def test_a_key_written_without_a_lease_leaves_its_lease(store: Store) -> None:
    lease = await store.grant(600)
    await store.txn([Put("/a", b"1", lease)])
    await store.txn([Put("/a", b"2")])
    await store.revoke(lease)
    assert await store.get("/a") is not None


async def test_an_ended_lease_takes_no_more_keys(store: Store) -> None:
    lease = await store.grant(600)
    await store.revoke(lease)
    with pytest.raises(NotFound, match="lease"):
        await store.txn([Put("/a", b"", lease)])
    assert await store.get("/a") is None


async def test_reopened_it_holds_everything(open_store: OpenStore) -> None:
    first = await open_store()
    lease = await first.grant(600)
    revision = await first.txn([Put("/a", b"1"), Put("/b", b"1", lease)])
    await first.close()
    second = await open_store()
    assert [entry.revision for entry in await second.list("/")] == [revision, revision]
    assert await second.keepalive(lease)
    async with aclosing(second.watch("/", 0)) as watch:
        assert [change.key for change in await take(watch, 2)] == ["/a", "/b"]
    assert await second.txn([Put("/c", b"")]) > revision
    await second.close()


@pytest.mark.parametrize("writes", [1, 7, 60])
async def test_a_writer_killed_with_sigkill_loses_no_acknowledged_write(
    writes: int, engine: str, open_store: OpenStore, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.contract.store.writer", engine, str(tmp_path)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    acknowledged = [int(await process.stdout.readline()) for _ in range(writes)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in (await process.stdout.read()).splitlines()]
    await process.wait()
    store = await open_store()
    numbers = [int(entry.value) for entry in await store.list("/a/")]
    assert set(acknowledged) <= set(numbers)
    assert numbers == [int(entry.value) for entry in await store.list("/b/")]
    await store.close()
