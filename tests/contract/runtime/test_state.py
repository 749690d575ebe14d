# SPDX-License-Identifier: Apache-2.0
"""Saving the state of a running container and going on from it."""

import asyncio
from pathlib import Path

import pytest

from flexd.host.linux import LinuxHost
from flexd.runtime.contract import CheckpointFailed, Ended, RestoreFailed, RunningContainer
from tests.contract.runtime.places import Place, run

# Counts, in memory: what it writes shows whether it is the same process that goes on.
_COUNT = "i=0; while true; do i=$((i+1)); echo $i >/tmp/count; sleep 0.05; done"


@pytest.fixture(autouse=True)
async def _criu(place: Place) -> None:
    if place.real:
        host = LinuxHost()
        reason = (await host.criu.facts()).reason
        await host.close()
        if reason:
            pytest.skip(reason)


async def test_what_was_saved_goes_on(place: Place, directory: Path) -> None:
    before = await _start(place)
    spec = place.spec(migratable=True)
    dump = await place.runtime.checkpoint(before, spec, directory / "images")
    ended = asyncio.create_task(place.runtime.wait_ended(before))
    await dump.finish()
    assert await ended == Ended("stop")
    assert await place.runtime.find(place.name) is None
    restore = await place.runtime.restore(spec, directory / "images")
    after = await restore.resume()
    assert await place.runtime.find(place.name) == after
    assert not await place.runtime.frozen(after)
    await _goes_on(place, after)
    await place.runtime.kill(after)
    assert await place.runtime.wait_ended(after) == Ended("stop")


async def test_a_dump_that_is_not_wanted_leaves_it_running(place: Place, directory: Path) -> None:
    container = await _start(place)
    dump = await place.runtime.checkpoint(container, place.spec(migratable=True), directory / "images")
    await dump.resume()
    assert not await place.runtime.frozen(container)
    assert await place.runtime.find(place.name) == container
    await _goes_on(place, container)
    assert any((directory / "images").iterdir())


async def test_a_restore_that_is_not_wanted_leaves_nothing(place: Place, directory: Path) -> None:
    await _save(place, directory)
    restore = await place.runtime.restore(place.spec(migratable=True), directory / "images")
    await restore.abort()
    assert await place.runtime.find(place.name) is None
    again = await place.runtime.restore(place.spec(migratable=True), directory / "images")
    await _goes_on(place, await again.resume())


async def test_what_is_not_there_is_not_restored(place: Place, directory: Path) -> None:
    with pytest.raises(RestoreFailed, match="no saved state"):
        await place.runtime.restore(place.spec(migratable=True), directory / "nothing")
    assert await place.runtime.find(place.name) is None


async def test_a_restored_container_can_be_entered_stopped_and_saved_again(place: Place, directory: Path) -> None:
    await _save(place, directory)
    spec = place.spec(migratable=True)
    container = await (await place.runtime.restore(spec, directory / "images")).resume()
    assert await run(place.runtime, container, "echo", "hello") == (0, b"hello\n", b"")
    restarted = place.restart()
    assert await restarted.find(place.name) == container
    dump = await restarted.checkpoint(container, spec, directory / "images")
    await dump.finish()
    await restarted.wait_ended(container)
    container = await (await restarted.restore(spec, directory / "images")).resume()
    await _goes_on(place, container)


async def test_a_container_not_made_for_it_is_said_to_be_so(place: Place) -> None:
    if not place.real:
        pytest.skip("the fake has no reasons of its own")
    container = await place.runtime.start(place.spec())
    found = await place.runtime.obstacles(container)
    assert [each.what for each in found] == ["it was not started fit for migration"]
    assert "migration.stateful" in found[0].remedy


async def test_all_obstacles_are_named_at_once(place: Place) -> None:
    if not place.real:
        pytest.skip("the fake has no reasons of its own")
    container = await place.runtime.start(place.spec())
    await run(place.runtime, container, "mount", "-t", "ramfs", "none", "/tmp")
    found = [each.what for each in await place.runtime.obstacles(container)]
    assert found[0] == "it was not started fit for migration"
    assert found[1] == "a ramfs is mounted on /tmp, whose content is not saved"


async def test_what_ended_cannot_be_saved(place: Place, directory: Path) -> None:
    container = await place.runtime.start(place.spec(migratable=True))
    await place.runtime.kill(container)
    with pytest.raises((CheckpointFailed, OSError)):
        await place.runtime.checkpoint(container, place.spec(), directory / "images")


async def _start(place: Place) -> RunningContainer:
    spec = place.spec(migratable=True)
    if place.real:
        inittab = place.root / "etc/inittab"
        inittab.write_text(f"::sysinit:/bin/echo booted\n::respawn:/bin/sh -c '{_COUNT}'\n")
    container = await place.runtime.start(spec)
    if place.real:
        await _goes_on(place, container)
    return container


async def _save(place: Place, directory: Path) -> None:
    container = await _start(place)
    dump = await place.runtime.checkpoint(container, place.spec(migratable=True), directory / "images")
    await dump.finish()
    await place.runtime.wait_ended(container)


async def _goes_on(place: Place, container: RunningContainer) -> None:
    """The count rises, from where it was."""
    if not place.real:
        assert not await place.runtime.frozen(container)
        return
    first = await asyncio.to_thread(_count, place.root)
    async with asyncio.timeout(20):
        while await asyncio.to_thread(_count, place.root) <= first:
            await asyncio.sleep(0.02)


def _count(root: Path) -> int:
    try:
        return int((root / "tmp/count").read_text() or 0)
    except (FileNotFoundError, ValueError):
        return 0
