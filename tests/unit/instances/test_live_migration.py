# SPDX-License-Identifier: Apache-2.0
"""Moving an instance that runs between two whole daemons on fakes: whatever breaks, it runs on exactly one of them."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, FlexdError
from flexd.api.instance import InstancePost, InstanceSource, InstancesPost
from flexd.host.contract import CriuFacts
from flexd.instances.migration.handovers import AWAY
from flexd.instances.migration.link import Asked
from flexd.instances.migration.live import misfits
from flexd.instances.migration.offer import Running
from flexd.instances.migration.peer import MigrationFailed
from flexd.operations.operations import Operation
from tests.unit.instances.house import PROJECT, House, house, restart
from tests.unit.instances.wires import Scissors, pair

# Receivers take the owners of the stream and see nothing but their tree.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="receiving trees needs root (chown, chroot)")
# Ids are not shifted by fake mounts.
CONFIG = {"security.privileged": "true"}
WHERE = "https://198.18.40.1:8443/1.0/operations/00000000-0000-0000-0000-000000000000"
FACTS = CriuFacts(Path("/criu"), "4.2.1", True)


async def _home(directory: Path) -> AsyncIterator[House]:
    async with house(directory) as home:
        home.host.processes.harmless |= {sys.executable, Path(sys.executable).name}
        home.host.criu.value = FACTS
        yield home


@pytest.fixture
async def a(tmp_path: Path) -> AsyncIterator[House]:
    async for home in _home(tmp_path / "a"):
        await home.create(config=dict(CONFIG))
        await home.act("start")
        await home.runtime.write_console("c1", b"counted to 3")
        yield home


@pytest.fixture
async def b(tmp_path: Path, a: House) -> AsyncIterator[House]:
    async for home in _home(tmp_path / "b"):
        _know(home, a)
        yield home


def _know(b: House, a: House) -> None:
    async def ask(_asked: Asked, token: str) -> bool:
        return await a.daemon.handovers.ask(token)

    b.daemon.arriving.ask = ask


async def _begin(a: House, b: House, scissors: Scissors) -> tuple[Operation, Operation]:
    config = a.daemon.instances.show(PROJECT, "c1").config
    source = InstanceSource(type="migration", mode="push", live=True, operation=WHERE)
    sink = await b.daemon.instances.create(PROJECT, InstancesPost(name="c1", config=config, source=source))
    asked = a.daemon.migration_source.start(PROJECT, "c1", InstancePost(migration=True, live=True))
    for name in ("control", "fs", "criu"):
        ends = pair(scissors)
        asked.connect(dict(asked.metadata)[name], ends[0])
        sink.connect(dict(sink.metadata)[name], ends[1])
    return asked, sink


async def _move(a: House, b: House, scissors: Scissors | None = None) -> tuple[Operation, Operation]:
    source, sink = await _begin(a, b, scissors or Scissors())
    await sink.wait()
    await source.wait()
    return source, sink


def _runs(home: House) -> bool:
    return "c1" in home.runtime._running and not home.runtime._running["c1"].frozen


async def test_it_goes_on_there(a: House, b: House) -> None:
    source, sink = await _move(a, b)
    assert (source.err, sink.err) == ("", "")
    assert b.runtime._running["c1"].said == b"counted to 3"
    assert (a.status(), b.status()) == ("Stopped", "Running")
    assert b.runtime.announced == ["c1"]
    assert not b.daemon.instances.show(PROJECT, "c1").stateful
    assert [key for key in b.daemon.instances.show(PROJECT, "c1").config if "in_doubt" in key] == []


async def test_what_was_handed_over_does_not_start_again(a: House, b: House) -> None:
    await _move(a, b)
    assert a.daemon.instances.show(PROJECT, "c1").config[AWAY]
    with pytest.raises(BadRequest, match="was moved to another server while it ran"):
        await a.act("start")
    await a.delete()


async def test_there_and_back(a: House, b: House) -> None:
    await _move(a, b)
    await a.delete()
    _know(a, b)
    source, sink = await _move(b, a)
    assert (source.err, sink.err) == ("", "")
    assert a.runtime._running["c1"].said == b"counted to 3"
    assert (a.status(), b.status()) == ("Running", "Stopped")


async def test_wherever_the_link_breaks_it_runs_once(a: House, b: House) -> None:
    """The count of messages differs a little from run to run, so this ends with the first that gets through."""
    before = b.host_state()
    after = 0
    while True:
        source, sink = await _move(a, b, Scissors(after))
        assert _runs(a) != _runs(b), f"after {after} messages: {source.err!r}, {sink.err!r}"
        if _runs(b):
            break
        assert b.host_state() == before, f"after {after} messages"
        assert a.status() == "Running"
        after += 1
    assert after > 10


async def test_a_target_in_doubt_asks_until_it_knows(a: House, b: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexd.instances.migration.arriving._ASK_AGAIN_S", 0.001)
    tries = 0

    async def ask(_asked: Asked, token: str) -> bool:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise MigrationFailed("no route")
        return await a.daemon.handovers.ask(token)

    b.daemon.arriving.ask = ask
    commit = a.daemon.handovers.commit
    scissors = Scissors()

    async def cut_after_commit(*args: object) -> None:
        await commit(*args)  # type: ignore[arg-type]
        for wire in scissors.wires:
            wire.hang_up()

    monkeypatch.setattr(a.daemon.handovers, "commit", cut_after_commit)
    await _move(a, b, scissors)
    assert tries == 3
    assert (_runs(a), _runs(b)) == (False, True)


async def test_who_was_told_no_is_not_handed_over_to(a: House) -> None:
    record = a.daemon.registry.instance(PROJECT, "c1")
    with a.daemon.handovers.under_way() as token:
        assert not await a.daemon.handovers.ask(token)
        with pytest.raises(FlexdError, match="the target has given up"):
            await a.daemon.handovers.commit(record, token)


async def test_a_restore_that_fails_lets_the_source_go_on(a: House, b: House) -> None:
    before = b.host_state()
    b.runtime.failing_calls["restore"] = "no such processor"
    source, sink = await _move(a, b)
    assert "no such processor" in sink.err
    assert "no such processor" in source.err
    assert (_runs(a), _runs(b)) == (True, False)
    assert b.host_state() == before


async def test_a_state_that_cannot_be_saved_is_said_at_once(a: House, b: House) -> None:
    a.runtime.unsavable["c1"] = "it holds a cat"
    before = b.host_state()
    source, _sink = await _move(a, b)
    assert "it holds a cat" in source.err
    assert _runs(a)
    assert b.host_state() == before


async def test_a_target_without_criu_says_why(a: House, b: House) -> None:
    b.host.criu.value = CriuFacts(reason="CRIU is not installed")
    source, sink = await _move(a, b)
    assert "CRIU is not installed" in sink.err
    assert "CRIU is not installed" in source.err
    assert _runs(a)


async def test_a_target_killed_in_doubt_knows_after_its_restart(a: House, b: House, tmp_path: Path) -> None:
    handed = asyncio.Event()
    go_on = asyncio.Event()
    resume = b.daemon.arriving._own

    async def stop(record: object) -> None:
        handed.set()
        await go_on.wait()
        await resume(record)  # type: ignore[arg-type]

    b.daemon.arriving._own = stop  # type: ignore[method-assign,assignment]
    _source, sink = await _begin(a, b, Scissors())
    await handed.wait()
    assert a.daemon.instances.show(PROJECT, "c1").config[AWAY]
    b.runtime.end("c1")  # what waits ends with the daemon
    sink_task = asyncio.create_task(sink.cancel())
    await asyncio.sleep(0)
    sink_task.cancel()
    await restart(b, tmp_path / "b")
    _know(b, a)
    b.daemon.arriving.resume()
    async with asyncio.timeout(20):
        while not _runs(b):
            await asyncio.sleep(0.01)
    assert b.runtime._running["c1"].said == b"counted to 3"
    assert not _runs(a)


def _running(**changes: object) -> Running:
    values: dict[str, object] = {
        "criu_version": "4.2.1",
        "kernel_version": "6.18",
        "architecture": "x86_64",
        "cgroup_mode": "v2",
        "processor": ["fpu", "avx2"],
        "memory_bytes": 1,
    }
    return Running(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("theirs", "ours", "fault"),
    [
        ({}, {}, ""),
        ({"criu_version": "4.2"}, {}, ""),
        ({"criu_version": "4.3"}, {}, "CRIU 4.3"),
        ({"architecture": "aarch64"}, {}, "architecture aarch64"),
        ({"cgroup_mode": "v1"}, {}, "cgroups v1"),
        ({"processor": ["fpu", "avx512f"]}, {}, "lacks avx512f"),
        ({}, {"processor": ["fpu", "avx2", "more"]}, ""),
    ],
)
def test_what_does_not_fit(theirs: dict[str, object], ours: dict[str, object], fault: str) -> None:
    found = misfits(_running(**theirs), _running(**ours), FACTS)
    assert (fault in " ".join(found)) if fault else found == []
