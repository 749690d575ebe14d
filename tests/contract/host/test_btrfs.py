# SPDX-License-Identifier: Apache-2.0
"""Subvolumes, snapshots and their limits, on a file system in a file."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.host.contract import CommandFailed, Host, HostError
from flexd.host.linux import LinuxHost

MIB = 1 << 20


@pytest.fixture
async def disk(host: Host, place: Path, real: bool) -> AsyncIterator[Path]:
    if real and (shutil.which("mkfs.btrfs") is None or "btrfs" not in Path("/proc/filesystems").read_text()):
        pytest.skip("no btrfs here")
    image, target = place / "disk.img", place / "disk"
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    target.mkdir()
    await host.btrfs.format(image, label="flexd-test")
    await host.mounts.mount_file(image, target, "btrfs")
    yield target
    await host.mounts.unmount(target)


async def _released(image: Path) -> None:
    """No loop device is left. Where udev runs, it looks into the device once more, and the kernel waits for that."""
    argv = ["losetup", "--associated", str(image)]
    async with asyncio.timeout(30):
        while (await asyncio.to_thread(subprocess.run, argv, capture_output=True, check=True)).stdout != b"":
            await asyncio.sleep(0.05)


async def test_the_loop_device_goes_with_the_mount(host: Host, disk: Path, place: Path, real: bool) -> None:
    (disk / "kept").touch()
    await host.mounts.unmount(disk)
    if real:
        await _released(place / "disk.img")
    await host.mounts.mount_file(place / "disk.img", disk, "btrfs")
    assert (disk / "kept").exists()


async def test_a_file_without_a_file_system(host: Host, place: Path, real: bool) -> None:
    if real and "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("no btrfs here")
    (place / "file").write_bytes(b"\0" * MIB)
    (place / "target").mkdir()
    with pytest.raises((HostError, CommandFailed)):
        await host.mounts.mount_file(place / "file", place / "target", "btrfs")
    if real:
        done = subprocess.run(["losetup", "--associated", place / "file"], capture_output=True, check=True)
        assert done.stdout == b""


async def test_subvolumes(host: Host, disk: Path) -> None:
    for _ in range(2):
        await host.btrfs.create_subvolume(disk / "a")
    (disk / "plain").mkdir()
    assert await host.btrfs.is_subvolume(disk / "a")
    assert not await host.btrfs.is_subvolume(disk / "plain")
    assert not await host.btrfs.is_subvolume(disk / "absent")
    (disk / "a/x").write_text("x")
    for path in (disk / "a", disk / "plain", disk / "absent"):
        await host.btrfs.delete_subvolumes(path)
    assert [path.name for path in disk.iterdir() if not path.name.startswith(".")] == ["plain"]


async def test_a_snapshot_keeps_what_was(host: Host, disk: Path) -> None:
    await host.btrfs.create_subvolume(disk / "a")
    (disk / "a/x").write_text("before")
    await host.btrfs.snapshot(disk / "a", disk / "b")
    await host.btrfs.snapshot(disk / "a", disk / "c", readonly=True)
    (disk / "a/x").write_text("after")
    assert (disk / "b/x").read_text() == (disk / "c/x").read_text() == "before"
    (disk / "b/x").write_text("b's own")
    await host.btrfs.delete_subvolumes(disk / "a")
    await host.btrfs.delete_subvolumes(disk / "c")
    assert (disk / "b/x").read_text() == "b's own"


async def test_subvolumes_below_a_directory_go(host: Host, disk: Path) -> None:
    (disk / "one/two").mkdir(parents=True)
    await host.btrfs.create_subvolume(disk / "one/a")
    await host.btrfs.create_subvolume(disk / "one/two/b")
    await host.btrfs.create_subvolume(disk / "onelike")
    await host.btrfs.delete_subvolumes(disk / "one")
    assert not (disk / "one/a").exists()
    assert not (disk / "one/two/b").exists()
    assert await host.btrfs.is_subvolume(disk / "onelike")


async def test_limits_and_usage(host: Host, disk: Path, real: bool) -> None:
    await host.btrfs.create_subvolume(disk / "a")
    assert await host.btrfs.usage(disk / "a") is None
    for _ in range(2):
        await host.btrfs.enable_quotas(disk)
    await host.btrfs.set_limit(disk / "a", 20 * MIB)
    (disk / "a/x").write_bytes(os.urandom(10 * MIB))
    await host.btrfs.sync(disk)
    usage = await host.btrfs.usage(disk / "a")
    assert usage is not None
    assert 10 * MIB <= usage.referenced_bytes < 11 * MIB
    if real:
        argv = ["dd", "if=/dev/zero", f"of={disk}/a/y", "bs=1M", "count=20"]
        assert b"quota" in subprocess.run(argv, capture_output=True).stderr
    await host.btrfs.set_limit(disk / "a", 0)
    (disk / "a/z").write_bytes(os.urandom(20 * MIB))


# --- what only a kernel can show ---------------------------------------------------------------------------------


@pytest.fixture
async def nested(host: Host, disk: Path) -> Path:
    """A subvolume with others in it, as a container makes them."""
    if not isinstance(host, LinuxHost):
        pytest.skip("the fake host has no nested subvolumes")
    for name in ("a", "a/var", "a/var/deep"):
        await host.btrfs.create_subvolume(disk / name)
        (disk / name / "file").write_text(name)
    return disk


async def test_a_snapshot_takes_nested_subvolumes_along(host: Host, nested: Path) -> None:
    await host.btrfs.snapshot(nested / "a", nested / "b")
    await host.btrfs.snapshot(nested / "a", nested / "c", readonly=True)
    for name in ("file", "var/file", "var/deep/file"):
        (nested / "a" / name).write_text("changed")
        assert (nested / "b" / name).read_text() == os.path.dirname(f"a/{name}")
        with pytest.raises(OSError, match="Read-only"):
            (nested / "c" / name).write_text("changed")
    await host.btrfs.set_readonly(nested / "c", False)
    (nested / "c/var/deep/file").write_text("changed")


@pytest.mark.parametrize("readonly", [False, True])
async def test_nested_subvolumes_go_with_theirs(host: Host, nested: Path, readonly: bool) -> None:
    await host.btrfs.snapshot(nested / "a", nested / "b", readonly=readonly)
    await host.btrfs.delete_subvolumes(nested / "b")
    assert sorted(os.listdir(nested)) == ["a"]
    assert (nested / "a/var/deep/file").exists()


async def test_a_link_put_in_the_way_leads_nowhere(host: Host, nested: Path) -> None:
    """A name that leads to a subvolume is the container's: what it moves elsewhere meanwhile is left alone."""
    (nested / "a/folder").mkdir()
    await host.btrfs.create_subvolume(nested / "a/folder/sub")
    await host.btrfs.create_subvolume(nested / "victim")
    (nested / "victim/kept").touch()
    await host.btrfs.delete_subvolumes(nested / "a/folder/sub")
    (nested / "a/folder").rmdir()
    (nested / "a/folder").symlink_to("../../victim")
    await host.btrfs.delete_subvolumes(nested / "a")
    assert (nested / "victim/kept").exists()


# --- streams ---


async def _sent(host: Host, path: Path, place: Path, parent: Path | None = None) -> Path:
    target = place / f"{path.name}.bin"
    with target.open("wb") as file:
        await host.btrfs.send(path, parent=parent, output=file.fileno())
    return target


async def _received(host: Host, file: Path, directory: Path) -> Path:
    with file.open("rb") as stream:
        return await host.btrfs.receive(directory, input=stream.fileno())


async def test_a_stream_and_what_follows_it(host: Host, disk: Path, place: Path) -> None:
    await host.btrfs.create_subvolume(disk / "a")
    (disk / "a/file").write_text("old")
    await host.btrfs.snapshot(disk / "a", disk / "one", readonly=True)
    (disk / "a/file").write_text("new")
    await host.btrfs.snapshot(disk / "a", disk / "two", readonly=True)
    streams = [await _sent(host, disk / "one", place), await _sent(host, disk / "two", place, disk / "one")]
    (disk / "target").mkdir()
    arrived = [await _received(host, stream, disk / "target") for stream in streams]
    assert arrived == [disk / "target/one", disk / "target/two"]
    assert [(path / "file").read_text() for path in arrived] == ["old", "new"]
    assert await host.btrfs.uuid(arrived[0]) != await host.btrfs.uuid(arrived[1])


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
async def test_a_damaged_stream_leaves_nothing(host: Host, disk: Path, place: Path, damage: str) -> None:
    await host.btrfs.create_subvolume(disk / "a")
    (disk / "a/file").write_bytes(os.urandom(MIB))
    await host.btrfs.set_readonly(disk / "a", True)
    stream = await _sent(host, disk / "a", place)
    whole = stream.read_bytes()
    stream.write_bytes({"cut": whole[: len(whole) // 2], "other": b"nothing of the kind" * 100, "empty": b""}[damage])
    (disk / "target").mkdir()
    with pytest.raises(CommandFailed):
        await _received(host, stream, disk / "target")
    assert os.listdir(disk / "target") == []


async def test_subvolumes_inside_are_listed_and_grafted(host: Host, disk: Path) -> None:
    for name in ("a", "a/b", "a/b/c", "other"):
        await host.btrfs.create_subvolume(disk / name)
    (disk / "a/d").mkdir()
    (disk / "other/file").write_text("content")
    await host.btrfs.graft(disk / "other", disk / "a", "/d")
    await host.btrfs.graft(disk / "other", disk / "a", "/b/e")
    assert await host.btrfs.subvolumes(disk / "a") == ["b", "b/c", "b/e", "d"]
    assert (disk / "a/b/e/file").read_text() == (disk / "a/d/file").read_text() == "content"
    (disk / "a/d/file").write_text("changed")
    assert (disk / "other/file").read_text() == "content"


async def test_a_graft_stays_in_its_tree(host: Host, disk: Path) -> None:
    for name in ("a", "other"):
        await host.btrfs.create_subvolume(disk / name)
    (disk / "a/out").symlink_to(disk)
    for path in ("out/x", "../x"):
        with pytest.raises(HostError):
            await host.btrfs.graft(disk / "other", disk / "a", path)
    assert not (disk / "x").exists()
