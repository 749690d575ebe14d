# SPDX-License-Identifier: Apache-2.0
"""Instances in several projects on one host: names that do not clash, and moves that are whole or nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from flexd.api.errors import FlexdError, Forbidden
from flexd.api.instance import InstancePost, InstancePut, InstanceSource, InstancesPost
from flexd.api.instance_snapshot import InstanceSnapshotsPost
from flexd.api.instance_state import InstanceStatePut
from flexd.api.profile import ProfilePut
from flexd.api.project import ProjectPut, ProjectsPost
from flexd.instances.plan import rename_plan
from tests.unit.instances.house import NIC, PROJECT, ROOT, House, house, interrupt, restart

OTHER = "blue"


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        await made.daemon.project_service.create(ProjectsPost(name=OTHER))
        await made.daemon.profiles.update(OTHER, "default", ProfilePut(devices={"root": ROOT, "eth0": NIC}))
        yield made


async def _create(home: House, project: str, name: str = "c1", **fields: object) -> None:
    post = InstancesPost(name=name, source=InstanceSource(type="none"), **fields)  # type: ignore[arg-type]
    await home.done(await home.daemon.instances.create(project, post))


async def _act(home: House, project: str, action: str, name: str = "c1") -> None:
    put = InstanceStatePut(action=action, force=True)
    await home.done(await home.daemon.lifecycle.change_state(project, name, put))


async def _snapshot(home: House, project: str) -> None:
    await home.done(await home.daemon.snapshots.create(project, "c1", InstanceSnapshotsPost(name="s0")))


def _documents(home: House) -> dict[str, bytes]:
    return {entry.key: entry.value for entry in home.daemon._mirror.list("/") if "turns" not in entry.key}


async def test_one_name_twice_on_one_network(home: House):
    """Both run, each with a link, an address and a DNS name of its own."""
    for project in (PROJECT, OTHER):
        await _create(home, project)
        await _act(home, project, "start")
    runs = [home.runtime.specs[name] for name in ("c1", "blue_c1")]
    assert {run.hostname for run in runs} == {"c1"}
    assert len({run.rootfs for run in runs}) == len({run.nics[0].link for run in runs}) == 2
    ports = home.daemon.ports.ports()["flexbr0"]
    assert sorted(port.label for port in ports) == ["c1", "c1_blue"]
    assert len({port.hwaddr for port in ports}) == 2
    assert home.daemon.ports.hwaddrs(OTHER, "flexbr0") == {port.hwaddr for port in ports if port.project == OTHER}


async def test_after_a_restart_each_is_found_again(home: House, tmp_path: Path):
    for project in (PROJECT, OTHER):
        await _create(home, project)
    await _act(home, OTHER, "start")
    await restart(home, tmp_path)
    assert home.daemon.instances.show(PROJECT, "c1").status == "Stopped"
    assert home.daemon.instances.show(OTHER, "c1").status == "Running"


async def test_a_move_that_is_cut_short_is_undone(home: House, tmp_path: Path):
    """At each of its steps."""
    await _create(home, PROJECT)
    await _snapshot(home, PROJECT)
    record = home.daemon.registry.instance(PROJECT, "c1")
    plan = rename_plan(record, msgspec.structs.replace(record, project=OTHER, name="c2"))
    before = _documents(home)
    for position in range(len(plan.steps)):
        await interrupt(home, plan, position)
        await restart(home, tmp_path)
        assert _documents(home) == before, position
        await _act(home, PROJECT, "start")
        await _act(home, PROJECT, "stop")
        before = _documents(home)
    await home.done(await home.daemon.instances.rename(PROJECT, "c1", InstancePost(name="c2", project=OTHER)))
    assert home.daemon.instances.names(PROJECT) == []
    assert home.daemon.snapshots.names(OTHER, "c2") == ["s0"]
    await _act(home, OTHER, "start", "c2")


async def test_a_move_whose_end_is_refused_is_undone(home: House):
    """The other project's limit is reached between the look and the writing."""
    await _create(home, PROJECT)
    before = _documents(home)
    operation = await home.daemon.instances.rename(PROJECT, "c1", InstancePost(name="c1", project=OTHER))
    config = home.daemon.project_service.show(OTHER).config | {"limits.instances": "0"}
    await home.daemon.project_service.update(OTHER, ProjectPut(config=config))
    with pytest.raises(FlexdError, match="Reached maximum"):
        await home.done(operation)
    after = _documents(home)
    assert after.pop(f"/projects/{OTHER}") != before.pop(f"/projects/{OTHER}")
    assert after == before
    await _act(home, PROJECT, "start")


async def test_an_edit_that_a_limit_refuses_at_the_end_leaves_the_container_as_it_was(home: House):
    """Devices are plugged in first, documents written last: the refusal comes when the work is done."""
    await _create(home, OTHER, config={"limits.memory": "100MiB"})
    await _act(home, OTHER, "start")
    links = sorted(home.host.links.by_name)
    real = home.daemon.rules.check
    looks = 0

    def second_look_fails(*instances: object, **profiles: object) -> None:
        nonlocal looks
        looks += 1
        if looks > 1:
            raise Forbidden("Reached maximum")

    home.daemon.rules.check = second_look_fails  # type: ignore[method-assign]
    shown = home.daemon.instances.show(OTHER, "c1")
    devices = {"eth1": {**NIC, "name": "eth1"}}
    put = InstancePut(profiles=shown.profiles, config=shown.config, devices=devices)
    with pytest.raises(Forbidden, match="Reached maximum"):
        await home.daemon.instances.patch(OTHER, "c1", put)
    home.daemon.rules.check = real  # type: ignore[method-assign]
    assert sorted(home.host.links.by_name) == links
    assert home.daemon.instances.show(OTHER, "c1").devices == {}


async def test_disks_below_allowed_directories_only(home: House, tmp_path: Path):
    """A link that is put in the place of a directory later does not lead the host's mount elsewhere."""
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    for directory in (allowed / "data", outside):
        directory.mkdir(parents=True)
    config = home.daemon.project_service.show(OTHER).config
    config |= {
        "restricted": "true",
        "restricted.devices.disk": "allow",
        "restricted.devices.disk.paths": str(allowed),
    }
    await home.daemon.project_service.update(OTHER, ProjectPut(config=config))
    disk = {"type": "disk", "path": "/data", "source": str(outside)}
    with pytest.raises(FlexdError, match="not allowed"):
        await _create(home, OTHER, devices={"d": disk})
    await _create(home, OTHER, devices={"d": {**disk, "source": str(allowed / "data")}})
    await _act(home, OTHER, "start")
    await _act(home, OTHER, "stop")
    (allowed / "data").rmdir()
    (allowed / "data").symlink_to(outside)
    with pytest.raises(FlexdError, match="leads out of"):
        await _act(home, OTHER, "start")
    assert home.daemon.instances.show(OTHER, "c1").status == "Stopped"
