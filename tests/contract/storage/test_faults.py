# SPDX-License-Identifier: Apache-2.0
"""Every call that a driver makes to the host fails once: nothing half-made stays, and a second try succeeds."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from flexd.api.idmap import IdMap
from flexd.host.contract import HostError
from flexd.host.fake import FakeHost
from flexd.storage import drivers
from flexd.storage.contract import Driver
from tests.contract.storage.places import IDMAP, make_unpack, tidy

SIZE_BYTES = 1 << 30
Do = Callable[[Driver], Awaitable[object]]


class Scenario(NamedTuple):
    """What is there before, and what is then tried. Both can be done twice."""

    before: Do
    tried: Do


async def nothing(driver: Driver) -> None:
    pass


async def create(driver: Driver) -> None:
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=SIZE_BYTES)


async def create_and_mount(driver: Driver) -> None:
    await create(driver)
    await driver.mount_volume("container", "c1", IDMAP)


async def create_and_use(driver: Driver) -> None:
    await create_and_mount(driver)
    await driver.unmount_volume("container", "c1")


async def image_only(driver: Driver) -> None:
    await driver.create_image("f00", make_unpack())


async def use_and_delete_image(driver: Driver) -> None:
    await create_and_mount(driver)
    await driver.delete_image("f00")


async def create_and_snapshot(driver: Driver) -> None:
    await create_and_write(driver, "one")
    await driver.create_snapshot("container", "c1", "snap0")


async def create_and_write(driver: Driver, text: str) -> None:
    root = await create_and_get(driver)
    await asyncio.to_thread((root / text).write_text, text)
    await driver.unmount_volume("container", "c1")


async def create_and_get(driver: Driver) -> Path:
    await create(driver)
    return await driver.mount_volume("container", "c1", IDMAP)


async def snapshot_and_write(driver: Driver) -> None:
    await create_and_snapshot(driver)
    await create_and_write(driver, "two")


async def two_snapshots(driver: Driver) -> None:
    await snapshot_and_write(driver)
    await driver.create_snapshot("container", "c1", "snap1")


async def two_volumes(driver: Driver) -> None:
    await create_and_snapshot(driver)
    await driver.create_from_image("container", "c2", "f00", make_unpack(), size_bytes=SIZE_BYTES)


async def custom_snapshot(driver: Driver) -> None:
    await driver.create_volume("custom", "data", size_bytes=SIZE_BYTES)
    await driver.create_snapshot("custom", "data", "snap0")


async def look(driver: Driver) -> None:
    async with driver.view("container", "c1", IdMap()) as root:
        assert await asyncio.to_thread((root / "one").exists)


SCENARIOS = {
    "create from a new image": Scenario(nothing, create),
    "create from a known image": Scenario(image_only, create),
    "create empty": Scenario(nothing, lambda driver: driver.create_volume("container", "c1", size_bytes=SIZE_BYTES)),
    "create custom": Scenario(nothing, lambda driver: driver.create_volume("custom", "c1", size_bytes=SIZE_BYTES)),
    "first mount": Scenario(create, lambda driver: driver.mount_volume("container", "c1", IDMAP)),
    "mount under another map": Scenario(
        create_and_use, lambda driver: driver.mount_volume("container", "c1", IdMap.single(2000000, 65536))
    ),
    "mounted, another map": Scenario(
        create_and_mount, lambda driver: driver.mount_volume("container", "c1", IdMap.single(2000000, 65536))
    ),
    "unmount": Scenario(create_and_mount, lambda driver: driver.unmount_volume("container", "c1")),
    "resize": Scenario(create, lambda driver: driver.resize_volume("container", "c1", 2 * SIZE_BYTES)),
    "rename": Scenario(create_and_mount, lambda driver: driver.rename_volume("container", "c1", "c2")),
    "delete": Scenario(create_and_mount, lambda driver: driver.delete_volume("container", "c1")),
    "delete image": Scenario(image_only, lambda driver: driver.delete_image("f00")),
    "delete the last volume": Scenario(use_and_delete_image, lambda driver: driver.delete_volume("container", "c1")),
    "snapshot": Scenario(
        lambda driver: create_and_write(driver, "one"),
        lambda driver: driver.create_snapshot("container", "c1", "snap0"),
    ),
    "live snapshot": Scenario(
        create_and_mount, lambda driver: driver.create_snapshot("container", "c1", "snap0", live=True)
    ),
    "snapshot custom": Scenario(
        lambda driver: driver.create_volume("custom", "data", size_bytes=SIZE_BYTES),
        lambda driver: driver.create_snapshot("custom", "data", "snap0"),
    ),
    "snapshot again": Scenario(snapshot_and_write, lambda driver: driver.create_snapshot("container", "c1", "snap1")),
    "delete snapshot": Scenario(create_and_snapshot, lambda driver: driver.delete_snapshot("container", "c1", "snap0")),
    "delete the older snapshot": Scenario(
        two_snapshots, lambda driver: driver.delete_snapshot("container", "c1", "snap0")
    ),
    "rename snapshot": Scenario(
        create_and_snapshot, lambda driver: driver.rename_snapshot("container", "c1", "snap0", "snap1")
    ),
    "restore": Scenario(snapshot_and_write, lambda driver: driver.restore_snapshot("container", "c1", "snap0")),
    "restore custom": Scenario(custom_snapshot, lambda driver: driver.restore_snapshot("custom", "data", "snap0")),
    "mount snapshot": Scenario(
        create_and_snapshot, lambda driver: driver.mount_snapshot("container", "c1", "snap0", IDMAP)
    ),
    "copy": Scenario(
        snapshot_and_write, lambda driver: driver.copy_volume("container", "c1", "c2", size_bytes=SIZE_BYTES)
    ),
    "copy a snapshot": Scenario(
        snapshot_and_write,
        lambda driver: driver.copy_volume("container", "c1", "c2", snapshot="snap0", size_bytes=SIZE_BYTES),
    ),
    "take a snapshot along": Scenario(
        two_volumes, lambda driver: driver.copy_snapshot("container", "c1", "snap0", "c2")
    ),
    "create from a tree": Scenario(
        nothing,
        lambda driver: driver.create_from_tree("container", "c1", make_unpack(), size_bytes=SIZE_BYTES),
    ),
    "replace": Scenario(two_volumes, lambda driver: driver.replace_content("container", "c2", "c1")),
    "refresh": Scenario(
        two_volumes,
        lambda driver: driver.refresh_volume("container", "c2", lambda idmap: driver.view("container", "c1", idmap)),
    ),
    "look": Scenario(lambda driver: create_and_write(driver, "one"), look),
    "delete with snapshots": Scenario(two_snapshots, lambda driver: driver.delete_volume("container", "c1")),
}


class Place:
    """Fresh pools of one driver, each on a fake host of its own."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._directory = directory
        self._open: list[tuple[FakeHost, Driver]] = []

    async def pool(self) -> tuple[FakeHost, Driver, Path]:
        number = len(self._open)
        host, path = FakeHost(), self._directory / f"flexd{number}" / "storage-pools" / "p"
        driver = drivers.load(self.name)(host=host, pool="p", directory=path, config={})
        self._open.append((host, driver))
        await driver.create_pool()
        return host, driver, path

    async def close(self) -> None:
        for host, driver in self._open:
            await driver.close()
            await host.close()


@pytest.fixture
async def places(driver_name: str, tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(driver_name, tmp_path)
    yield place
    await place.close()


def picture(path: Path) -> list[str]:
    """Every directory and link of a pool down to what a volume consists of, with what the links say."""
    found = _picture(path)
    # Frozen content has random names: it is called by what it holds.
    for number, name in enumerate(sorted(os.listdir(path / "frozen"), key=lambda n: _picture(path / "frozen" / n))):
        found = [line.replace(name, f"frozen{number}") for line in found]
    return sorted(found)


def _picture(path: Path) -> list[str]:
    found = []
    for top, folders, files in os.walk(path):
        for name in (*folders, *files):
            entry = Path(top) / name
            if entry.is_symlink():
                text = "(random)" if name == "project" else os.readlink(entry)
                # The fake host mounts by links into a directory of its own.
                found.append(f"{entry.relative_to(path)} -> {'(mount)' if text.startswith('/') else text}")
            else:
                found.append(str(entry.relative_to(path)))
    return sorted(found)


async def count_calls(places: Place, scenario: Scenario) -> tuple[list[tuple[str, int]], list[str]]:
    """The calls as (method, how many of the same before it), and the pool after all went well."""
    host, driver, path = await places.pool()
    await scenario.before(driver)
    await driver.settle()
    begin = len(host.calls)
    await scenario.tried(driver)
    await driver.settle()
    methods = [call.method for call in host.calls[begin:]]
    return [(method, methods[:index].count(method)) for index, method in enumerate(methods)], picture(path)


@pytest.mark.parametrize("name", SCENARIOS)
async def test_every_call_fails_once(places: Place, name: str) -> None:
    scenario = SCENARIOS[name]
    calls, wanted = await count_calls(places, scenario)
    # The dir driver has no images to delete, and taking a snapshot along is a link.
    assert calls or places.name == "dir" or name == "take a snapshot along"
    for method, skipped in calls:
        host, driver, path = await places.pool()
        await scenario.before(driver)
        await driver.settle()
        before = await driver.list_volumes()
        host.fail(method=method, error=HostError(f"{method} failed"), after=skipped, times=1)
        where = f"{name}: {method} ({skipped + 1}.)"
        try:
            await scenario.tried(driver)
        except HostError:
            await driver.settle()
            assert tidy(path), where
            # What the mount of an overlay needs is made before; a volume itself is there or it isn't.
            assert [found for found in await driver.list_volumes() if found[0] != "image"] in (
                [found for found in before if found[0] != "image"],
                [],
            ), where
        host.heal()
        await driver.settle()
        again = drivers.load(driver.name)(host=host, pool="p", directory=path, config={})
        await again.mount_pool()
        await scenario.tried(again)
        await again.settle()
        assert picture(path) == wanted, where


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_pool_goes_whole_after_any_failure(places: Place, name: str) -> None:
    scenario = SCENARIOS[name]
    calls, _ = await count_calls(places, scenario)
    for method, skipped in calls:
        host, driver, path = await places.pool()
        await scenario.before(driver)
        host.fail(method=method, error=HostError(f"{method} failed"), after=skipped, times=1)
        try:
            await scenario.tried(driver)
        except HostError:
            await driver.settle()
        host.heal()
        for kind, volume in await driver.list_volumes():
            if kind == "image":
                await driver.delete_image(volume)
            else:
                await driver.delete_volume(kind, volume)
        await driver.delete_pool()
        assert not path.exists()
        assert host.quotas.limits == {}, f"{name}: {method} ({skipped + 1}.)"
        assert host.mounts.table == []


async def test_every_call_of_making_a_pool_fails_once(driver_name: str, tmp_path: Path) -> None:
    kind = drivers.load(driver_name)
    counting, disk = FakeHost(), tmp_path / "disk"
    disk.mkdir()

    def make(host: FakeHost, number: int) -> Driver:
        path = tmp_path / f"flexd{number}" / "storage-pools" / "p"
        return kind(host=host, pool="p", directory=path, config={"source": str(disk)})

    driver = make(counting, 0)
    await driver.create_pool()
    methods = [call.method for call in counting.calls]
    await driver.delete_pool()
    await counting.close()
    for index, method in enumerate(methods):
        host = FakeHost()
        driver = make(host, index + 1)
        host.fail(method=method, error=HostError(f"{method} failed"), after=methods[:index].count(method), times=1)
        with pytest.raises(Exception, match=f"{method} failed"):
            await driver.create_pool()
        assert os.listdir(disk) == []
        assert host.mounts.table == []
        await driver.create_pool()
        await driver.delete_pool()
        assert os.listdir(disk) == []
        await host.close()
