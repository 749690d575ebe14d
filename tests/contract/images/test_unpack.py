# SPDX-License-Identifier: Apache-2.0
"""Archives through real programs: every format, what is kept, what is refused, and what may not get out. Root."""

import asyncio
import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from flexd.host.linux import LinuxHost
from flexd.images.archive import Archives, UnpackFailed
from flexd.images.contract import BadImage
from flexd.images.survey import Limits
from tests.contract.images.house import Failed, House
from tests.unit.images.archives import METADATA, entry, metadata_member, rootfs_members, tar, unified

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="confining programs needs root")

LIMITS = Limits(expanded_bytes=1 << 40)
PACKED = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zstd": lambda data: piped(["zstd", "-qc"], data),
    "lz4": lambda data: piped(["lz4", "-qc"], data),
}


def piped(argv: list[str], data: bytes) -> bytes:
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed")
    return subprocess.run(argv, input=data, stdout=subprocess.PIPE, check=True).stdout


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture
def archives(tmp_path: Path) -> Archives:
    stage = tmp_path / "stage"
    stage.mkdir()
    return Archives(LinuxHost(), stage)


def squashfs(tmp_path: Path, source: Path, *options: str) -> Path:
    if shutil.which("mksquashfs") is None:
        pytest.skip("mksquashfs is not installed")
    made = tmp_path / "made.squashfs"
    command = ["mksquashfs", str(source), str(made), "-noappend", "-quiet", "-no-progress", *options]
    subprocess.run(command, check=True, capture_output=True)
    return made


async def unpack(house: House, fingerprint: str, target: Path) -> list[str]:
    seen: list[str] = []
    await house.images.unpack(fingerprint, target, lambda metadata: seen.extend(metadata.values()))
    return seen


@pytest.mark.parametrize("packing", PACKED)
async def test_every_compression(house: House, target: Path, packing: str) -> None:
    fingerprint = await house.upload(PACKED[packing](unified()))
    await unpack(house, fingerprint, target)
    hostname = target / "etc/hostname"
    assert hostname.read_text() == "tiny\n"
    assert (hostname.stat().st_uid, hostname.stat().st_gid, hostname.stat().st_nlink) == (7, 8, 2)
    assert os.readlink(target / "etc/link") == "/etc/hostname"
    assert sorted(os.listdir(target)) == ["etc"]


@pytest.mark.parametrize("packing", [name for name in PACKED if name != "plain"])
async def test_truncated_compression(house: House, packing: str) -> None:
    whole = PACKED[packing](unified((entry("rootfs/big"), os.urandom(200_000))))
    with pytest.raises(Failed, match="Invalid image"):
        await house.upload(whole[: len(whole) * 2 // 3])
    assert house.files() == []


async def test_bomb_in_gzip(house: House) -> None:
    """3 GiB of zeros in 3 MB; refused as soon as the limit is passed."""
    head = entry("rootfs/zeros")
    head.size = 3 << 30
    start = tar([metadata_member()])[:1024] + head.tobuf(tarfile.GNU_FORMAT)
    block = gzip.compress(bytes(64 << 20))
    with pytest.raises(Failed, match=r"expands to more than"):
        await house.upload(gzip.compress(start) + block * 48)
    assert house.files() == []


async def test_unpacked_split_image(house: House, target: Path) -> None:
    fingerprint = await house.upload(tar([metadata_member()]), gzip.compress(tar(rootfs_members(""))))
    await unpack(house, fingerprint, target)
    assert (target / "etc/hostname").read_text() == "tiny\n"


async def test_devices_are_skipped(house: House, target: Path) -> None:
    nodes = [
        entry("rootfs/dev", tarfile.DIRTYPE),
        entry("rootfs/dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("rootfs/dev/sda", tarfile.BLKTYPE, devmajor=8),
        entry("rootfs/dev/whiteout", tarfile.CHRTYPE),
        entry("rootfs/dev/fifo", tarfile.FIFOTYPE),
    ]
    fingerprint = await house.upload(unified(*[(node, b"") for node in nodes]))
    await unpack(house, fingerprint, target)
    assert os.listdir(target / "dev") == ["fifo"]
    assert stat.S_ISFIFO((target / "dev/fifo").stat().st_mode)


async def test_devices_in_squashfs_are_skipped(house: House, target: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "dev").mkdir(parents=True)
    (source / "file").write_text("x")
    os.mknod(source / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(source / "dev/disk", stat.S_IFBLK | 0o660, os.makedev(8, 0))
    os.mknod(source / "dev/whiteout", stat.S_IFCHR, os.makedev(0, 0))
    os.mkfifo(source / "dev/fifo")
    image = squashfs(tmp_path, source)
    fingerprint = await house.upload(tar([metadata_member()]), image.read_bytes())
    await unpack(house, fingerprint, target)
    assert os.listdir(target / "dev") == ["fifo"]
    assert (target / "file").read_text() == "x"


async def test_attributes_are_kept(house: House, target: Path, tmp_path: Path) -> None:
    """Owners, special modes, capabilities, user attributes, ACLs, times, holes."""
    source = tmp_path / "rootfs"
    source.mkdir()
    file = source / "file"
    file.write_bytes(b"x")
    os.truncate(file, 8 << 20)
    os.chown(file, 1234, 5678)
    os.chmod(file, 0o6755)
    capability = bytes.fromhex("0100000200200000000000000000000000000000")  # VFS_CAP_REVISION_2, cap_net_raw
    os.setxattr(file, "security.capability", capability)
    os.setxattr(file, "user.note", b"kept")
    os.setxattr(file, "trusted.note", b"dropped")
    acl = bytes.fromhex("0200000001000700ffffffff02000400d204000004000500ffffffff10000500ffffffff20000500ffffffff")
    os.setxattr(file, "system.posix_acl_access", acl)
    os.utime(file, (1_000_000_000, 1_000_000_000))
    (tmp_path / "metadata.yaml").write_bytes(METADATA)
    command = ["tar", "-C", str(tmp_path), "--xattrs", "--xattrs-include=*", "--acls", "-S", "-cf", "-"]
    data = subprocess.run([*command, "metadata.yaml", "rootfs"], stdout=subprocess.PIPE, check=True).stdout
    await unpack(house, await house.upload(data), target)
    made = target / "file"
    found = made.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 5678, stat.S_IMODE(file.stat().st_mode))
    assert found.st_mtime == 1_000_000_000
    assert found.st_size == 8 << 20
    assert found.st_blocks < 1000
    assert os.getxattr(made, "security.capability") == capability
    assert os.getxattr(made, "user.note") == b"kept"
    assert os.getxattr(made, "system.posix_acl_access") == acl
    assert "trusted.note" not in os.listxattr(made)


HOSTILE = {
    "dotdot": [entry("rootfs/../../../outside")],
    "absolute": [entry("/outside")],
    "through a link": [entry("rootfs/out", tarfile.SYMTYPE, "/"), entry("rootfs/out/outside")],
    "through a relative link": [entry("rootfs/out", tarfile.SYMTYPE, "../../.."), entry("rootfs/out/outside")],
    "through two links": [
        entry("rootfs/a", tarfile.SYMTYPE, "b"),
        entry("rootfs/b", tarfile.SYMTYPE, "/"),
        entry("rootfs/a/outside"),
    ],
    "hard link out": [entry("rootfs/h", tarfile.LNKTYPE, "/etc/passwd")],
    "hard link through a link": [
        entry("rootfs/l", tarfile.SYMTYPE, "/etc"),
        entry("rootfs/h", tarfile.LNKTYPE, "rootfs/l/passwd"),
    ],
    "file over a link": [entry("rootfs/s", tarfile.SYMTYPE, "/outside"), entry("rootfs/s")],
    "rootfs is a link": [entry("rootfs", tarfile.SYMTYPE, "/"), entry("rootfs/outside")],
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_archives_are_refused(house: House, name: str) -> None:
    with pytest.raises(Failed, match=r'Invalid image ".*": member "'):
        await house.upload(gzip.compress(unified(*[(member, b"") for member in HOSTILE[name]])))
    assert house.files() == []


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_archives_stay_inside_even_unchecked(archives: Archives, target: Path, name: str) -> None:
    """Past the survey, straight to tar -P, which would follow everything: nothing outside the target changes."""
    outside = [Path("/outside"), target.parent / "outside", target.parent.parent / "outside"]
    file = target.parent / "image"
    await asyncio.to_thread(file.write_bytes, unified(*[(member, b"evil") for member in HOSTILE[name]]))
    before = Path("/etc/passwd").stat()
    try:
        await archives.unpack(file, '"t"', target, lambda _percent: None, unified=True)
    except UnpackFailed:
        assert os.listdir(target) == []
    assert not any(path.exists() for path in outside)
    after = Path("/etc/passwd").stat()
    assert (after.st_nlink, after.st_mtime, after.st_ino) == (before.st_nlink, before.st_mtime, before.st_ino)


async def test_confinement_holds_against_the_program_itself(archives: Archives, target: Path) -> None:
    """An exploited tar runs what it likes: it can write to the target and to nothing else, and mount nothing."""
    from flexd.images.confine import confined
    from flexd.images.programs import run_chain

    script = """
        echo in >/image/rootfs/in
        for path in /usr /bin/../usr/bin /lib; do
            if touch "$path/evil" 2>/dev/null; then echo "wrote to $path"; fi
        done
        if mount -t tmpfs none /tmp 2>/dev/null; then echo mounted; fi
        if mknod /image/rootfs/sda b 8 0 2>/dev/null; then echo node; fi
        if mknod /image/rootfs/null c 1 3 2>/dev/null; then echo node; fi
        if chroot /image/rootfs true 2>/dev/null; then echo chrooted; fi
        if kill -0 2 3 2>/dev/null; then echo kill; fi
        ls /root /home /etc /proc /var 2>/dev/null
        exit 0
    """
    command = confined(["sh", "-c", script], stage=archives._stage, target=target)
    outcome = await run_chain(archives._host.processes, [command], stdin=None)
    assert outcome.programs[0].returncode == 0
    assert outcome.programs[0].messages.strip() in ("", "kill")  # its own namespace's processes are its to signal
    assert (target / "in").read_text() == "in\n"


async def test_target_must_be_empty(archives: Archives, target: Path, tmp_path: Path) -> None:
    (target / "there").touch()
    file = tmp_path / "image"
    await asyncio.to_thread(file.write_bytes, unified())
    with pytest.raises(UnpackFailed, match="is not empty"):
        await archives.unpack(file, '"t"', target, lambda _percent: None, unified=True)
    assert os.listdir(target) == ["there"]


async def test_damage_found_while_unpacking_leaves_nothing(archives: Archives, target: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        text = os.urandom(100_000).hex()  # compresses: what squashfs stores as it is has no check
        (source / f"f{number}").write_text(text)
    image = squashfs(tmp_path, source)
    data = bytearray(image.read_bytes())
    data[1_000_000:1_300_000] = os.urandom(300_000)
    image.write_bytes(data)
    with pytest.raises((UnpackFailed, BadImage)):
        await archives.unpack(image, '"t"', target, lambda _percent: None, unified=False)
    assert os.listdir(target) == []


@pytest.mark.parametrize("cut", [100, 5000, 300_000])
async def test_truncated_squashfs(archives: Archives, tmp_path: Path, cut: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_bytes(os.urandom(400_000))
    image = squashfs(tmp_path, source)
    os.truncate(image, cut)
    with pytest.raises(BadImage, match="truncated"):
        await archives.survey(image, '"t"', LIMITS, rootfs=True)


async def test_garbage_squashfs(archives: Archives, tmp_path: Path) -> None:
    """A right superblock over noise."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_bytes(os.urandom(10_000))
    image = squashfs(tmp_path, source)
    data = bytearray(image.read_bytes())
    data[96:] = os.urandom(len(data) - 96)
    image.write_bytes(data)
    with pytest.raises(BadImage, match="damaged squashfs"):
        await archives.survey(image, '"t"', LIMITS, rootfs=True)


async def test_cancelled_unpack_leaves_no_process_and_no_file(archives: Archives, target: Path, tmp_path: Path) -> None:
    """The archive never ends: only cancellation does."""
    os.mkfifo(tmp_path / "endless")
    members = io.BytesIO(unified((entry("rootfs/x"), bytes(1 << 20))))
    reading = os.open(tmp_path / "endless", os.O_RDWR)
    os.write(reading, members.read(30_000))
    from flexd.images.confine import TARGET, confined
    from flexd.images.programs import run_chain

    command = confined(["tar", "-xf", "-", "-C", TARGET], stage=archives._stage, target=target)
    begun = asyncio.Event()
    task = asyncio.create_task(
        run_chain(archives._host.processes, [command], stdin=reading, tick=lambda _messages: begun.set())
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.close(reading)
    running = subprocess.run(["ps", "-eo", "args"], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert str(archives._stage) not in running
    assert str(archives._stage) not in Path("/proc/self/mounts").read_text()


_ORPHANER = """
import asyncio, os, sys
from flexd.host.linux import LinuxHost
from flexd.images.confine import leashed
from flexd.images.programs import run_chain

def seen(messages):
    if "ready" in messages:
        os.kill(os.getpid(), 9)

command = leashed(["sh", "-c", "echo ready; sleep 1000 & sleep 1000", sys.argv[1]])
asyncio.run(run_chain(LinuxHost().processes, [command], stdin=None, tick=seen))
"""


def test_programs_end_when_the_daemon_is_killed(tmp_path: Path) -> None:
    """SIGKILL in the middle: the leash ends, and with it all that was started."""
    mark = f"mark-{tmp_path.name}"
    killed = subprocess.run([sys.executable, "-c", _ORPHANER, mark], env={**os.environ, "PYTHONPATH": "src"})
    assert killed.returncode == -9
    deadline = time.monotonic() + 20
    while mark in subprocess.run(["ps", "-eo", "args"], stdout=subprocess.PIPE, text=True, check=True).stdout:
        assert time.monotonic() < deadline, "orphans stay"
        time.sleep(0.02)
