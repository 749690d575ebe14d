# SPDX-License-Identifier: Apache-2.0
"""Debian 12 with an init that is not systemd, made once by mmdebstrap and kept as in `images`."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from tests.system.images import cache_directory, locked

_PACKAGES = "sysvinit-core,ifupdown,isc-dhcp-client,iproute2,netbase,procps"
_INCLUDED = {"sysvinit": f"initscripts,{_PACKAGES}", "openrc": f"openrc,{_PACKAGES}"}
_METADATA = "architecture: x86_64\ncreation_date: 1700000000\nproperties: {{os: Debian, release: {kind}}}\n"
# What makers of container images change for sysvinit: no terminals but the console, and what SIGPWR and SIGINT mean.
_ADAPT = r"""
sed -i '/^[1-6]:.*getty/d; /^T[0-9]:/d; s|^pf:.*|pf::powerwait:/sbin/init 0|; s|^ca:.*|ca::ctrlaltdel:/sbin/init 6|' \
    "$1/etc/inittab"
grep -q '^pf::' "$1/etc/inittab" || echo 'pf::powerwait:/sbin/init 0' >>"$1/etc/inittab"
printf 'auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n' >"$1/etc/network/interfaces"
rm -rf "$1"/var/cache/apt/*.bin "$1"/var/lib/apt/lists/* "$1/etc/hostname"
"""


def init_image(kind: str) -> tuple[Path, Path]:
    """The metadata archive and the squashfs: a split image, of `kind` "sysvinit" or "openrc"."""
    if os.uname().machine != "x86_64" or shutil.which("mmdebstrap") is None:
        pytest.skip("made on x86_64 with mmdebstrap")
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    metadata, rootfs = (cache_directory() / f"{kind}_{digest}.{suffix}" for suffix in ("tar.xz", "squashfs"))
    with locked(kind):
        if not (metadata.exists() and rootfs.exists()):
            for outdated in cache_directory().glob(f"{kind}_*"):
                outdated.unlink()
            _make(kind, metadata, rootfs)
    return metadata, rootfs


def _make(kind: str, metadata: Path, rootfs: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache_directory()) as place:
        root, adapt, part = Path(place) / "root", Path(place) / "adapt", Path(place) / "part.squashfs"
        adapt.write_text("#!/bin/sh\nset -eu\n" + _ADAPT)
        adapt.chmod(0o755)
        argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_INCLUDED[kind]}"]
        argv += ["--aptopt=Acquire::Languages none", f"--customize-hook={adapt} $1"]
        for directory in ("doc", "man", "locale"):
            argv.append(f"--dpkgopt=path-exclude=/usr/share/{directory}/*")
        subprocess.run([*argv, "bookworm", root], check=True, stdin=subprocess.DEVNULL)
        subprocess.run(["mksquashfs", root, part, "-quiet", "-no-progress", "-comp", "gzip"], check=True)
        part.rename(rootfs)
    with tarfile.open(metadata, "w:xz") as archive:
        data = _METADATA.format(kind=kind).encode()
        entry = tarfile.TarInfo("metadata.yaml")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
