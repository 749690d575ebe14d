# SPDX-License-Identifier: Apache-2.0
"""Running state kept on disk: stateful stop and start, snapshots with state."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, FlexdError
from flexd.api.instance import InstancePut
from flexd.api.instance_snapshot import InstanceSnapshotPost, InstanceSnapshotsPost
from flexd.instances.fitness import STARTED, is_fit
from tests.unit.instances.house import PROJECT, House, house, restart


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        await made.create()
        await made.act("start")
        yield made


def _stateful(home: House) -> bool:
    return home.daemon.instances.show(PROJECT, "c1").stateful


def _images(home: House) -> Path:
    return home.daemon.lifecycle.saving.images(home.daemon.registry.instance(PROJECT, "c1"))


async def _snapshot(home: House, name: str = "s1") -> None:
    post = InstanceSnapshotsPost(name=name, stateful=True)
    await home.done(await home.daemon.snapshots.create(PROJECT, "c1", post))


async def _restore(home: House, *, stateful: bool) -> None:
    await home.done(await home.daemon.snapshots.restore(PROJECT, "c1", "s1", stateful=stateful))


async def _said(home: House) -> bytes:
    return home.runtime._running["c1"].said


async def test_stop_and_start_keep_what_was_in_memory(home: House) -> None:
    await home.runtime.write_console("c1", b"counted to 3")
    await home.act("stop", stateful=True)
    assert (home.status(), _stateful(home)) == ("Stopped", True)
    assert _images(home).is_dir()
    await home.act("start", stateful=True)
    assert (home.status(), _stateful(home)) == ("Running", False)
    assert await _said(home) == b"counted to 3"
    assert not _images(home).exists()


async def test_a_start_without_state_drops_it(home: House) -> None:
    await home.runtime.write_console("c1", b"counted to 3")
    await home.act("stop", stateful=True)
    await home.act("start")
    assert (home.status(), _stateful(home)) == ("Running", False)
    assert await _said(home) == b""
    assert not _images(home).exists()


async def test_a_stateful_start_needs_state(home: House) -> None:
    await home.act("stop", force=True)
    with pytest.raises(BadRequest, match="Instance has no existing state to restore"):
        await home.act("start", stateful=True)


async def test_what_cannot_be_saved_runs_on_and_says_why(home: House) -> None:
    home.runtime.unsavable["c1"] = "it holds a cat"
    with pytest.raises(FlexdError, match="it holds a cat"):
        await home.act("stop", stateful=True)
    assert (home.status(), _stateful(home)) == ("Running", False)
    assert not _images(home).exists()
    del home.runtime.unsavable["c1"]
    await home.act("stop", stateful=True)
    assert home.status() == "Stopped"


async def test_a_dump_that_fails_leaves_it_running(home: House) -> None:
    home.runtime.failing_calls["checkpoint"] = "no room"
    with pytest.raises(FlexdError, match="no room"):
        await home.act("stop", stateful=True)
    assert (home.status(), _stateful(home)) == ("Running", False)


async def test_a_restore_that_fails_keeps_the_state(home: House) -> None:
    await home.act("stop", stateful=True)
    before = home.host_state()
    home.runtime.failing_calls["restore"] = "no such processor"
    with pytest.raises(FlexdError, match="no such processor"):
        await home.act("start", stateful=True)
    assert (home.status(), _stateful(home)) == ("Stopped", True)
    assert home.host_state() == before
    del home.runtime.failing_calls["restore"]
    await home.act("start", stateful=True)
    assert home.status() == "Running"


async def test_a_daemon_killed_between_saving_and_ending_finds_it_running(home: House, tmp_path: Path) -> None:
    record = home.daemon.registry.instance(PROJECT, "c1")
    container = home.daemon.lifecycle.running(record)
    assert container is not None
    await home.runtime.checkpoint(container, home.runtime.specs["c1"], home.daemon.lifecycle.saving.images(record))
    await home.daemon.lifecycle.saving.note(record, True)
    home.runtime._running["c1"].frozen = False  # as CRIU does when the daemon is gone
    await restart(home, tmp_path)
    assert (home.status(), _stateful(home)) == ("Running", False)
    assert not _images(home).exists()


async def test_a_stateful_snapshot_leaves_it_running_and_can_be_gone_back_to(home: House) -> None:
    await home.runtime.write_console("c1", b"1")
    await _snapshot(home)
    assert home.daemon.snapshots.show(PROJECT, "c1", "s1").stateful
    assert home.status() == "Running"
    await home.runtime.write_console("c1", b"2")
    await _restore(home, stateful=True)
    assert (home.status(), _stateful(home)) == ("Running", False)
    assert await _said(home) == b"1"
    await home.act("stop", force=True)
    await _restore(home, stateful=True)
    assert home.status() == "Running"


async def test_restoring_without_state_starts_afresh(home: House) -> None:
    await home.runtime.write_console("c1", b"1")
    await _snapshot(home)
    await _restore(home, stateful=False)
    assert home.status() == "Running"
    assert await _said(home) == b""


async def test_state_needs_a_snapshot_that_has_it(home: House) -> None:
    await home.done(await home.daemon.snapshots.create(PROJECT, "c1", InstanceSnapshotsPost(name="s1")))
    with pytest.raises(BadRequest, match="no running state"):
        await _restore(home, stateful=True)


async def test_a_stopped_instance_has_no_state_to_snapshot(home: House) -> None:
    await home.act("stop", force=True)
    with pytest.raises(BadRequest, match="does not run"):
        await _snapshot(home)


async def test_a_snapshots_state_is_renamed_and_goes_with_it(home: House) -> None:
    await _snapshot(home)
    saving, record = home.daemon.lifecycle.saving, home.daemon.registry.instance(PROJECT, "c1")
    await home.done(await home.daemon.snapshots.rename(PROJECT, "c1", "s1", InstanceSnapshotPost(name="s2")))
    assert saving.of_snapshot(record, "s2").is_dir()
    assert not saving.of_snapshot(record, "s1").exists()
    await home.done(await home.daemon.snapshots.delete(PROJECT, "c1", "s2"))
    assert not saving.of_snapshot(record, "s2").exists()


async def test_a_snapshot_that_fails_leaves_no_state(home: House) -> None:
    home.host.fail(method="files.copy_tree", error=FlexdError("disk full"))
    with pytest.raises(FlexdError, match="disk full"):
        await _snapshot(home)
    saving, record = home.daemon.lifecycle.saving, home.daemon.registry.instance(PROJECT, "c1")
    assert not saving.of_snapshot(record, "s1").exists()
    assert home.status() == "Running"


async def test_a_device_without_image_is_an_obstacle(home: House) -> None:
    record = home.daemon.registry.instance(PROJECT, "c1")
    devices = {"fuse": {"type": "unix-char", "path": "/dev/fuse", "major": "10", "minor": "229"}}
    put = InstancePut(config=record.config, profiles=record.profiles, devices=devices)
    await home.done(await home.daemon.instances.update(PROJECT, "c1", put))
    with pytest.raises(FlexdError, match='the device "fuse" is of a kind that cannot be saved'):
        await home.act("stop", stateful=True)


@pytest.mark.parametrize(
    ("config", "default", "usable", "fit"),
    [
        ({}, "", True, True),
        ({}, "", False, False),
        ({}, "false", True, False),
        ({}, "true", False, True),
        ({"migration.stateful": "false"}, "true", True, False),
        ({"migration.stateful": "true"}, "false", False, True),
        ({"security.privileged": "true"}, "", True, False),
        ({"security.nesting": "true"}, "true", True, False),
        ({"security.nesting": "true", "migration.stateful": "true"}, "", True, True),
        ({"security.syscalls.intercept.mknod": "true"}, "", True, False),
        ({"security.syscalls.intercept.mknod": "false"}, "", True, True),
        ({"raw.seccomp": "2\n"}, "", True, False),
    ],
)
def test_who_is_made_fit(config: dict[str, str], default: str, usable: bool, fit: bool) -> None:
    assert is_fit(config, default, usable) is fit


async def test_what_it_was_started_as_is_kept(home: House) -> None:
    await home.act("stop", force=True)
    await home.daemon.config.update({"instances.migration.stateful": "true"})
    await home.act("start")
    assert home.daemon.registry.instance(PROJECT, "c1").config[STARTED] == "true"
    assert home.runtime.specs["c1"].migratable
