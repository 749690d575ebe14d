# SPDX-License-Identifier: Apache-2.0
"""A container's life: start, find, end, freeze, logs."""

import asyncio
from pathlib import Path

import pytest

from flexd.api.errors import InvalidInput
from flexd.runtime.contract import Ended, StartFailed
from flexd.runtime.fake import FakeRuntime
from tests.contract.runtime.places import Place, run


async def test_what_was_started_is_found(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    assert container.name == place.name
    assert await place.runtime.find(place.name) == container


async def test_nothing_is_found_where_nothing_runs(place: Place) -> None:
    assert await place.runtime.find(place.name) is None


async def test_another_runtime_on_the_same_directory_finds_it(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    restarted = place.restart()
    assert await restarted.find(place.name) == container
    waiting = asyncio.create_task(restarted.wait_ended(container))
    await restarted.kill(container)
    assert await waiting == Ended("stop")


async def test_closing_the_runtime_stops_nothing(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    await place.runtime.close()
    assert await place.restart().find(place.name) == container


async def test_a_kill_leaves_nothing(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    await place.runtime.kill(container)
    assert await place.runtime.find(place.name) is None
    assert await place.runtime.wait_ended(container) == Ended("stop")


async def test_killing_twice_is_no_error(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    await place.runtime.kill(container)
    await place.runtime.kill(container)


async def test_init_powers_off_when_asked(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    waiting = asyncio.create_task(place.runtime.wait_ended(container))
    # busybox init answers signals once it has read its table and printed.
    if place.real:
        await console_says(place, b"booted")
    await place.runtime.shutdown(container)
    assert await waiting == Ended("stop")


async def test_a_reboot_from_inside_is_told_from_a_poweroff(place: Place) -> None:
    for target in ("reboot", "stop"):
        container = await place.runtime.start(place.spec())
        waiting = asyncio.create_task(place.runtime.wait_ended(container))
        if isinstance(place.runtime, FakeRuntime):
            place.runtime.end(place.name, target)
        else:
            await console_says(place, b"booted")
            await run(place.runtime, container, "reboot" if target == "reboot" else "poweroff")
        assert await waiting == Ended("reboot" if target == "reboot" else "stop")
        assert await place.runtime.find(place.name) is None


async def test_it_can_be_started_again(place: Place) -> None:
    first = await place.runtime.start(place.spec())
    await place.runtime.kill(first)
    second = await place.runtime.start(place.spec())
    assert second.init != first.init


async def test_a_missing_root_fails_the_start(place: Place) -> None:
    with pytest.raises(StartFailed, match=f'Failed to start container "{place.name}".*nowhere'):
        await place.runtime.start(place.spec(rootfs=place.root / "nowhere"))
    assert await place.runtime.find(place.name) is None


async def test_an_init_that_ends_at_once_fails_the_start(place: Place) -> None:
    with pytest.raises(StartFailed, match="init ended at once"):
        await place.runtime.start(place.spec(init=("/bin/false",)))
    assert await place.runtime.find(place.name) is None


async def test_a_second_start_fails_and_leaves_the_first_alone(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    with pytest.raises(StartFailed, match="already"):
        await place.runtime.start(place.spec())
    assert await place.runtime.find(place.name) == container


async def test_a_line_break_in_a_value_is_refused(place: Place) -> None:
    with pytest.raises(InvalidInput):
        await place.runtime.start(place.spec(hostname="a\nlxc.hook.pre-start = /bin/sh"))
    assert await place.runtime.find(place.name) is None


async def test_freezing(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    assert not await place.runtime.frozen(container)
    await place.runtime.freeze(container)
    assert await place.runtime.frozen(container)
    await place.runtime.unfreeze(container)
    assert not await place.runtime.frozen(container)


async def test_a_frozen_container_can_be_killed(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    await place.runtime.freeze(container)
    await place.runtime.kill(container)
    assert await place.runtime.find(place.name) is None


async def test_the_console_log_holds_what_init_printed(place: Place) -> None:
    await place.runtime.start(place.spec())
    if isinstance(place.runtime, FakeRuntime):
        await place.runtime.write_console(place.name, b"booted\r\n")
    await console_says(place, b"booted")
    await place.runtime.clear_console_log(place.name)
    assert b"booted" not in await place.runtime.console_log(place.name)


async def test_the_console_log_outlives_the_run_but_not_the_next(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    if isinstance(place.runtime, FakeRuntime):
        await place.runtime.write_console(place.name, b"booted\r\n")
    await console_says(place, b"booted")
    await place.runtime.kill(container)
    assert b"booted" in await place.runtime.console_log(place.name)
    await place.runtime.start(place.spec(init=("/bin/sleep", "3600")))
    assert b"booted" not in await place.runtime.console_log(place.name)


async def test_logs_are_listed_renamed_and_removed(place: Place) -> None:
    assert await place.runtime.log_files(place.name) == []
    await place.runtime.kill(await place.runtime.start(place.spec()))
    assert {"lxc.log", "lxc.conf", "console.log"} <= names(await place.runtime.log_files(place.name))
    await place.runtime.rename(place.name, "c2")
    assert await place.runtime.log_files(place.name) == []
    assert "lxc.log" in names(await place.runtime.log_files("c2"))
    await place.runtime.remove("c2")
    await place.runtime.remove("c2")
    assert await place.runtime.log_files("c2") == []
    assert await place.runtime.console_log("c2") == b""


async def test_versions_and_features(place: Place) -> None:
    assert int((await place.runtime.version()).split(".")[0]) >= 4
    assert set((await place.runtime.features()).values()) <= {"true", "false"}


def names(files: list[Path]) -> set[str]:
    return {file.name for file in files}


async def console_says(place: Place, text: bytes) -> None:
    async with asyncio.timeout(10):
        while text not in await place.runtime.console_log(place.name):
            await asyncio.sleep(0.01)
