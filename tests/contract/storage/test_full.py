# SPDX-License-Identifier: Apache-2.0
"""A pool that is full, on each driver: what does not fit is refused with the kernel's words, nothing half-made stays,
and all works again once there is space."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from flexd.api.errors import FlexdError
from flexd.api.idmap import IdMap
from flexd.storage.contract import Driver
from tests.contract.storage.places import MakeDriver, make_unpack, tidy

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a small file system has to be mounted")

MIB = 1 << 20
FULL = r"(?i)no space left|ENOSPC"


@pytest.fixture(params=["real"])
def real() -> bool:
    return True


@pytest.fixture
async def small(make: MakeDriver, place: Path, driver_name: str) -> tuple[Driver, Path]:
    """A pool on 160 MiB of its own, and a directory of the same file system."""
    image, disk = place / "small.img", place / "small"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(160 * MIB)
    program = ["mkfs.btrfs", "--quiet"] if driver_name == "btrfs" else ["mkfs.ext4", "-q", "-m", "0"]
    await asyncio.to_thread(subprocess.run, [*program, str(image)], check=True)
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "loop", str(image), str(disk)], check=True)
    (disk / "pool").mkdir()
    driver = make("small", source=str(disk / "pool"))
    await driver.check_new_pool()
    await driver.create_pool()
    return driver, disk


def _fill(directory: Path) -> None:
    """Take all the space there is, down to the last block."""
    with (directory / "filler").open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(os.urandom(size))
                    os.fsync(file.fileno())


def _write(path: Path) -> None:
    path.write_bytes(os.urandom(20 * MIB))


async def _unpack_much(target: Path) -> None:
    await asyncio.to_thread(_write, target / "much")


async def _image(driver: Driver) -> None:
    await driver.create_from_image("container", "c9", "f99", _unpack_much, size_bytes=0)


async def _tree(driver: Driver) -> None:
    await driver.create_from_tree("container", "c9", _unpack_much, size_bytes=0)


async def _live_snapshot(driver: Driver) -> None:
    await driver.create_snapshot("container", "c1", "s9", live=True)


async def _custom_snapshot(driver: Driver) -> None:
    await driver.create_snapshot("custom", "data", "s9")


async def _copy(driver: Driver) -> None:
    await driver.copy_volume("custom", "data", "copy")


async def _refresh(driver: Driver) -> None:
    await driver.create_from_tree("custom", "scratch", _unpack_much, size_bytes=0)


# Where a driver shares what it keeps, these need no space to speak of.
SHARED = {"btrfs": {"a snapshot in use", "a snapshot of a custom volume", "a copy"}}
TRIED: dict[str, Callable[[Driver], Awaitable[None]]] = {
    "an image": _image,
    "a backup": _tree,
    "a snapshot in use": _live_snapshot,
    "a snapshot of a custom volume": _custom_snapshot,
    "a copy": _copy,
    "a custom volume": _refresh,
}


async def _prepared(driver: Driver) -> None:
    """A container and a custom volume with 20 MiB each, and a snapshot of both."""
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    root = await driver.mount_volume("container", "c1", IdMap())
    await asyncio.to_thread(_write, root / "mine")
    await driver.create_volume("custom", "data", size_bytes=0)
    data = await driver.mount_volume("custom", "data", IdMap())
    await asyncio.to_thread(_write, data / "mine")
    await driver.create_snapshot("custom", "data", "s0")


async def _state(driver: Driver, pool: Path) -> object:
    volumes = [found for found in await driver.list_volumes() if found[0] != "image"]
    snapshots = {name: await driver.list_snapshots(kind, name) for kind, name in volumes}
    return volumes, snapshots, len(os.listdir(pool / "frozen")), tidy(pool)


@pytest.mark.parametrize("tried", TRIED)
async def test_what_does_not_fit(small: tuple[Driver, Path], driver_name: str, tried: str) -> None:
    driver, disk = small
    pool = disk / "pool"
    await _prepared(driver)
    before = await _state(driver, pool)
    await asyncio.to_thread(_fill, disk)
    if tried not in SHARED.get(driver_name, ()):
        with pytest.raises((FlexdError, OSError), match=FULL):
            await TRIED[tried](driver)
        await driver.settle()
        assert await _state(driver, pool) == before
    (disk / "filler").unlink()
    await asyncio.to_thread(os.sync)
    await TRIED[tried](driver)
    await driver.settle()
    assert tidy(pool)


async def test_what_is_there_can_be_used_and_removed(small: tuple[Driver, Path], driver_name: str) -> None:
    """A full pool is made emptier by deleting, without filling it any further."""
    driver, disk = small
    await _prepared(driver)
    await asyncio.to_thread(_fill, disk)
    root = await driver.mount_volume("container", "c1", IdMap())
    assert (root / "mine").stat().st_size == 20 * MIB
    await driver.delete_snapshot("custom", "data", "s0")
    await driver.delete_volume("custom", "data")
    await driver.settle()
    await asyncio.to_thread(os.sync)
    if driver_name == "btrfs":  # what goes with a subvolume is free once the kernel's cleaner has been there
        await asyncio.to_thread(subprocess.run, ["btrfs", "subvolume", "sync", str(disk)], check=True)
        await asyncio.to_thread(os.sync)
    await asyncio.to_thread((disk / "again").write_bytes, os.urandom(5 * MIB))
    await driver.delete_volume("container", "c1")
    await driver.settle()
    assert tidy(disk / "pool")
