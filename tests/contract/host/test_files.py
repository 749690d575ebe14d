# SPDX-License-Identifier: Apache-2.0
"""Trees of files: what a copy keeps, what a removal spares, whose a shifted tree is."""

import os
import shutil
import socket
import stat
import struct
from pathlib import Path

import pytest

from flexd.api.idmap import IdMap
from flexd.host.contract import Host, HostError
from flexd.host.linux import LinuxHost

_MAP = IdMap.single(1000000, 65536)
_CAPABILITY = struct.pack("<5I", 0x02000001, 0x2000, 0, 0, 0)  # cap_net_raw=ep, revision 2


async def test_removing_a_tree(host: Host, place: Path) -> None:
    (place / "tree/a/b").mkdir(parents=True)
    (place / "tree/a/file").touch()
    (place / "outside").mkdir()
    (place / "outside/kept").touch()
    (place / "tree/link").symlink_to(place / "outside")
    await host.files.remove_tree(place / "tree")
    assert not (place / "tree").exists()
    assert (place / "outside/kept").exists()


async def test_removing_other_things(host: Host, place: Path) -> None:
    (place / "kept").mkdir()
    (place / "link").symlink_to(place / "kept")
    (place / "file").touch()
    (place / "empty").mkdir()
    for name in ("link", "file", "empty", "absent"):
        await host.files.remove_tree(place / name)
    assert [path.name for path in place.iterdir()] == ["kept"]


async def test_a_link_goes_whatever_is_mounted_where_it_leads(host: Host, place: Path) -> None:
    """/ and /proc have mounts below them on every machine; the link is none of them."""
    for name, target in (("root", "/"), ("proc", "/proc"), ("sys", "/sys")):
        (place / name).symlink_to(target)
        await host.files.copy_tree(place / name, place / f"{name}-copy")
        assert os.readlink(place / f"{name}-copy") == target
        await host.files.remove_tree(place / name)
    assert sorted(path.name for path in place.iterdir()) == ["proc-copy", "root-copy", "sys-copy"]


async def test_a_mount_is_not_walked_into(host: Host, place: Path) -> None:
    (place / "tree/target").mkdir(parents=True)
    (place / "source").mkdir()
    (place / "source/kept").touch()
    await host.mounts.bind(place / "source", place / "tree/target")
    with pytest.raises(HostError, match="is mounted"):
        await host.files.remove_tree(place / "tree")
    assert (place / "source/kept").exists()
    await host.mounts.unmount(place / "tree/target")
    await host.files.remove_tree(place / "tree")
    assert (place / "source/kept").exists()


async def test_copying_a_tree(host: Host, place: Path) -> None:
    source, target = place / "source", place / "target"
    (source / "dir").mkdir(parents=True)
    (source / "dir").chmod(0o1750)
    (source / "one").write_text("content")
    os.link(source / "one", source / "two")
    (source / "dangling").symlink_to("../nowhere")
    os.mkfifo(source / "pipe")
    with (source / "holes").open("wb") as sparse:
        sparse.truncate(64 << 20)
    os.setxattr(source / "one", "user.test", b"value")
    os.utime(source / "dir", ns=(10**18, 10**18 + 5))
    await host.files.copy_tree(source, target)
    assert (target / "one").stat().st_ino == (target / "two").stat().st_ino
    assert os.readlink(target / "dangling") == "../nowhere"
    assert stat.S_ISFIFO((target / "pipe").stat().st_mode)
    assert (target / "holes").stat().st_size == 64 << 20
    assert (target / "holes").stat().st_blocks < 1000
    assert os.getxattr(target / "one", "user.test") == b"value"
    copied = (target / "dir").stat()
    assert (stat.S_IMODE(copied.st_mode), copied.st_mtime_ns) == (0o1750, 10**18 + 5)


async def test_a_copy_from_what_is_about_to_go(host: Host, place: Path, real: bool) -> None:
    for name in ("source", "spare"):
        (place / name / "folder").mkdir(parents=True)
        for file, text in (("same", "same"), ("other", name)):
            (place / name / "folder" / file).write_text(text)
            os.utime(place / name / "folder" / file, ns=(5, 5 if file == "same" else len(name)))
    os.link(place / "source/folder/same", place / "source/linked")
    await host.files.copy_tree_from(place / "source", place / "target", spare=place / "spare")
    target = place / "target"
    found = [(target / path).read_text() for path in ("folder/same", "folder/other", "linked")]
    assert found == [
        "same",
        "source",
        "same",
    ]
    assert (target / "linked").stat().st_ino == (target / "folder/same").stat().st_ino
    inodes = {(place / name / "folder/same").stat().st_ino for name in ("target", "spare")}
    if real:
        assert len(inodes) == 1
    shutil.rmtree(place / "spare")
    (target / "folder/same").write_text("changed")
    assert (place / "source/folder/same").read_text() == "same"


async def test_files_that_became_one_since_are_two_again(host: Host, place: Path) -> None:
    for name in ("source", "spare"):
        (place / name).mkdir()
        (place / name / "one").write_text("same")
        os.utime(place / name / "one", (5, 5))
    shutil.copy2(place / "source/one", place / "source/two")
    os.link(place / "spare/one", place / "spare/two")
    await host.files.copy_tree_from(place / "source", place / "target", spare=place / "spare")
    (place / "target/one").write_text("changed")
    assert (place / "target/two").read_text() == "same"


async def test_attributes_of_a_directory(host: Host, place: Path, real: bool) -> None:
    for name in ("source", "target"):
        (place / name).mkdir()
    (place / "source").chmod(0o1750)
    os.setxattr(place / "source", "user.kept", b"value")
    os.utime(place / "source", (1000, 2000))
    if real and os.geteuid() == 0:
        os.chown(place / "source", 5, 6)
    await host.files.copy_attributes(place / "source", place / "target")
    assert stat.S_IMODE((place / "target").stat().st_mode) == 0o1750
    if real:
        source, target = (place / "source").stat(), (place / "target").stat()
        assert os.getxattr(place / "target", "user.kept") == b"value"
        assert (target.st_uid, target.st_gid, target.st_mtime) == (source.st_uid, source.st_gid, source.st_mtime)


async def test_copying_what_is_not_there(host: Host, place: Path) -> None:
    with pytest.raises(HostError, match="absent"):
        await host.files.copy_tree(place / "absent", place / "target")


async def test_refreshing_a_tree(host: Host, place: Path) -> None:
    """Also what changed within one second and kept its size, and what is gone."""
    source, target = place / "source", place / "target"
    source.mkdir()
    (source / "file").write_text("one")
    (source / "gone").write_text("x")
    os.utime(source / "file", ns=(10**18 + 1, 10**18 + 1))
    await host.files.copy_tree(source, target)
    (source / "file").write_text("two")
    os.utime(source / "file", ns=(10**18 + 2, 10**18 + 2))
    (source / "gone").unlink()
    await host.files.refresh_tree(source, target)
    assert (target / "file").read_text() == "two"
    assert not (target / "gone").exists()


async def test_refresh_by_content(host: Host, place: Path) -> None:
    """Size and time as they were, as an archive with whole seconds gives them."""
    source, target = place / "source", place / "target"
    source.mkdir()
    for text in ("one", "two"):
        (source / "file").write_text(text)
        os.utime(source / "file", ns=(10**18, 10**18))
        if text == "one":
            await host.files.copy_tree(source, target)
    await host.files.refresh_tree(source, target, by_content=True)
    assert (target / "file").read_text() == "two"


async def test_measures(host: Host, place: Path) -> None:
    (place / "file").write_bytes(os.urandom(100_000))
    assert 100_000 <= await host.files.disk_usage(place) < 200_000
    usage = await host.files.filesystem(place)
    assert usage.total_bytes >= usage.used_bytes > 0
    assert await host.files.filesystem_type(place)


# --- what only root can show -------------------------------------------------------------------------------------


@pytest.fixture
def kernel(real: bool, host: Host) -> LinuxHost:
    if not isinstance(host, LinuxHost):
        pytest.skip("the fake host changes no owners")
    return host


def _interesting_tree(top: Path) -> None:
    (top / "dir").mkdir(parents=True)
    (top / "program").touch()
    os.chown(top / "program", 5, 6)
    (top / "program").chmod(0o6755)
    os.setxattr(top / "program", "security.capability", _CAPABILITY)
    os.link(top / "program", top / "dir/hard")
    (top / "soft").symlink_to("program")
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(top / "dir", "trusted.overlay.opaque", b"y")
    acl = struct.pack("<I", 2)
    for tag, permissions, number in ((1, 7, -1), (2, 5, 33), (4, 5, -1), (8, 5, 44), (16, 7, -1), (32, 0, -1)):
        acl += struct.pack("<HHi", tag, permissions, number)
    os.setxattr(top / "dir", "system.posix_acl_access", acl)
    os.setxattr(top / "dir", "system.posix_acl_default", acl)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(top / "socket"))


def _acl_ids(path: Path, name: str) -> list[int]:
    value = os.getxattr(path, f"system.posix_acl_{name}")
    return [number for tag, _, number in struct.iter_unpack("<HHI", value[4:]) if tag in (2, 8)]


async def test_a_copy_as_root(kernel: LinuxHost, place: Path) -> None:
    _interesting_tree(place / "source")
    await kernel.files.copy_tree(place / "source", place / "target")
    target = place / "target"
    program = (target / "program").stat()
    assert (program.st_uid, program.st_gid, stat.S_IMODE(program.st_mode), program.st_nlink) == (5, 6, 0o6755, 2)
    assert os.getxattr(target / "program", "security.capability") == _CAPABILITY
    assert os.getxattr(target / "dir", "trusted.overlay.opaque") == b"y"
    assert _acl_ids(target / "dir", "access") == _acl_ids(target / "dir", "default") == [33, 44]
    assert [os.lstat(target / name).st_rdev for name in ("null", "whiteout")] == [os.makedev(1, 3), 0]
    assert stat.S_ISSOCK(os.lstat(target / "socket").st_mode)


async def test_a_refreshed_tree_as_root(kernel: LinuxHost, place: Path) -> None:
    """Only what differs is written; what is not there any more goes."""
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    _interesting_tree(place / "source")
    await kernel.files.copy_tree(place / "source", place / "target")
    target = place / "target"
    kept = (target / "program").stat().st_ino
    (target / "surplus").mkdir()
    (target / "soft").unlink()
    (place / "source/new").write_text("new")
    await kernel.files.refresh_tree(place / "source", target)
    assert (target / "program").stat().st_ino == kept
    assert not (target / "surplus").exists()
    assert (target / "new").read_text() == "new"
    assert os.readlink(target / "soft") == "program"
    assert os.getxattr(target / "program", "security.capability") == _CAPABILITY
    assert os.getxattr(target / "dir", "trusted.overlay.opaque") == b"y"
    assert _acl_ids(target / "dir", "access") == [33, 44]


async def test_shifting_there_and_back(kernel: LinuxHost, place: Path) -> None:
    tree = place / "tree"
    _interesting_tree(tree)
    os.chown(tree / "null", 3000000, 0)  # nobody's in either map
    await kernel.files.shift_tree(tree, old=IdMap(), new=_MAP)
    await kernel.files.shift_tree(tree, old=IdMap(), new=_MAP)  # once more does no harm
    program = (tree / "program").stat()
    assert (program.st_uid, program.st_gid, stat.S_IMODE(program.st_mode)) == (1000005, 1000006, 0o6755)
    assert os.getxattr(tree / "program", "security.capability")[-4:] == struct.pack("<I", 1000000)
    assert os.lstat(tree / "soft").st_uid == tree.stat().st_gid == 1000000
    assert _acl_ids(tree / "dir", "access") == _acl_ids(tree / "dir", "default") == [1000033, 1000044]
    assert (os.lstat(tree / "null").st_uid, os.lstat(tree / "null").st_gid) == (3000000, 1000000)
    await kernel.files.shift_tree(tree, old=_MAP, new=IdMap())
    program = (tree / "program").stat()
    assert (program.st_uid, program.st_gid, stat.S_IMODE(program.st_mode)) == (5, 6, 0o6755)
    assert os.getxattr(tree / "program", "security.capability") == _CAPABILITY
    assert _acl_ids(tree / "dir", "access") == [33, 44]


async def test_shifting_stays_in_the_tree(kernel: LinuxHost, place: Path) -> None:
    (place / "tree").mkdir()
    (place / "outside").mkdir()
    (place / "tree/link").symlink_to(place / "outside")
    await kernel.files.shift_tree(place / "tree", old=IdMap(), new=_MAP)
    assert (place / "outside").stat().st_uid == 0
