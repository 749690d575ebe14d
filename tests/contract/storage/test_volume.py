# SPDX-License-Identifier: Apache-2.0
"""What every driver must do with volumes and images."""

import asyncio
import os
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, Conflict, FlexdError
from flexd.api.idmap import IdMap
from flexd.host.contract import Host
from flexd.storage.contract import Driver, QuotaUnsupported, VolumeNotFound
from tests.contract.storage.places import IDMAP, MakeDriver, make_unpack, tidy

SIZE_BYTES = 64 << 20


async def test_a_volume_is_made_from_an_image(driver: Driver) -> None:
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    assert ("container", "c1") in await driver.list_volumes()


async def test_a_repeated_creation_changes_nothing(driver: Driver) -> None:
    unpack = make_unpack()
    for _ in range(2):
        await driver.create_from_image("container", "c1", "f00", unpack, size_bytes=0)
    assert unpack.calls == 1


async def test_an_empty_volume(driver: Driver) -> None:
    await driver.create_volume("container", "c1", size_bytes=0)
    path = await driver.mount_volume("container", "c1", IDMAP)
    assert path.name == "rootfs"


async def test_a_failed_unpack_leaves_nothing(driver: Driver, path: Path) -> None:
    with pytest.raises(RuntimeError, match="torn"):
        await driver.create_from_image("container", "c1", "f00", make_unpack(RuntimeError("torn")), size_bytes=0)
    assert await driver.list_volumes() == []
    assert tidy(path)
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)


async def test_a_cancelled_unpack_leaves_nothing(driver: Driver, path: Path) -> None:
    begun = asyncio.Event()

    async def unpack(target: Path) -> None:
        await asyncio.to_thread((target / "half").touch)
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(driver.create_from_image("container", "c1", "f00", unpack, size_bytes=0))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await driver.list_volumes() == []
    assert tidy(path)


async def test_many_volumes_at_once_from_one_image(driver: Driver) -> None:
    unpack = make_unpack()
    names = [f"c{number}" for number in range(8)]
    await asyncio.gather(*(driver.create_from_image("container", name, "f00", unpack, size_bytes=0) for name in names))
    assert [name for kind, name in await driver.list_volumes() if kind == "container"] == names
    assert unpack.calls == (1 if driver.optimized_images else len(names))


async def test_mounting_twice_is_mounting_once(driver: Driver, host: Host) -> None:
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    path = await driver.mount_volume("container", "c1", IDMAP)
    assert await driver.mount_volume("container", "c1", IDMAP) == path
    assert await host.mounts.mounted(path)
    for _ in range(2):
        await driver.unmount_volume("container", "c1")
        assert not await host.mounts.mounted(path)


async def test_a_restarted_daemon_finds_the_mount(driver: Driver, host: Host, make: MakeDriver) -> None:
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    path = await driver.mount_volume("container", "c1", IDMAP)
    again = make("p")
    await again.mount_pool()
    before = await host.mounts.below(path)
    assert await again.mount_volume("container", "c1", IDMAP) == path
    assert await host.mounts.below(path) == before


async def test_mounting_what_is_not_there(driver: Driver) -> None:
    with pytest.raises(VolumeNotFound, match=r'Storage volume not found: "c1" \(container\) in storage pool "p"'):
        await driver.mount_volume("container", "c1", IDMAP)


async def test_renaming(driver: Driver) -> None:
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    await driver.mount_volume("container", "c1", IDMAP)
    for _ in range(2):
        await driver.rename_volume("container", "c1", "c2")
    assert [found for found in await driver.list_volumes() if found[0] == "container"] == [("container", "c2")]
    await driver.mount_volume("container", "c2", IDMAP)


async def test_renaming_onto_another_volume(driver: Driver) -> None:
    for name in ("c1", "c2"):
        await driver.create_from_image("container", name, "f00", make_unpack(), size_bytes=0)
    with pytest.raises(Conflict, match='"c2" exists'):
        await driver.rename_volume("container", "c1", "c2")


async def test_deleting_takes_the_mount_along(driver: Driver, host: Host, path: Path) -> None:
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    rootfs = await driver.mount_volume("container", "c1", IDMAP)
    for _ in range(2):
        await driver.delete_volume("container", "c1")
    assert not await host.mounts.mounted(rootfs)
    assert ("container", "c1") not in await driver.list_volumes()
    await driver.settle()
    assert tidy(path)


async def test_a_deleted_image_stays_below_its_volumes(driver: Driver, path: Path) -> None:
    for name in ("c1", "c2"):
        await driver.create_from_image("container", name, "f00", make_unpack(), size_bytes=0)
    await driver.delete_image("f00")
    await driver.delete_image("f00")
    assert not await driver.has_image("f00")
    assert ("image", "f00") not in await driver.list_volumes()
    await driver.mount_volume("container", "c1", IDMAP)
    await driver.delete_volume("container", "c1")
    await driver.mount_volume("container", "c2", IDMAP)
    await driver.delete_volume("container", "c2")
    await driver.settle()
    assert os.listdir(path / "images") == []


async def test_an_image_deleted_under_a_renamed_volume(driver: Driver) -> None:
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    await driver.rename_volume("container", "c1", "c2")
    await driver.delete_image("f00")
    await driver.mount_volume("container", "c2", IDMAP)


async def test_an_unused_image_goes_at_once(driver: Driver, path: Path) -> None:
    await driver.create_image("f00", make_unpack())
    assert await driver.has_image("f00") == driver.optimized_images
    await driver.delete_image("f00")
    await driver.settle()
    assert os.listdir(path / "images") == []


async def test_an_image_wanted_again_is_not_unpacked_again(driver: Driver) -> None:
    if driver.name == "btrfs":
        pytest.skip("volumes are independent of the image, which goes at once")
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    await driver.delete_image("f00")
    unpack = make_unpack()
    await driver.create_from_image("container", "c2", "f00", unpack, size_bytes=0)
    assert unpack.calls == (0 if driver.optimized_images else 1)
    await driver.delete_volume("container", "c1")
    await driver.delete_volume("container", "c2")
    assert await driver.has_image("f00") == driver.optimized_images


async def test_an_unwanted_image_whose_volumes_are_gone_goes_at_the_next_start(
    driver: Driver, path: Path, make: MakeDriver
) -> None:
    if driver.name != "overlay":
        pytest.skip("the driver keeps no images below volumes")
    await driver.create_image("f00", make_unpack())
    (path / "images" / "f00" / "unwanted").touch()
    again = make("p")
    await again.mount_pool()
    await again.settle()
    assert os.listdir(path / "images") == []


async def test_a_custom_volume_is_a_directory(driver: Driver) -> None:
    await driver.create_volume("custom", "data", size_bytes=0)
    path = await driver.mount_volume("custom", "data", IdMap())
    assert path.is_dir()
    assert os.listdir(path) == []
    (path / "x").touch()
    await driver.unmount_volume("custom", "data")
    await driver.rename_volume("custom", "data", "more")
    assert os.listdir(await driver.mount_volume("custom", "more", IdMap())) == ["x"]


@pytest.mark.parametrize("name", ["", "../c1", "a/b", ".hidden"])
async def test_names_do_not_leave_the_pool(driver: Driver, name: str) -> None:
    with pytest.raises(BadRequest, match="Invalid volume name"):
        await driver.create_volume("container", name, size_bytes=0)


async def test_a_size_is_kept_or_refused_never_ignored(driver: Driver, path: Path) -> None:
    fault = await driver.quota_fault()
    if fault is None:
        await driver.create_volume("custom", "data", size_bytes=SIZE_BYTES)
        await driver.resize_volume("custom", "data", 2 * SIZE_BYTES)
        assert await driver.volume_usage("custom", "data") is not None
        return
    with pytest.raises(QuotaUnsupported) as raised:
        await driver.create_volume("custom", "data", size_bytes=SIZE_BYTES)
    assert all(part in str(raised.value) for part in ('"p"', str(path), fault))
    assert await driver.list_volumes() == []
    assert tidy(path)
    await driver.create_volume("custom", "data", size_bytes=0)
    with pytest.raises(QuotaUnsupported):
        await driver.resize_volume("custom", "data", SIZE_BYTES)
    await driver.resize_volume("custom", "data", 0)


async def test_another_idmap_replaces_the_mount(driver: Driver, host: Host) -> None:
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    for idmap in (IDMAP, IdMap(), IdMap.single(2000000, 65536), IDMAP):
        path = await driver.mount_volume("container", "c1", idmap)
        assert len(await host.mounts.below(path)) == 1
        await driver.unmount_volume("container", "c1")


async def test_errors_are_ours(driver: Driver) -> None:
    with pytest.raises(FlexdError):
        await driver.rename_volume("container", "c1", "c2")
    with pytest.raises(FlexdError):
        await driver.resize_volume("container", "c1", 0)
