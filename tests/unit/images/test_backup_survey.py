# SPDX-License-Identifier: Apache-2.0
"""Backups are read by the rules for images; hostile ones are refused with their reason."""

import io
import tarfile

import pytest

from flexd.images.backup_survey import INDEX, BackupSurvey, read_index, survey_backup
from flexd.images.contract import BadImage
from flexd.images.survey import Limits
from tests.unit.images.archives import METADATA, entry, rootfs_members, tar

LIMITS = Limits(expanded_bytes=1 << 40)
Members = list[tuple[tarfile.TarInfo, bytes]]


def volume(base: str) -> Members:
    return [
        (entry(base, tarfile.DIRTYPE), b""),
        (entry(f"{base}/backup.yaml"), b"container: {}\n"),
        (entry(f"{base}/metadata.yaml"), METADATA),
        *rootfs_members(f"{base}/rootfs/"),
        (entry(f"{base}/templates", tarfile.DIRTYPE), b""),
        (entry(f"{base}/templates/a.tpl"), b"text"),
    ]


def backup(*extra: tuple[tarfile.TarInfo, bytes]) -> bytes:
    index = (entry(INDEX), b"name: c1\n")
    return tar([index, *volume("backup/snapshots/s0"), *volume("backup/container"), *extra])


def survey(data: bytes, limits: Limits = LIMITS) -> BackupSurvey:
    return survey_backup(io.BytesIO(data), "file", len(data), limits)


def test_an_honest_backup():
    found = survey(backup())
    assert found.index == b"name: c1\n"
    assert found.roots == {"backup/container", "backup/snapshots/s0"}
    assert found.files["backup/container/metadata.yaml"] == METADATA
    assert found.files["backup/snapshots/s0/templates/a.tpl"] == b"text"
    assert found.survey.rootfs_members == 10
    assert read_index(io.BytesIO(backup()), "file") == b"name: c1\n"


_ROOT = "backup/container/rootfs"


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        (entry(f"{_ROOT}/../../../x"), 'has ".."'),
        (entry("/etc/passwd"), "is absolute"),
        (entry(f"{_ROOT}/etc/link/x"), "which is no directory"),
        (entry(f"{_ROOT}/x", tarfile.LNKTYPE, "backup/snapshots/s0/rootfs/etc/hostname"), "across root file systems"),
        (entry(f"{_ROOT}/x", tarfile.LNKTYPE, "backup/container/metadata.yaml"), "across the root file system"),
        (entry("backup/container/y", tarfile.LNKTYPE, f"{_ROOT}/etc/hostname"), "across the root file system"),
        (entry("backup/container/y", tarfile.SYMTYPE, "/etc"), "must be a plain file"),
        (entry("backup/snapshots/s1/rootfs", tarfile.SYMTYPE, "/etc"), "must be a directory"),
        (entry("backup/snapshots/s1/rootfs"), "must be a directory"),
        (entry(f"{_ROOT}/etc/hostname"), "appears twice"),
        (entry("backup/container/dev", tarfile.CHRTYPE), "must be a plain file"),
        (entry(f"{_ROOT}/a\nb"), "control characters"),
    ],
)
def test_hostile_members(member: tarfile.TarInfo, fault: str):
    with pytest.raises(BadImage, match=fault):
        survey(backup((member, b"")))


def test_large_texts_and_much_beside():
    with pytest.raises(BadImage, match="more than 1048576"):
        survey(backup((entry("backup/snapshots/s1/metadata.yaml"), bytes(1 << 21))))
    with pytest.raises(BadImage, match="beside rootfs"):
        survey(backup((entry("backup/other"), bytes(33 << 20))))
    found = survey(backup((entry("backup/container.bin"), bytes(33 << 20))))
    assert found.blobs == {"backup/container.bin"}


def test_bombs():
    with pytest.raises(BadImage, match="expands to more than"):
        survey(backup(), Limits(expanded_bytes=1000))
    with pytest.raises(BadImage, match="more than 5 members"):
        survey(backup(), Limits(expanded_bytes=1 << 40, members=5))


@pytest.mark.parametrize("data", [b"", b"x" * 2000, tar(rootfs_members()), backup()[:300]])
def test_what_is_no_backup(data: bytes):
    with pytest.raises(BadImage):
        read_index(io.BytesIO(data), "file")
    with pytest.raises(BadImage):
        survey(data)


def test_cut_off():
    with pytest.raises(BadImage, match=r"truncated|not a whole"):
        survey(backup().rstrip(b"\0")[:-700])
