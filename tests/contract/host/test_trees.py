# SPDX-License-Identifier: Apache-2.0
"""Trees sent and received by the real programs: everything arrives, only what differs is sent, and a stream that is
not what a sender makes leads nowhere."""

import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flexd.host.tree_format import ENTER, FILE, I64, LEAVE, LINK, MAGIC, NODE, REMOVE, SYMLINK, U16, Meta

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and chroot need root")
_MAP = b"u 0 1000000 65536\ng 0 1000000 65536\n"
_CAPABILITY = struct.pack("<5I", 0x02000001, 0x2000, 0, 0, 0)  # cap_net_raw=ep, revision 2
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, number)
    for tag, permissions, number in ((1, 6, 1 << 32 - 1 & 0), (2, 4, 1000), (4, 4, 0), (16, 4, 0), (32, 0, 0))
)
_DIRECTORY, _PLAIN = Meta(stat.S_IFDIR | 0o755, 0, 0, 1), Meta(stat.S_IFREG | 0o644, 0, 0, 1)
_END = b"E" + U16.pack(0)


def _program(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"flexd.host.{module}", *arguments]


def send(root: Path, *options: str) -> bytes:
    argv = _program("tree_send", "send", str(root), *options)
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout


def listing(root: Path, target: Path, idmap: bytes = b"") -> str:
    done = subprocess.run(_program("tree_send", "list", str(root)), input=idmap, capture_output=True, check=True)
    target.write_bytes(done.stdout)
    return str(target)


def receive(root: Path, stream: bytes, idmap: bytes = b"") -> str:
    """What it complained about."""
    file = root.parent / "stream"
    file.write_bytes(stream)
    with file.open("rb") as opened:
        fd = opened.fileno()
        argv = _program("tree_receive", str(root), str(fd))
        done = subprocess.run(argv, input=idmap, capture_output=True, pass_fds=(fd,), check=False)
    assert (done.returncode != 0) == bool(done.stderr), done.stderr
    return done.stderr.decode().strip()


def differences(one: Path, other: Path) -> str:
    argv = ["rsync", "-naHAXi", "--numeric-ids", "--delete", "--modify-window=-1", f"{one}/", f"{other}/"]
    return subprocess.run(argv, capture_output=True, check=True, text=True).stdout


@pytest.fixture
def source(place: Path) -> Path:
    """One of everything."""
    root = place / "source"
    (root / "etc/deep/er").mkdir(parents=True)
    (root / "etc/plain").write_text("text")
    (root / "empty").touch()
    (root / "big").write_bytes(os.urandom(3_000_000))
    with (root / "holes").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
        file.truncate(9_000_000)
    (root / "link").symlink_to("/etc/passwd")
    (root / "hard").hardlink_to(root / "big")
    (root / "etc/deep/er/hard").hardlink_to(root / "big")
    os.mkfifo(root / "pipe", 0o620)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(root / "socket"))
    os.chown(root / "etc/plain", 1000, 1001)
    (root / "etc/plain").chmod(0o4751)
    os.chown(root / "link", 7, 8, follow_symlinks=False)
    os.setxattr(root / "etc/plain", "user.note", b"\0binary")
    os.setxattr(root / "empty", "security.capability", _CAPABILITY)
    os.setxattr(root / "etc", "system.posix_acl_default", _ACL)
    os.fsencode(str(root))
    (root / os.fsdecode(b"na\xefve")).write_text("no utf-8")
    (root / "etc/deep").chmod(0o1777)
    for path in root.rglob("*"):
        os.utime(path, ns=(1, 1_600_000_000_123_456_789), follow_symlinks=False)
    # What changed in the last ticks of the kernel's clock is sent again in any case.
    while time.time_ns() < max(path.lstat().st_ctime_ns for path in root.rglob("*")) + 50_000_000:
        time.sleep(0.005)
    return root


@pytest.fixture
def target(place: Path) -> Path:
    made = place / "target"
    made.mkdir()
    return made


def test_everything_arrives(source: Path, target: Path) -> None:
    assert receive(target, send(source)) == ""
    assert differences(source, target) == ""
    assert (target / "holes").stat().st_blocks < 5000
    assert (target / "socket").is_socket()


def test_nothing_is_sent_twice(source: Path, target: Path, place: Path) -> None:
    receive(target, send(source, "--note", str(place / "note")))
    nothing = MAGIC + _END
    assert send(source, "--known", listing(target, place / "list")) == nothing
    assert send(source, "--known", str(place / "note"), "--exact") == nothing


def test_what_changed_is_sent(source: Path, target: Path, place: Path) -> None:
    receive(target, send(source, "--note", str(place / "note")))
    (source / "etc/plain").unlink()
    (source / "etc/deep/er/new").write_text("new")
    (source / "empty").write_text("!")
    os.utime(source / "empty", ns=(1, 1_600_000_000_123_456_789))
    (source / "link").unlink()
    (source / "link").mkdir()
    shutil.move(source / "etc/deep/er", source / "moved")
    (source / "holes").chmod(0o600)
    stream = send(source, "--known", str(place / "note"), "--exact")
    assert len(stream) < 5000  # neither the large file nor the holes' end
    assert receive(target, stream) == ""
    assert differences(source, target) == ""


def test_names_of_one_file(source: Path, target: Path, place: Path) -> None:
    """A file that loses a name, or gets new content, keeps its other names."""
    receive(target, send(source, "--note", str(place / "note")))
    (source / "hard").unlink()
    (source / "hard").write_text("its own now")
    assert receive(target, send(source, "--known", listing(target, place / "list"))) == ""
    assert differences(source, target) == ""
    (source / "big").write_text("other")
    assert receive(target, send(source, "--known", listing(target, place / "list"))) == ""
    assert differences(source, target) == ""
    assert (target / "big").stat().st_ino == (target / "etc/deep/er/hard").stat().st_ino


def test_a_change_that_keeps_size_and_time(source: Path, place: Path) -> None:
    """A note knows the time of change, which nobody can set."""
    send(source, "--note", str(place / "note"))
    (source / "etc/plain").write_text("TEXT")
    os.utime(source / "etc/plain", ns=(1, 1_600_000_000_123_456_789))
    assert b"TEXT" in send(source, "--known", str(place / "note"), "--exact")


def test_owners_become_those_of_the_map(source: Path, target: Path, place: Path) -> None:
    assert receive(target, send(source), _MAP) == ""
    found = (target / "etc/plain").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1001000, 1001001, 0o4751)
    assert os.getxattr(target / "empty", "security.capability")[-4:] == struct.pack("<I", 1000000)
    assert struct.pack("<HHI", 2, 4, 1001000) in os.getxattr(target / "etc", "system.posix_acl_default")
    assert send(source, "--known", listing(target, place / "list", _MAP)) == MAGIC + _END


def test_an_owner_without_a_place(source: Path, target: Path) -> None:
    os.chown(source / "empty", 70000, 0)
    assert "user 70000, which the container's id map has no place for" in receive(target, send(source), _MAP)
    assert not (target / "empty").exists() or (target / "empty").stat().st_uid < 1000000


def test_devices_are_left_out(source: Path, target: Path) -> None:
    os.mknod(source / "sda", stat.S_IFBLK | 0o666, os.makedev(8, 0))
    assert receive(target, send(source)) == ""
    assert not (target / "sda").exists()


# --- streams of somebody else ----------------------------------------------------------------------------------------


def record(op: bytes, name: bytes, *parts: bytes) -> bytes:
    return op + U16.pack(len(name)) + name + b"".join(parts)


def tree(*records: bytes) -> bytes:
    return MAGIC + record(ENTER, b"", _DIRECTORY.encode()) + b"".join(records) + record(LEAVE, b"") + _END


def text(name: bytes, data: bytes) -> bytes:
    return record(FILE, name, _PLAIN.encode(), I64.pack(len(data)), data, I64.pack(0))


def path_of(path: bytes) -> bytes:
    return U16.pack(len(path)) + path


_LINK = Meta(stat.S_IFLNK | 0o777, 0, 0, 1).encode()


@pytest.mark.parametrize("name", [b"", b".", b"..", b"../x", b"a/b", b"/etc/x", b"a\0b"])
def test_names_that_are_paths(target: Path, name: bytes) -> None:
    for stream in (tree(text(name, b"x")), tree(record(REMOVE, name)), tree(record(ENTER, name, _DIRECTORY.encode()))):
        assert "the name" in receive(target, stream)
    assert list(target.iterdir()) == []


def test_a_link_in_the_way(target: Path, place: Path) -> None:
    """Out through a link that the stream itself has made: the link is replaced by the directory, never followed."""
    (place / "outside").mkdir()
    out = record(SYMLINK, b"out", _LINK, path_of(os.fsencode(place / "outside")))
    inside = record(ENTER, b"out", _DIRECTORY.encode()) + text(b"x", b"x") + record(LEAVE, b"")
    assert receive(target, tree(out, inside)) == ""
    assert list((place / "outside").iterdir()) == []
    assert (target / "out/x").read_text() == "x"
    assert receive(target, tree(out, text(b"out", b"y"))) == ""
    assert not (target / "out").is_symlink()


@pytest.mark.parametrize("first", [b"../outside", b"/outside", b"out/outside", b"", b"a/../../outside"])
def test_hard_links_out_of_the_tree(target: Path, place: Path, first: bytes) -> None:
    (place / "outside").write_text("secret")
    out = record(SYMLINK, b"out", _LINK, path_of(os.fsencode(place)))
    assert receive(target, tree(out, record(LINK, b"got", path_of(first)))) != ""
    assert not (target / "got").exists()


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b"", "ended too early"),
        (b"GET / HTTP/1.1\r\n", "does not begin as a tree does"),
        (tree(text(b"f", b"x"))[:-5], "ended too early"),
        (tree() + b"more", "goes on after its end"),
        (tree(record(FILE, b"f", _DIRECTORY.encode(), I64.pack(0))), "with mode"),
        (tree(record(ENTER, b"d", _PLAIN.encode())), "with mode"),
        (tree(record(NODE, b"n", _PLAIN.encode(), I64.pack(0))), "with mode"),
        (tree(record(b"?", b"n")), "a record of the kind"),
        (tree(record(FILE, b"f", _PLAIN.encode(), I64.pack(-(1 << 60)))), "of more than"),
        (tree(text(b"f" * 300, b"")), "a name of 300 bytes"),
        (MAGIC + text(b"f", b"x") + _END, "outside of the tree"),
    ],
)
def test_streams_that_are_none(target: Path, stream: bytes, said: str) -> None:
    assert said in receive(target, stream)


@pytest.mark.parametrize("name", ["trusted.overlay.opaque", "security.ima", "system.nfs4_acl", "security.selinux"])
def test_attributes_that_do_not_travel(target: Path, name: str) -> None:
    meta = _PLAIN._replace(attributes=((name, b"y"),))
    assert f'the extended attribute "{name}"' in receive(target, tree(record(FILE, b"f", meta.encode(), I64.pack(0))))


def test_what_a_listing_may_not_be(source: Path, place: Path) -> None:
    for data in (b"", b"FLXLIST1" + b"U" + U16.pack(0) * 3, b"FLXLIST1" + record(ENTER, b"", _DIRECTORY.encode())):
        (place / "list").write_bytes(data)
        argv = _program("tree_send", "send", str(source), "--known", str(place / "list"))
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        assert done.returncode == 1
        assert b"Traceback" not in done.stderr
