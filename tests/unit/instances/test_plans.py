# SPDX-License-Identifier: Apache-2.0
"""Every plan is cut short at each of its steps, and at each call to the host: by an error, and by a killed daemon.

What is compared: all documents, what lies in the pools, mounts, links and containers. One plan that can be taken back
leaves them as they were; of one that can only be finished, whoever tries again comes to the same end.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flexd.api.errors import FlexdError
from flexd.api.instance import InstancePost, InstancePut, InstanceSource, InstancesPost
from flexd.api.instance_snapshot import InstanceSnapshotPost, InstanceSnapshotsPost
from flexd.api.network import NetworksPost
from flexd.api.storage_pool import StoragePoolsPost
from flexd.api.storage_volume import (
    StorageVolumePost,
    StorageVolumeSnapshotPost,
    StorageVolumeSnapshotsPost,
    StorageVolumeSource,
    StorageVolumesPost,
)
from flexd.host.contract import HostError
from flexd.operations.contract import Plan, Step
from tests.unit.instances.house import PROJECT, House, house, interrupt, restart

Do = Callable[[House], Awaitable[Any]]
POOLS = ("default", "other", "bt")


class Scenario(NamedTuple):
    """What is there before, and what is then asked for."""

    before: tuple[Do, ...]
    tried: Do
    finished_by: Do | None = None  # what somebody does where it got too far to be taken back: by default the same again


# --- what is asked for ---


async def _instance(home: House) -> None:
    await home.create()


async def _volume(home: House) -> None:
    await home.daemon.volumes.create("other", PROJECT, StorageVolumesPost(name="v1", type="custom"))


async def _pool(home: House) -> None:
    await home.daemon.pools.create(StoragePoolsPost(name="third", driver="dir"))


async def _network(home: House) -> None:
    config = {"ipv4.address": "198.18.2.1/24", "ipv6.address": "none"}
    await home.daemon.networks.create(NetworksPost(name="net2", config=config))


async def _start(home: House) -> None:
    await home.act("start")


async def _stop(home: House) -> None:
    await home.act("stop", force=True)


async def _delete(home: House) -> None:
    await home.delete()


async def _snapshot(home: House) -> None:
    await home.done(await home.daemon.snapshots.create(PROJECT, "c1", InstanceSnapshotsPost(name="s0")))


async def _rename_snapshot(home: House) -> None:
    post = InstanceSnapshotPost(name="s1")
    await home.done(await home.daemon.snapshots.rename(PROJECT, "c1", "s0", post))


async def _delete_snapshot(home: House) -> None:
    await home.done(await home.daemon.snapshots.delete(PROJECT, "c1", "s0"))


async def _restore(home: House) -> None:
    await home.done(await home.daemon.snapshots.restore(PROJECT, "c1", "s0", stateful=False))


async def _rename(home: House) -> None:
    await home.done(await home.daemon.instances.rename(PROJECT, "c1", InstancePost(name="c2")))


async def _copy(home: House) -> None:
    post = InstancesPost(name="c2", source=InstanceSource(type="copy", source="c1"))
    await home.done(await home.daemon.instances.create(PROJECT, post))


async def _copy_to_pool(home: House) -> None:
    devices = {"root": {"type": "disk", "path": "/", "pool": "other"}}
    post = InstancesPost(name="c2", source=InstanceSource(type="copy", source="c1"), devices=devices)
    await home.done(await home.daemon.instances.create(PROJECT, post))


async def _edit(home: House) -> None:
    shown = home.daemon.instances.show(PROJECT, "c1")
    devices = {**shown.devices, "eth1": {"type": "nic", "network": "flexbr0", "name": "eth1"}}
    put = InstancePut(
        architecture=shown.architecture,
        config={**shown.config, "user.a": "b"},
        devices=devices,
        profiles=shown.profiles,
        description="new",
    )
    await home.done(await home.daemon.instances.update(PROJECT, "c1", put))


WHERE = ("other", "custom", PROJECT, "v1")


async def _snapshot_volume(home: House) -> None:
    await home.done(await home.daemon.volume_snapshots.create(WHERE, StorageVolumeSnapshotsPost(name="s0")))


async def _rename_volume_snapshot(home: House) -> None:
    post = StorageVolumeSnapshotPost(name="s1")
    await home.done(await home.daemon.volume_snapshots.rename(WHERE, "s0", post))


async def _delete_volume_snapshot(home: House) -> None:
    await home.done(await home.daemon.volume_snapshots.delete(WHERE, "s0"))


async def _restore_volume(home: House) -> None:
    await home.daemon.volume_snapshots.restore(WHERE, "s0")


async def _copy_volume(home: House, pool: str = "other") -> None:
    source = StorageVolumeSource(type="copy", name="v1", pool="other")
    post = StorageVolumesPost(name="v2", type="custom", source=source)
    operation = await home.daemon.volumes.create(pool, PROJECT, post)
    assert operation is not None
    await home.done(operation)


async def _copy_volume_to_pool(home: House) -> None:
    await _copy_volume(home, "bt")


async def _rename_volume(home: House) -> None:
    await home.daemon.volumes.rename(*WHERE, StorageVolumePost(name="v2"))


async def _move_volume(home: House) -> None:
    operation = await home.daemon.volumes.rename(*WHERE, StorageVolumePost(name="v1", pool="bt"))
    assert operation is not None
    await home.done(operation)


async def _delete_volume(home: House) -> None:
    await home.daemon.volumes.delete(*WHERE)


async def _delete_pool(home: House) -> None:
    await home.daemon.pools.delete("third")


SCENARIOS = {
    "create": Scenario((), _instance),
    "start": Scenario((_instance,), _start),
    "delete": Scenario((_instance, _snapshot), _delete),
    "rename": Scenario((_instance, _snapshot), _rename),
    "edit": Scenario((_instance,), _edit),
    "edit, running": Scenario((_instance, _start), _edit),
    "snapshot": Scenario((_instance,), _snapshot),
    "snapshot, running": Scenario((_instance, _start), _snapshot),
    "rename a snapshot": Scenario((_instance, _snapshot), _rename_snapshot),
    "delete a snapshot": Scenario((_instance, _snapshot), _delete_snapshot),
    "restore": Scenario((_instance, _snapshot), _restore),
    "copy": Scenario((_instance, _snapshot), _copy),
    "copy to another pool": Scenario((_instance, _snapshot), _copy_to_pool),
    "make a volume": Scenario((), _volume),
    "delete a volume": Scenario((_volume, _snapshot_volume), _delete_volume),
    "rename a volume": Scenario((_volume, _snapshot_volume), _rename_volume),
    "copy a volume": Scenario((_volume, _snapshot_volume), _copy_volume),
    "copy a volume to another pool": Scenario((_volume, _snapshot_volume), _copy_volume_to_pool),
    "move a volume": Scenario((_volume, _snapshot_volume), _move_volume, _delete_volume),
    "snapshot a volume": Scenario((_volume,), _snapshot_volume),
    "rename a volume's snapshot": Scenario((_volume, _snapshot_volume), _rename_volume_snapshot),
    "delete a volume's snapshot": Scenario((_volume, _snapshot_volume), _delete_volume_snapshot),
    "restore a volume": Scenario((_volume, _snapshot_volume), _restore_volume),
    "make a pool": Scenario((), _pool),
    "delete a pool": Scenario((_pool,), _delete_pool),
}
# Without a plan: networks take back what they did by themselves; the end of a container is cleaned up after on its own.
OTHERS = {"make a network": Scenario((), _network), "stop": Scenario((_instance, _start), _stop)}


# --- what is compared ---


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        made.host.processes.harmless |= {"rsync", "find"}
        await made.daemon.pools.create(StoragePoolsPost(name="other", driver="dir"))
        await made.daemon.pools.create(StoragePoolsPost(name="bt", driver="btrfs", config={"size": "1GiB"}))
        yield made


def _on_disk(home: House) -> Iterator[str]:
    """What lies in the pools, two levels deep; names of frozen content are random, and what goes in the background
    has gone as far as anybody can see."""
    top = home.daemon.directory / "storage-pools"
    for pool in sorted(os.listdir(top)):
        for folder in sorted(os.listdir(top / pool)):
            if folder.startswith(".deleting"):
                continue
            inside = sorted(os.listdir(top / pool / folder)) if (top / pool / folder).is_dir() else []
            yield f"{pool}/{folder}: {len(inside) if folder == 'frozen' else inside}"


def _state(home: House, *, documents: bool = True) -> dict[str, object]:
    found: dict[str, object] = {**home.host_state(), "disk": list(_on_disk(home))}
    if documents:
        entries = home.daemon._mirror.list("/")
        found["documents"] = {e.key: e.value for e in entries if not e.key.startswith("/warnings/")}
    return found


async def _settle(home: House) -> None:
    for pool in home.daemon.pools.names():
        await home.daemon.pools.driver(pool).settle()


class Watched:
    """Counts the steps of all plans from now on; at the one of this number an error is raised."""

    def __init__(self, home: House, number: int = -1) -> None:
        self.plans: list[tuple[Plan, int]] = []
        self._number = number
        home.daemon.journal.before_step = self._step

    async def _step(self, plan: Plan, position: int, _step: Step) -> None:
        self.plans.append((plan, position))
        if len(self.plans) - 1 == self._number:
            raise HostError("the test says no", 5)


async def _prepare(home: House, scenario: Scenario) -> None:
    for each in scenario.before:
        await each(home)
    await _settle(home)


async def _fails(home: House, tried: Do) -> bool:
    try:
        await tried(home)
    except (FlexdError, OSError):
        return True
    finally:
        await _settle(home)
    return False


def _can_be_taken_back(plans: list[tuple[Plan, int]], number: int) -> bool:
    """What came to an end before the failing plan stays; a plan to finish has nothing to take back."""
    plan, _ = plans[number]
    return plan.on_crash == "undo" and plans[0][0].description == plan.description


@pytest.mark.parametrize("name", SCENARIOS)
async def test_each_step_fails(home: House, name: str):
    scenario = SCENARIOS[name]
    await _prepare(home, scenario)
    before, number = _state(home), 0
    while True:
        watched = Watched(home, number)
        failed = await _fails(home, scenario.tried)
        home.daemon.journal.before_step = None
        if len(watched.plans) <= number:
            assert not failed
            break
        if not _can_be_taken_back(watched.plans, number):
            assert not await _fails(home, scenario.finished_by or scenario.tried), f"{name}, step {number}"
            break
        assert _state(home) == before, f"{name}, step {number}"
        number += 1
    assert watched.plans, f"{name} has no plan"


@pytest.mark.parametrize("name", [*SCENARIOS, *OTHERS])
async def test_each_call_to_the_host_fails(home: House, name: str):
    """Whatever step it is in, and outside of steps too."""
    scenario = (SCENARIOS | OTHERS)[name]
    await _prepare(home, scenario)
    before = _state(home)
    for number in range(300):
        watched = Watched(home)
        home.host.fail(method="*", error=HostError("the test says no", 5), after=number, times=1)
        failed = await _fails(home, scenario.tried)
        home.host.heal()
        if not failed:
            break
        if watched.plans and not _can_be_taken_back(watched.plans, len(watched.plans) - 1):
            assert not await _fails(home, scenario.finished_by or scenario.tried), f"{name}, call {number}"
            break
        assert _state(home) == before, f"{name}, call {number}"
    else:
        raise AssertionError("it never succeeds")


@pytest.mark.parametrize("name", SCENARIOS)
async def test_the_daemon_is_killed_before_each_step(home: House, tmp_path: Path, name: str):
    """The next one takes back, or finishes, what it finds in the journal."""
    scenario = SCENARIOS[name]
    await _prepare(home, scenario)
    before = _state(home, documents=False)
    watched = Watched(home, 0)
    assert await _fails(home, scenario.tried)
    home.daemon.journal.before_step = None
    plan = watched.plans[0][0]
    for position in range(len(plan.steps)):
        await interrupt(home, plan, position)
        await restart(home, tmp_path)
        await _settle(home)
        assert await home.daemon.journal.failed() == [], f"{name}, step {position}"
        if plan.on_crash == "finish":
            break
        assert _state(home, documents=False) == before, f"{name}, step {position}"
    assert plan.on_crash == "finish" or not await _fails(home, scenario.tried), f"{name}, afterwards"
