# SPDX-License-Identifier: Apache-2.0
"""Rebuilding: the new root or the old one, never none, whatever fails."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, FlexdError, NotFound
from flexd.api.instance import InstanceRebuildPost, InstanceSource
from flexd.api.instance_snapshot import InstanceSnapshotsPost
from flexd.instances.firstboot import APPLY_TEMPLATE
from flexd.instances.rebuild import rebuild_plan
from flexd.operations.contract import Plan, Step
from tests.unit.instances.house import PROJECT, House, house, interrupt, restart


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        yield made


async def _write(home: House, path: str) -> None:
    async with home.daemon.files.open(PROJECT, "c1") as files:
        await files.make_directory(path, mode=0o755, uid=0, gid=0)


async def _has(home: House, path: str) -> bool:
    async with home.daemon.files.open(PROJECT, "c1") as files:
        try:
            await files.stat(path)
        except NotFound:
            return False
        return True


async def _rebuild(home: House, **source: str) -> None:
    post = InstanceRebuildPost(source=InstanceSource(**{"type": "none", **source}))
    await home.done(await home.daemon.rebuild.rebuild(PROJECT, "c1", post))


async def _prepared(home: House) -> None:
    await home.create(config={"user.kept": "1"})
    await home.act("start")
    await home.act("stop", force=True)
    await _write(home, "/old")


async def test_an_empty_root_and_the_same_settings(home: House):
    await _prepared(home)
    uuid = home.daemon.registry.instance(PROJECT, "c1").config["volatile.uuid"]
    await _rebuild(home)
    assert not await _has(home, "/old")
    config = home.daemon.registry.instance(PROJECT, "c1").config
    assert (config["user.kept"], config["volatile.uuid"], config[APPLY_TEMPLATE]) == ("1", uuid, "create")
    assert home.host_state()["volumes"] == ["c1"]
    await home.act("start")


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ({"type": "copy"}, 'source type "copy" is not supported'),
        ({"type": "image"}, "Must specify one of alias"),
        ({"type": "image", "alias": "nope"}, "Image not found"),
    ],
)
async def test_bad_sources(home: House, source: dict[str, str], fault: str):
    await home.create()
    with pytest.raises(FlexdError, match=fault):
        await _rebuild(home, **source)


async def test_not_while_it_runs_or_has_snapshots(home: House):
    await home.create()
    await home.act("start")
    with pytest.raises(BadRequest, match="must be stopped"):
        await _rebuild(home)
    await home.act("stop", force=True)
    await home.done(await home.daemon.snapshots.create(PROJECT, "c1", InstanceSnapshotsPost(name="s0")))
    with pytest.raises(BadRequest, match="with snapshots"):
        await _rebuild(home)


@pytest.mark.parametrize("position", range(4))
async def test_a_failure_at_any_step_leaves_the_old_root(home: House, position: int):
    await _prepared(home)
    before = (home.host_state(), home.daemon.registry.instance(PROJECT, "c1"))

    async def fail(plan: Plan, number: int, _step: Step) -> None:
        if plan.description.startswith("rebuild") and number == position:
            raise FlexdError("the test says no")

    home.daemon.journal.before_step = fail
    with pytest.raises(FlexdError, match="the test says no"):
        await _rebuild(home)
    home.daemon.journal.before_step = None
    assert (home.host_state(), home.daemon.registry.instance(PROJECT, "c1")) == before
    assert await _has(home, "/old")


@pytest.mark.parametrize("position", range(5))
async def test_a_crash_at_any_step_is_finished(home: House, tmp_path: Path, position: int):
    await _prepared(home)
    record = home.daemon.registry.instance(PROJECT, "c1")
    await interrupt(home, rebuild_plan(record, record, None, 0), position)
    await restart(home, tmp_path)
    assert not await _has(home, "/old")
    assert home.host_state()["volumes"] == ["c1"]
    assert await home.daemon.journal.failed() == []
