# SPDX-License-Identifier: Apache-2.0
"""Snapshots and copies of instances on a daemon with fakes."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, Conflict, FlexdError, NotFound
from flexd.api.instance import InstancePost, InstancePut, InstanceSource, InstancesPost
from flexd.api.instance_snapshot import InstanceSnapshotPost, InstanceSnapshotPut, InstanceSnapshotsPost
from flexd.api.times import ZERO_TIME, now
from flexd.host.contract import HostError
from flexd.server.decode import narrow
from tests.unit.instances.house import PROJECT, House, house


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        await made.create(config={"user.colour": "red"})
        yield made


async def _snapshot(home: House, name: str = "", instance: str = "c1", **fields: object) -> None:
    post = InstanceSnapshotsPost(name=name, **fields)  # type: ignore[arg-type]
    await home.done(await home.daemon.snapshots.create(PROJECT, instance, post))


async def _restore(home: House, snapshot: str) -> None:
    put = narrow(home.daemon.instances.show(PROJECT, "c1"), InstancePut)
    put.restore = snapshot
    await home.done(await home.daemon.instances.update(PROJECT, "c1", put))


async def _copy(home: House, source: str, name: str, **fields: object) -> None:
    post = InstancesPost(name=name, source=InstanceSource(type="copy", source=source, **fields))  # type: ignore[arg-type]
    await home.done(await home.daemon.instances.create(PROJECT, post))


async def test_names_count_up(home: House):
    for _ in range(3):
        await _snapshot(home)
    assert home.daemon.snapshots.names(PROJECT, "c1") == ["snap0", "snap1", "snap2"]
    full = (await home.daemon.states.full(PROJECT))[0]
    assert [snapshot.name for snapshot in full.snapshots] == ["snap0", "snap1", "snap2"]


async def test_a_snapshot_shows_what_the_instance_was(home: House):
    await _snapshot(home, "before")
    put = narrow(home.daemon.instances.show(PROJECT, "c1"), InstancePut)
    put.config = {**put.config, "user.colour": "blue"}
    await home.daemon.instances.patch(PROJECT, "c1", put)
    shown = home.daemon.snapshots.show(PROJECT, "c1", "before")
    assert shown.config["user.colour"] == "red"
    assert shown.expires_at == ZERO_TIME
    await _restore(home, "before")
    assert home.daemon.instances.show(PROJECT, "c1").config["user.colour"] == "red"


@pytest.mark.parametrize("name", ["a/b", "..", "with space", "x" * 65])
async def test_bad_names(home: House, name: str):
    with pytest.raises(BadRequest, match="Invalid snapshot name"):
        await _snapshot(home, name)


async def test_what_cannot_be(home: House):
    await _snapshot(home, "one")
    with pytest.raises(Conflict, match="already exists"):
        await _snapshot(home, "one")
    with pytest.raises(NotFound, match="Instance not found"):
        await _snapshot(home, instance="nobody")
    with pytest.raises(NotFound, match="snapshot not found"):
        await _restore(home, "nothing")
    with pytest.raises(BadRequest, match="it does not run"):
        await _snapshot(home, "two", stateful=True)


async def test_snapshot_of_a_running_instance_freezes_it_only_meanwhile(home: House):
    await home.act("start")
    await _snapshot(home, "live")
    assert home.status() == "Running"
    container = await home.runtime.find("c1")
    assert container is not None
    assert not await home.runtime.frozen(container)


async def test_restore_of_a_running_instance_runs_it_again(home: House):
    await _snapshot(home, "s")
    await home.act("start")
    before = await home.runtime.find("c1")
    await _restore(home, "s")
    after = await home.runtime.find("c1")
    assert home.status() == "Running"
    assert before is not None
    assert after is not None
    assert before.init != after.init


async def test_rename_and_delete(home: House):
    await _snapshot(home, "a")
    await _snapshot(home, "b")
    rename = InstanceSnapshotPost(name="c")
    await home.done(await home.daemon.snapshots.rename(PROJECT, "c1", "a", rename))
    assert sorted(home.daemon.snapshots.names(PROJECT, "c1")) == ["b", "c"]
    with pytest.raises(Conflict, match="already exists"):
        await home.daemon.snapshots.rename(PROJECT, "c1", "c", InstanceSnapshotPost(name="b"))
    await home.done(await home.daemon.snapshots.delete(PROJECT, "c1", "c"))
    assert home.daemon.snapshots.names(PROJECT, "c1") == ["b"]
    await _restore(home, "b")


async def test_snapshots_follow_a_rename_and_go_with_the_instance(home: House):
    await _snapshot(home, "s")
    await home.done(await home.daemon.instances.rename(PROJECT, "c1", InstancePost(name="c2")))
    assert home.daemon.snapshots.names(PROJECT, "c2") == ["s"]
    await home.delete("c2")
    await home.create("c2")
    assert home.daemon.snapshots.names(PROJECT, "c2") == []


@pytest.mark.parametrize("position", range(2))
async def test_a_snapshot_that_fails_leaves_nothing(home: House, position: int):
    before = home.host_state()

    async def fail_at(_plan: object, index: int, _step: object) -> None:
        if index == position:
            raise HostError("power cut", 5)

    home.daemon.journal.before_step = fail_at
    with pytest.raises(FlexdError, match="power cut"):
        await _snapshot(home, "s")
    home.daemon.journal.before_step = None
    assert home.daemon.snapshots.names(PROJECT, "c1") == []
    assert home.host_state() == before
    await _snapshot(home, "s")


async def test_expiry_by_key_by_hand_and_by_clock(home: House):
    put = narrow(home.daemon.instances.show(PROJECT, "c1"), InstancePut)
    put.config = {**put.config, "snapshots.expiry": "1d"}
    await home.daemon.instances.patch(PROJECT, "c1", put)
    await _snapshot(home, "day")
    await _snapshot(home, "never", expires_at=ZERO_TIME)
    day = home.daemon.snapshots.show(PROJECT, "c1", "day")
    assert day.expires_at - day.created_at == timedelta(days=1)
    sooner = InstanceSnapshotPut(expires_at=now() + timedelta(hours=1))
    await home.done(await home.daemon.snapshots.update(PROJECT, "c1", "day", sooner))
    await home.daemon.snapshots.run_schedule(now() + timedelta(hours=2))
    assert home.daemon.snapshots.names(PROJECT, "c1") == ["never"]


async def test_schedule(home: House):
    put = narrow(home.daemon.instances.show(PROJECT, "c1"), InstancePut)
    put.config = {**put.config, "snapshots.schedule": "30 4 * * *", "snapshots.pattern": "auto-%d"}
    await home.daemon.instances.patch(PROJECT, "c1", put)
    due = datetime(2026, 11, 23, 4, 30, tzinfo=UTC)
    await home.daemon.snapshots.run_schedule(due)
    assert home.daemon.snapshots.names(PROJECT, "c1") == []  # it does not run
    await home.act("start")
    await home.daemon.snapshots.run_schedule(due.replace(minute=31))
    await home.daemon.snapshots.run_schedule(due)
    assert home.daemon.snapshots.names(PROJECT, "c1") == ["auto-0"]


async def test_a_snapshot_before_each_start(home: House):
    put = narrow(home.daemon.instances.show(PROJECT, "c1"), InstancePut)
    put.config = {**put.config, "snapshots.schedule": "@startup, @daily"}
    await home.daemon.instances.patch(PROJECT, "c1", put)
    await home.act("start")
    assert home.daemon.snapshots.names(PROJECT, "c1") == ["snap0"]
    await home.act("restart", force=True)
    assert home.daemon.snapshots.names(PROJECT, "c1") == ["snap0", "snap1"]


# --- copies ---


async def test_copy_with_and_without_snapshots(home: House):
    await _snapshot(home, "s")
    await _copy(home, "c1", "whole")
    await _copy(home, "c1", "alone", instance_only=True)
    await _copy(home, "c1/s", "past")
    names = {name: home.daemon.snapshots.names(PROJECT, name) for name in ("whole", "alone", "past")}
    assert names == {"whole": ["s"], "alone": [], "past": []}
    original, copy = (home.daemon.instances.show(PROJECT, name) for name in ("c1", "whole"))
    assert copy.config["user.colour"] == "red"
    assert copy.config["volatile.eth0.hwaddr"] != original.config["volatile.eth0.hwaddr"]
    assert copy.config["volatile.uuid"] != original.config["volatile.uuid"]
    await home.act("start", "whole")


async def test_copy_of_a_running_instance(home: House):
    await home.act("start")
    await _copy(home, "c1", "c2")
    assert (home.status("c1"), home.status("c2")) == ("Running", "Stopped")


async def test_refresh(home: House):
    await _copy(home, "c1", "c2")
    await _snapshot(home, "later")
    await _copy(home, "c1", "c2", refresh=True)
    assert home.daemon.snapshots.names(PROJECT, "c2") == ["later"]
    await home.act("start", "c2")
    with pytest.raises(BadRequest, match="Cannot refresh a running instance"):
        await _copy(home, "c1", "c2", refresh=True)


@pytest.mark.parametrize("position", range(3))
async def test_a_copy_that_fails_leaves_nothing(home: House, position: int):
    await _snapshot(home, "s")
    before = home.host_state()

    async def fail_at(_plan: object, index: int, _step: object) -> None:
        if index == position:
            raise HostError("power cut", 5)

    home.daemon.journal.before_step = fail_at
    with pytest.raises(FlexdError, match="power cut"):
        await _copy(home, "c1", "c2")
    home.daemon.journal.before_step = None
    assert home.host_state() == before
    await _copy(home, "c1", "c2")
