# SPDX-License-Identifier: Apache-2.0
"""What every driver must do with a pool."""

import os
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest
from flexd.storage.contract import PoolUnavailable
from tests.contract.storage.places import MakeDriver, make_unpack


async def test_a_pool_lies_below_the_daemon_by_default(make: MakeDriver, place: Path) -> None:
    filled = await make("p").create_pool()
    assert filled == {"source": str(place / "flexd" / "storage-pools" / "p")}
    assert (place / "flexd" / "storage-pools" / "p").stat().st_mode & 0o7777 == 0o711


async def test_a_pool_can_be_made_twice_and_removed_twice(make: MakeDriver, place: Path) -> None:
    driver = make("p")
    await driver.create_pool()
    await driver.create_pool()
    assert await driver.list_volumes() == []
    await driver.delete_pool()
    await driver.delete_pool()
    assert not (place / "flexd" / "storage-pools" / "p").exists()


async def test_a_pool_in_a_given_directory(make: MakeDriver, place: Path) -> None:
    source = place / "disk"
    source.mkdir()
    driver = make("p", source=str(source))
    filled = await driver.create_pool()
    assert filled == {"source": str(source), "volatile.initial_source": str(source)}
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    await driver.delete_pool()
    assert source.is_dir()
    assert not (place / "flexd" / "storage-pools" / "p").exists()


async def test_a_deleted_pool_leaves_what_others_put_into_its_source(make: MakeDriver, place: Path) -> None:
    source = place / "disk"
    source.mkdir()
    driver = make("p", source=str(source))
    await driver.create_pool()
    (source / "theirs").write_text("x")
    await driver.delete_pool()
    assert os.listdir(source) == ["theirs"]


async def test_a_source_must_exist(make: MakeDriver, place: Path) -> None:
    with pytest.raises(BadRequest, match=r"Source path '.*/nowhere' doesn't exist"):
        await make("p", source=str(place / "nowhere")).check_new_pool()


async def test_a_source_must_be_empty(make: MakeDriver, place: Path) -> None:
    (place / "disk" / "theirs").mkdir(parents=True)
    with pytest.raises(BadRequest, match=r"Source path '.*/disk' isn't empty"):
        await make("p", source=str(place / "disk")).check_new_pool()
    assert os.listdir(place / "disk") == ["theirs"]


async def test_a_place_in_use_becomes_no_pool(make: MakeDriver, place: Path) -> None:
    await make("p").check_new_pool()
    await make("p").create_pool()
    with pytest.raises(BadRequest, match=r"Source path '.*/storage-pools/p' isn't empty"):
        await make("p").check_new_pool()


async def test_a_source_must_not_be_the_daemons_own(make: MakeDriver, place: Path) -> None:
    (place / "flexd" / "storage-pools" / "other").mkdir(parents=True)
    with pytest.raises(BadRequest, match="is within the flexd directory"):
        await make("p", source=str(place / "flexd" / "storage-pools" / "other")).check_new_pool()


async def test_a_pool_is_mounted_again(make: MakeDriver, place: Path) -> None:
    source = place / "disk"
    source.mkdir()
    await make("p", source=str(source)).create_pool()
    again = make("p", source=str(source))
    await again.mount_pool()
    await again.mount_pool()
    await again.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    assert ("container", "c1") in await again.list_volumes()
    await again.delete_pool()


async def test_a_pool_whose_source_is_gone_cannot_be_mounted(make: MakeDriver, place: Path) -> None:
    with pytest.raises(PoolUnavailable, match="doesn't exist"):
        await make("p", source=str(place / "gone")).mount_pool()


async def test_what_a_crash_left_goes_when_the_pool_is_mounted(make: MakeDriver, place: Path) -> None:
    await make("p").create_pool()
    pool = place / "flexd" / "storage-pools" / "p"
    for name in (".creating-1", ".deleting-2"):
        (pool / name / "rootfs").mkdir(parents=True)
    driver = make("p")
    await driver.mount_pool()
    await driver.settle()
    assert not [name for name in os.listdir(pool) if name.startswith(".")]
