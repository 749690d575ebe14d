# SPDX-License-Identifier: Apache-2.0
"""Which systemd a root file system boots with."""

from pathlib import Path

import pytest

from flexd.host.guest_init import systemd_version


def make_init(root: Path, target: str | None = "/lib/systemd/systemd", content: bytes = b"\x7fELF") -> Path:
    (root / "sbin").mkdir(parents=True)
    (root / "usr/lib/systemd").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    if target is not None:
        (root / "sbin/init").symlink_to(target)
        (root / "usr/lib/systemd/systemd").write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("library", "version"),
    [
        ("usr/lib/systemd/libsystemd-shared-252.so", 252),
        ("usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so", 257),
        ("usr/lib64/systemd/libsystemd-shared-219.4-1.el7.so", 219),
    ],
)
def test_by_its_library(tmp_path: Path, library: str, version: int):
    root = make_init(tmp_path / "root")
    (root / library).parent.mkdir(parents=True, exist_ok=True)
    (root / library).touch()
    assert systemd_version(root) == version


def test_by_its_program(tmp_path: Path):
    assert systemd_version(make_init(tmp_path / "root", content=b"\x7fELF\0systemd 215\0more")) == 215


def test_one_that_does_not_tell(tmp_path: Path):
    assert systemd_version(make_init(tmp_path / "root")) is None


def test_another_init(tmp_path: Path):
    root = make_init(tmp_path / "root", None)
    assert systemd_version(root) is None
    (root / "sbin/init").write_bytes(b"\0systemd 215\0")
    (root / "usr/lib/systemd/libsystemd-shared-215.so").touch()  # libraries are there, sysvinit is init
    assert systemd_version(root) is None


def test_links_stay_inside(tmp_path: Path):
    """A root file system is its owner's word."""
    outside = tmp_path / "systemd"
    outside.write_bytes(b"\0systemd 215\0")
    assert systemd_version(make_init(tmp_path / "one", f"../../{outside.name}")) is None
    assert systemd_version(make_init(tmp_path / "two", str(outside))) is None
    assert systemd_version(make_init(tmp_path / "three", "/proc/self/exe")) is None
    assert systemd_version(make_init(tmp_path / "four", "init")) is None
