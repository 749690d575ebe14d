# SPDX-License-Identifier: Apache-2.0
"""What only a real kernel shows: ids through the mounts, who may reach a container's root, quotas."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest
from flexd.api.idmap import IdMap
from flexd.host.contract import Host
from flexd.storage import drivers
from flexd.storage.contract import Driver
from tests.contract.storage.places import IDMAP, MakeDriver, make_unpack

OTHER = IdMap.single(2000000, 65536)
MIB = 1 << 20


@pytest.fixture(params=["real"])
def real(request: pytest.FixtureRequest) -> bool:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    return True


@pytest.fixture
async def volume(driver: Driver) -> Driver:
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    return driver


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def can(uid: int, *command: str) -> bool:
    """Whether a host user without any further group may run a command."""
    argv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command]
    return subprocess.run(argv, capture_output=True).returncode == 0


async def test_ids_are_shifted_and_shown_as_they_are(volume: Driver) -> None:
    root = await volume.mount_volume("container", "c1", IDMAP)
    assert owner(root) == owner(root / "etc" / "hostname") == (1000000, 1000000)
    assert root.stat().st_mode & 0o7777 == 0o755
    assert (root / "bin" / "tool").stat().st_mode & 0o7777 == 0o4755


async def test_a_privileged_container_sees_the_hosts_ids(volume: Driver) -> None:
    root = await volume.mount_volume("container", "c1", IdMap())
    assert owner(root) == owner(root / "etc" / "hostname") == (0, 0)


@pytest.mark.parametrize("idmap", [IDMAP, IdMap()], ids=["unprivileged", "privileged"])
async def test_other_users_cannot_enter(volume: Driver, idmap: IdMap, path: Path) -> None:
    root = await volume.mount_volume("container", "c1", idmap)
    assert not can(65534, "stat", str(root))
    assert not can(65534, "ls", str(path))
    assert not can(65534, "ls", str(path / "images"))
    container_root = idmap.host_uid(0)
    assert container_root is not None
    assert can(container_root, "cat", str(root / "etc" / "hostname"))
    if container_root:
        assert not can(container_root, "touch", str(root.parent / "size"))


async def test_what_was_written_stays_under_every_idmap(volume: Driver) -> None:
    root = await volume.mount_volume("container", "c1", IDMAP)
    hostname, linked = root / "etc" / "hostname", root / "home" / "linked"
    # As the container's root: the host's has no id in there.
    assert can(
        1000000, "sh", "-c", f"mkdir {root}/home; echo changed >{hostname}; rm {root}/bin/tool; ln {hostname} {linked}"
    )
    os.chown(hostname, 1001000, 1001000)
    await volume.unmount_volume("container", "c1")
    for idmap in (IDMAP, IdMap(), OTHER, IDMAP):
        await volume.mount_volume("container", "c1", idmap)
        user = (idmap.host_uid(1000), idmap.host_gid(1000))
        assert owner(root) == (idmap.host_uid(0), idmap.host_gid(0))
        assert owner(hostname) == user
        assert hostname.read_text() == "changed\n"
        assert linked.stat().st_nlink == 2
        assert not (root / "bin" / "tool").exists()
        assert (root / "etc").stat().st_mode & 0o7777 == 0o755
        await volume.unmount_volume("container", "c1")


async def test_volumes_of_one_image_do_not_see_each_other(volume: Driver) -> None:
    await volume.create_from_image("container", "c2", "f00", make_unpack(), size_bytes=0)
    first = await volume.mount_volume("container", "c1", IDMAP)
    second = await volume.mount_volume("container", "c2", OTHER)
    (first / "etc" / "hostname").write_text("mine\n")
    assert (second / "etc" / "hostname").read_text() == "image\n"
    assert owner(second / "etc" / "hostname") == (2000000, 2000000)


async def test_writing_works_and_survives_the_mount(volume: Driver) -> None:
    root = await volume.mount_volume("container", "c1", IDMAP)
    assert can(1000000, "sh", "-c", f"echo hello >{root}/etc/motd")
    await volume.unmount_volume("container", "c1")
    assert not (root / "etc").exists()
    root = await volume.mount_volume("container", "c1", IDMAP)
    assert (root / "etc" / "motd").read_text() == "hello\n"
    assert owner(root / "etc" / "motd") == (1000000, 1000000)


async def test_an_empty_volume_belongs_to_its_container(driver: Driver) -> None:
    await driver.create_volume("container", "c1", size_bytes=0)
    for idmap in (IDMAP, OTHER):
        root = await driver.mount_volume("container", "c1", idmap)
        assert owner(root) == (idmap.host_uid(0), idmap.host_gid(0))
        await driver.unmount_volume("container", "c1")


async def test_a_mounted_volume_is_not_deleted_while_it_is_busy(volume: Driver, host: Host) -> None:
    root = await volume.mount_volume("container", "c1", IDMAP)
    with (root / "etc" / "hostname").open(), pytest.raises(Exception, match="busy"):
        await volume.delete_volume("container", "c1")
    assert ("container", "c1") in await volume.list_volumes()
    assert await host.mounts.mounted(root)
    await volume.delete_volume("container", "c1")


async def test_the_kernels_unreadable_work_directory_is_no_obstacle(volume: Driver, path: Path) -> None:
    root = await volume.mount_volume("container", "c1", IDMAP)
    (root / "etc" / "hostname").write_text("copied up\n")
    await volume.delete_volume("container", "c1")
    await volume.settle()
    assert os.listdir(path / "containers") == []
    assert not [name for name in os.listdir(path) if name.startswith(".")]


# --- a crash while ids are rewritten (overlay) -----------------------------------------------------------------------


@pytest.mark.parametrize("driver_name", ["overlay"])
@pytest.mark.parametrize("moved", [False, True], ids=["before the swap", "inside the swap"])
async def test_a_rewrite_that_a_crash_cut_short(volume: Driver, path: Path, moved: bool) -> None:
    root = await volume.mount_volume("container", "c1", IDMAP)
    (root / "etc" / "motd").write_text("kept\n")
    await volume.unmount_volume("container", "c1")
    here = path / "containers" / "c1"
    if moved:
        subprocess.run(["cp", "-a", here / "layer", here / "layer.new"], check=True)
        (here / "layer").rename(here / "layer.old")
    else:
        (here / "layer.new").mkdir()
    root = await volume.mount_volume("container", "c1", OTHER)
    assert (root / "etc" / "motd").read_text() == "kept\n"
    assert sorted(os.listdir(here)) == ["layer", "rootfs"]


# --- quotas ----------------------------------------------------------------------------------------------------------


MKFS = {"ext4": ["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"], "xfs": ["mkfs.xfs", "-q"]}


@pytest.fixture(params=sorted(MKFS))
def disk(request: pytest.FixtureRequest, place: Path) -> Iterator[Path]:
    """A file system of its own with project quotas."""
    image, target = place / "disk.img", place / "disk"
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    target.mkdir()
    for argv in ([*MKFS[request.param], str(image)], ["mount", "-o", "loop,prjquota", str(image), str(target)]):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = done.stderr.strip().splitlines()[0].replace(str(place), "...")
            pytest.skip(f"no {request.param} with project quotas here: {reason}")
    yield target
    subprocess.run(["umount", "-l", str(target)], check=True)


def fill(path: Path, size_bytes: int) -> bool:
    """Whether so much can be written."""
    result = subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size_bytes // MIB}"], check=False)
    return result.returncode == 0


async def test_a_quota_holds(make: MakeDriver, disk: Path) -> None:
    driver = make("p", source=str(disk))
    await driver.create_pool()
    assert await driver.quota_fault() is None
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=20 * MIB)
    await driver.create_from_image("container", "c2", "f00", make_unpack(), size_bytes=0)
    roots = [await driver.mount_volume("container", name, IDMAP) for name in ("c1", "c2")]
    assert not fill(roots[0] / "large", 40 * MIB)
    assert fill(roots[1] / "large", 40 * MIB)
    used = await driver.volume_usage("container", "c2")
    assert used is not None
    assert 40 * MIB <= used < 41 * MIB
    await driver.resize_volume("container", "c1", 80 * MIB)
    assert fill(roots[0] / "large", 40 * MIB)
    await driver.resize_volume("container", "c1", 0)
    assert fill(roots[0] / "large", 100 * MIB)


async def test_a_quota_outlives_another_idmap(make: MakeDriver, disk: Path) -> None:
    driver = make("p", source=str(disk))
    await driver.create_pool()
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=20 * MIB)
    root = await driver.mount_volume("container", "c1", IDMAP)
    assert fill(root / "most", 15 * MIB)
    await driver.unmount_volume("container", "c1")
    root = await driver.mount_volume("container", "c1", IdMap())
    assert (root / "most").stat().st_size == 15 * MIB
    assert not fill(root / "more", 10 * MIB)


async def test_a_custom_volumes_quota_holds(make: MakeDriver, disk: Path) -> None:
    driver = make("p", source=str(disk))
    await driver.create_pool()
    await driver.create_volume("custom", "data", size_bytes=20 * MIB)
    path = await driver.mount_volume("custom", "data", IdMap())
    assert not fill(path / "large", 40 * MIB)


async def test_an_image_too_large_for_its_volume_leaves_nothing(make: MakeDriver, disk: Path, driver_name: str) -> None:
    if drivers.load(driver_name).optimized_images:
        pytest.skip("the image is not in the volume")
    driver = make("p", source=str(disk))
    await driver.create_pool()

    async def unpack(target: Path) -> None:
        done = await asyncio.to_thread(fill, target / "large", 40 * MIB)
        if not done:
            raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        await driver.create_from_image("container", "c1", "f00", unpack, size_bytes=20 * MIB)
    assert await driver.list_volumes() == []


async def test_the_overlay_driver_says_where_it_cannot_work(make: MakeDriver, place: Path, driver_name: str) -> None:
    """Overlay on overlay: what a container without a file system of its own would have."""
    parts = {name: place / name for name in ("lower", "upper", "work", "disk")}
    for part in parts.values():
        part.mkdir()
    options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
    subprocess.run(["mount", "-t", "overlay", "flexd-test", "-o", options, str(parts["disk"])], check=True)
    driver = make("p", source=str(parts["disk"]))
    if driver_name == "dir":
        await driver.create_pool()
        return
    if driver_name == "btrfs":
        with pytest.raises(BadRequest, match=r"isn't on btrfs but on overlay"):
            await driver.check_new_pool()
        return
    with pytest.raises(Exception, match=r"does not work on .*\(overlay\).*use the dir driver"):
        await driver.create_pool()
    assert os.listdir(parts["disk"]) == []
    assert not (place / "flexd" / "storage-pools" / "p").exists()
