# SPDX-License-Identifier: Apache-2.0
"""Hostile and damaged archives are refused with their reason; honest ones pass."""

import io
import tarfile
from collections.abc import Callable

import pytest

from flexd.images.contract import BadImage
from flexd.images.survey import Limits, Survey, survey_squashfs_listing, survey_tar
from tests.unit.images.archives import METADATA, entry, metadata_member, rootfs_members, tar, unified

LIMITS = Limits(expanded_bytes=1 << 40)


def survey(data: bytes, limits: Limits = LIMITS, *, rootfs: bool = False) -> Survey:
    return survey_tar(io.BytesIO(data), '"t"', len(data), limits, rootfs=rootfs)


def test_honest_image() -> None:
    template = (entry("templates/hostname.tpl"), b"{{ container.name }}\n")
    found = survey(unified((entry("templates", tarfile.DIRTYPE), b""), template))
    assert found.metadata == METADATA
    assert found.templates == {"hostname.tpl": b"{{ container.name }}\n"}
    assert found.rootfs_members == 4
    assert found.members == 8


def test_honest_image_with_leading_dots() -> None:
    found = survey(tar([(entry("./metadata.yaml"), METADATA), *rootfs_members("./rootfs/")]))
    assert found.metadata == METADATA
    assert found.rootfs_members == 4


def test_root_file_system_alone() -> None:
    found = survey(tar(rootfs_members("")), rootfs=True)
    assert found.rootfs_members == 4
    assert found.metadata is None


def test_devices_are_counted() -> None:
    node = entry("rootfs/dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3)
    disk = entry("rootfs/dev/sda", tarfile.BLKTYPE, devmajor=8)
    fifo = entry("rootfs/run/fifo", tarfile.FIFOTYPE)
    assert survey(unified((node, b""), (disk, b""), (fifo, b""))).devices == 2


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([entry("rootfs/../../etc/passwd")], '"rootfs/../../etc/passwd" leads out of the image'),
        ([entry("../outside")], 'has ".."'),
        ([entry("/etc/passwd")], "is absolute"),
        ([entry("rootfs/a\nb")], "control characters"),
        ([entry("rootfs/a\x7fb")], "control characters"),
        (
            [entry("rootfs/out", tarfile.SYMTYPE, "/"), entry("rootfs/out/etc/passwd")],
            'would be written through "rootfs/out"',
        ),
        (
            [entry("rootfs/out", tarfile.SYMTYPE, "../.."), entry("rootfs/out", tarfile.DIRTYPE)],
            'would be written through "rootfs/out"',
        ),
        (
            [entry("rootfs/a", tarfile.SYMTYPE, "b"), entry("rootfs/b", tarfile.SYMTYPE, "/"), entry("rootfs/a/x")],
            'would be written through "rootfs/a"',
        ),
        ([entry("rootfs/d/f"), entry("rootfs/d", tarfile.SYMTYPE, "/etc")], "replaces a directory"),
        ([entry("rootfs/s", tarfile.SYMTYPE, "/etc/passwd"), entry("rootfs/s")], "appears twice"),
        ([entry("rootfs/h", tarfile.LNKTYPE, "/etc/passwd")], "is absolute"),
        ([entry("rootfs/h", tarfile.LNKTYPE, "rootfs/../../x")], 'has ".."'),
        ([entry("rootfs/h", tarfile.LNKTYPE, "rootfs/later"), entry("rootfs/later")], "is no earlier member"),
        ([entry("rootfs/h", tarfile.LNKTYPE, "metadata.yaml")], "across the root file system"),
        ([entry("rootfs/s", tarfile.SYMTYPE, "a\nb")], "a name with control characters"),
        ([entry("rootfs/odd", b"9")], "of a kind"),
        ([entry("templates", tarfile.SYMTYPE, "/etc")], "must be a directory"),
        ([entry("templates/t", tarfile.LNKTYPE, "metadata.yaml")], "must be a plain file"),
    ],
)
def test_hostile_members(members: list[tarfile.TarInfo], fault: str) -> None:
    with pytest.raises(BadImage) as error:
        survey(unified(*[(member, b"") for member in members]))
    assert str(error.value).startswith('Invalid image "t": member "')
    assert fault in str(error.value)


def test_rootfs_must_not_be_a_link() -> None:
    with pytest.raises(BadImage, match="must be a directory"):
        survey(tar([metadata_member(), (entry("rootfs", tarfile.SYMTYPE, "/"), b"")]))


def test_long_names_and_sparse_files() -> None:
    deep = "rootfs/" + "/".join("d" * 60 for _ in range(10))
    assert survey(unified((entry(deep), b"x"))).rootfs_members == 5


def test_bomb_by_ratio() -> None:
    """2 GiB of zeros in a file that was sent as 2 MB."""
    big = entry("rootfs/zeros")
    big.size = 2 << 30
    head = tar([metadata_member()])[:1024] + big.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(BadImage, match=r"expands to more than 1\.00GiB"):
        survey_tar(io.BytesIO(head), '"t"', 2 << 20, LIMITS)


def test_bomb_by_free_space() -> None:
    with pytest.raises(BadImage, match="expands to more than 1000B"):
        survey(unified(), Limits(expanded_bytes=1000))


def test_bomb_by_members() -> None:
    many = [(entry(f"rootfs/{number}"), b"") for number in range(100)]
    with pytest.raises(BadImage, match="more than 50 members"):
        survey(unified(*many), Limits(expanded_bytes=1 << 40, members=50))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_bomb_in_extended_header(kind: bytes) -> None:
    """A header that announces 4 GiB must not be read into memory."""
    header = entry("x", kind)
    header.size = 4 << 30
    with pytest.raises(BadImage, match="extended tar header"):
        survey(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def test_bomb_beside_rootfs() -> None:
    with pytest.raises(BadImage, match=r"more than 32\.00MiB beside rootfs/"):
        survey(unified((entry("junk"), bytes(33 << 20))))


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(lambda data: data[:700], id="in the first member"),
        pytest.param(lambda data: data.rstrip(b"\0"), id="before the end"),
        pytest.param(lambda data: data[:1300], id="in a header"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"\x01" * 10240, id="no tar"),
        pytest.param(lambda data: data[:512] + b"\xff" * 600, id="garbage inside"),
    ],
)
def test_damaged(cut: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BadImage, match=r"truncated|not a whole tar archive"):
        survey(cut(unified()))


def test_metadata_too_large() -> None:
    with pytest.raises(BadImage, match=r'"metadata.yaml" has [0-9]+ bytes'):
        survey(unified(metadata=b"x" * (300 << 10)))


LISTING = b"""drwxr-xr-x 0/0                      59 2026-11-23 06:21 squashfs-root
drwxr-xr-x 0/0                       3 2026-11-23 06:21 squashfs-root/etc
-rw-r--r-- 7/8                    1234 2026-11-23 06:21 squashfs-root/etc/a b
lrwxrwxrwx 0/0                       6 2026-11-23 06:21 squashfs-root/l -> ../../x
crw-rw-rw- 0/0                 1,    3 2026-11-23 06:21 squashfs-root/null
prw-r--r-- 0/0                       0 2026-11-23 06:21 squashfs-root/fifo
"""


def listing(data: bytes, limits: Limits = LIMITS) -> Survey:
    return survey_squashfs_listing(io.BytesIO(data), '"s"', 1000, limits)


def test_squashfs_listing() -> None:
    found = listing(LISTING)
    assert (found.members, found.rootfs_members, found.devices, found.expanded_bytes) == (6, 5, 1, 1234)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"-rw-r--r-- 0/0 1 2026-11-23 06:21 squashfs-root/../../etc/x\n", 'has ".."'),
        (b"-rw-r--r-- 0/0 1 2026-11-23 06:21 squashfs-root/a\nb\n", "strange entry"),
        (b"-rw-r--r-- 0/0 1 2026-11-23 06:21 squashfs-root/a\x01b\n", "control characters"),
        (b"-rw-r--r-- 0/0 1 2026-11-23 06:21 squashfs-root/l/x\n", 'written through "l"'),
        (b"-rw-r--r-- 0/0 1 2026-11-23 06:21 squash", "could not be listed"),
        (b"-rw-r--r-- 0/0 9999999999999 2026-11-23 06:21 squashfs-root/big\n", "expands to more than"),
    ],
)
def test_hostile_squashfs(line: bytes, fault: str) -> None:
    with pytest.raises(BadImage) as error:
        listing(LISTING + line)
    assert fault in str(error.value)
