# SPDX-License-Identifier: Apache-2.0
"""What only a real kernel shows: ids through the mounts, who may reach a container's root, quotas."""

import asyncio
import contextlib
import os
import stat
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest
from flexd.api.idmap import IdMap
from flexd.host.contract import CommandFailed, Host
from flexd.storage import drivers
from flexd.storage.contract import Driver, PoolUnavailable
from flexd.storage.drivers.btrfs import BtrfsDriver
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


# --- snapshots under other id maps ------------------------------------------------------------------------------------

# linux/capability.h: VFS_CAP_REVISION_3 | EFFECTIVE, then cap_net_raw, and whose root it is about.
CAPABILITY = struct.pack("<IIIIII", 0x03000001, 1 << 13, 0, 0, 0, 1000000)


def container_writes(root: Path) -> None:
    """What a container under IDMAP leaves: its users' files, ACLs, capabilities, special files."""
    assert can(1000000, "sh", "-ec", f"cd {root}; mkdir srv; touch srv/user; mkfifo srv/pipe; ln -s user srv/link")
    os.chown(root / "srv" / "user", 1001000, 1001001)
    assert can(1000000, "sh", "-ec", f"cd {root}; touch srv/program; chmod 755 srv/program; mv etc config")
    if os.stat(root).st_dev == os.stat(root / "srv").st_dev:
        with contextlib.suppress(PermissionError):
            os.setxattr(root / "srv" / "program", "security.capability", CAPABILITY)
            os.setxattr(root / "srv", "user.note", b"kept")


def looks_right(root: Path, idmap: IdMap) -> None:
    host_root = idmap.host_uid(0)
    assert owner(root) == owner(root / "srv") == (host_root, idmap.host_gid(0))
    assert owner(root / "srv" / "user") == (idmap.host_uid(1000), idmap.host_gid(1001))
    assert stat.S_ISFIFO((root / "srv" / "pipe").lstat().st_mode)
    assert os.readlink(root / "srv" / "link") == "user"
    assert (root / "config" / "hostname").read_text() == "image\n"
    assert not (root / "etc").exists()
    names = os.listxattr(root / "srv" / "program")
    if "security.capability" in names:
        value = os.getxattr(root / "srv" / "program", "security.capability")
        # For the host's own root the kernel shows version 2, which names nobody.
        assert struct.unpack_from("<I", value, 20)[0] == host_root if len(value) == 24 else not host_root


async def test_a_snapshot_has_its_ids_under_every_map(volume: Driver) -> None:
    root = await volume.mount_volume("container", "c1", IDMAP)
    container_writes(root)
    looks_right(root, IDMAP)
    await volume.create_snapshot("container", "c1", "live", live=True)
    await volume.unmount_volume("container", "c1")
    await volume.create_snapshot("container", "c1", "snap0")
    for snapshot in ("live", "snap0"):
        for idmap in (IDMAP, IdMap(), OTHER):
            looks_right(await volume.mount_snapshot("container", "c1", snapshot, idmap), idmap)
            await volume.unmount_snapshot("container", "c1", snapshot)
    for number, snapshot in enumerate((None, "live", "snap0")):
        await volume.copy_volume("container", "c1", f"copy{number}", snapshot=snapshot)
        for idmap in (OTHER, IdMap(), IDMAP):
            looks_right(await volume.mount_volume("container", f"copy{number}", idmap), idmap)
            await volume.unmount_volume("container", f"copy{number}")


async def test_a_volume_can_be_written_above_a_snapshot_of_another_map(volume: Driver) -> None:
    root = await volume.mount_volume("container", "c1", IDMAP)
    container_writes(root)
    await volume.unmount_volume("container", "c1")
    await volume.create_snapshot("container", "c1", "snap0")
    root = await volume.mount_volume("container", "c1", OTHER)
    assert can(2000000, "sh", "-ec", f"cd {root}; echo more >>srv/program; rm srv/pipe; mkdir srv/new; mv config etc")
    assert owner(root / "srv" / "new") == (2000000, 2000000)
    assert owner(root / "srv" / "user") == (2001000, 2001001)
    await volume.unmount_volume("container", "c1")
    await volume.restore_snapshot("container", "c1", "snap0")
    looks_right(await volume.mount_volume("container", "c1", OTHER), OTHER)


async def test_a_tree_from_elsewhere_is_shown_under_any_map(driver: Driver) -> None:
    await driver.create_from_tree("container", "c1", make_unpack(), size_bytes=0)
    for idmap in (IDMAP, OTHER, IdMap()):
        root = await driver.mount_volume("container", "c1", idmap)
        assert owner(root) == owner(root / "etc" / "hostname") == (idmap.host_uid(0), idmap.host_gid(0))
        assert (root / "bin" / "tool").stat().st_mode & 0o7777 == 0o4755
        await driver.unmount_volume("container", "c1")


async def test_a_refreshed_volume_has_its_own_ids(volume: Driver) -> None:
    root = await volume.mount_volume("container", "c1", IDMAP)
    container_writes(root)
    await volume.unmount_volume("container", "c1")
    await volume.create_from_image("container", "c2", "f00", make_unpack(), size_bytes=0)
    await volume.mount_volume("container", "c2", OTHER)
    await volume.unmount_volume("container", "c2")
    await volume.refresh_volume("container", "c2", lambda idmap: volume.view("container", "c1", idmap))
    looks_right(await volume.mount_volume("container", "c2", OTHER), OTHER)


# --- btrfs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def file_pool(host: Host, tmp_path: Path) -> AsyncIterator[tuple[Driver, Path]]:
    """A pool in a file, on a file system that is not btrfs."""
    kind, root = drivers.load("btrfs"), tmp_path / "flexd"
    driver = kind(host=host, pool="p", directory=root / "storage-pools" / "p", config={"size": "512MiB"})
    fault = await driver.probe()
    if fault is not None:
        pytest.skip(fault)
    await driver.check_new_pool()
    filled = await driver.create_pool()
    assert filled == {"source": str(root / "disks" / "p.img"), "size": "512MiB"}
    yield kind(host=host, pool="p", directory=root / "storage-pools" / "p", config=filled), root
    await driver.delete_pool()
    assert os.listdir(root / "disks") == os.listdir(root / "storage-pools") == []


@pytest.mark.parametrize("driver_name", ["btrfs"])
async def test_a_pool_in_a_file(file_pool: tuple[Driver, Path], host: Host) -> None:
    driver, root = file_pool
    assert (root / "disks" / "p.img").stat().st_mode & 0o777 == 0o600
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    await host.mounts.unmount(root / "storage-pools" / "p")
    loops = subprocess.run(["losetup", "--associated", root / "disks" / "p.img"], capture_output=True, check=True)
    assert loops.stdout == b""
    for _ in range(2):
        await driver.mount_pool()
    assert ("container", "c1") in await driver.list_volumes()
    assert (root / "storage-pools" / "p").stat().st_mode & 0o7777 == 0o711


@pytest.mark.parametrize("driver_name", ["btrfs"])
async def test_a_pool_whose_file_is_gone(host: Host, tmp_path: Path) -> None:
    config = {"source": str(tmp_path / "flexd" / "disks" / "p.img")}
    driver = drivers.load("btrfs")(
        host=host, pool="p", directory=tmp_path / "flexd" / "storage-pools" / "p", config=config
    )
    with pytest.raises(PoolUnavailable, match=r"disks/p\.img' of storage pool \"p\" doesn't exist"):
        await driver.mount_pool()


@pytest.mark.parametrize("driver_name", ["btrfs"])
async def test_a_pool_on_a_block_device(host: Host, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"")
    os.truncate(tmp_path / "disk", 512 * MIB)
    argv = ["losetup", "--find", "--show", tmp_path / "disk"]
    device = subprocess.run(argv, capture_output=True, check=True, text=True).stdout.strip()
    config = {"source": device}
    place = tmp_path / "flexd" / "storage-pools" / "p"
    driver = drivers.load("btrfs")(host=host, pool="p", directory=place, config=config)
    try:
        await driver.check_new_pool()
        await driver.create_pool()
        await driver.create_volume("custom", "data", size_bytes=0)
        await host.mounts.unmount(place)
        with pytest.raises(BadRequest, match=r"holds btrfs; set source\.wipe to use it all the same"):
            await driver.check_new_pool()
        await driver.mount_pool()
        assert ("custom", "data") in await driver.list_volumes()
        await driver.delete_pool()
        await driver.check_new_pool()
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.parametrize("driver_name", ["btrfs"])
async def test_subvolumes_made_in_a_container_are_its_files(volume: Driver, host: Host) -> None:
    root = await volume.mount_volume("container", "c1", IDMAP)
    data = root.parent / "data"
    await host.btrfs.create_subvolume(data / "nested")
    (data / "nested" / "file").write_text("one")
    await volume.create_snapshot("container", "c1", "snap0", live=True)
    (data / "nested" / "file").write_text("two")
    await volume.unmount_volume("container", "c1")
    await volume.copy_volume("container", "c1", "c2")
    await volume.restore_snapshot("container", "c1", "snap0")
    assert (data / "nested" / "file").read_text() == "one"
    root = await volume.mount_volume("container", "c2", OTHER)
    assert (root / "nested" / "file").read_text() == "two"
    for name in ("c1", "c2"):
        await volume.delete_volume("container", name)
    await volume.settle()


@pytest.mark.parametrize("driver_name", ["btrfs"])
async def test_snapshots_travel_as_streams(volume: Driver, place: Path, make: MakeDriver, tmp_path: Path) -> None:
    assert isinstance(volume, BtrfsDriver)
    for text in ("one", "two"):
        root = await volume.mount_volume("container", "c1", IDMAP)
        assert can(1000000, "sh", "-c", f"echo {text} >{root}/etc/hostname; touch {root}/{text}")
        await volume.create_snapshot("container", "c1", text, live=True)
    other = make("q")
    assert isinstance(other, BtrfsDriver)
    await other.create_pool()
    await other.create_volume("container", "c9", size_bytes=0)
    for snapshot, parent in (("one", None), ("two", "one")):
        with (tmp_path / snapshot).open("wb") as stream:
            child = await volume.send("container", "c1", snapshot, parent=parent, output=stream.fileno())
            assert await child.wait() == 0
        with (tmp_path / snapshot).open("rb") as stream:
            await other.receive("container", "c9", snapshot, input=stream.fileno())
    await other.restore_snapshot("container", "c9", "two")
    root = await other.mount_volume("container", "c9", OTHER)
    assert (root / "etc" / "hostname").read_text() == "two\n"
    assert owner(root / "two") == (2000000, 2000000)
    await other.restore_snapshot("container", "c9", "one")
    assert not (await other.mount_volume("container", "c9", OTHER) / "two").exists()
    with (tmp_path / "one").open("rb") as stream:
        stream.seek(100)
        with pytest.raises(CommandFailed):
            await other.receive("container", "c9", "torn", input=stream.fileno())
    assert await other.list_snapshots("container", "c9") == ["one", "two"]


@pytest.mark.parametrize("driver_name", ["btrfs"])
async def test_a_limit_follows_copies_and_restores(volume: Driver, host: Host) -> None:
    await volume.resize_volume("container", "c1", 20 * MIB)
    root = await volume.mount_volume("container", "c1", IDMAP)
    assert not fill(root.parent / "data" / "large", 40 * MIB)
    await volume.create_snapshot("container", "c1", "snap0", live=True)
    await volume.unmount_volume("container", "c1")
    await volume.restore_snapshot("container", "c1", "snap0")
    await volume.copy_volume("container", "c1", "c2", size_bytes=30 * MIB)
    for name in ("c1", "c2"):
        assert not fill(root.parents[1] / name / "data" / "more", 20 * MIB)
    await host.btrfs.sync(root.parents[1])
    used = await volume.volume_usage("container", "c2")
    assert used is not None
    assert 25 * MIB < used <= 30 * MIB
    assert await volume.snapshot_usage("container", "c1", "snap0") < MIB


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
