# SPDX-License-Identifier: Apache-2.0
"""Images for system tests, made once and kept in a cache directory: `FLEXD_TEST_CACHE`, else /var/tmp/flexd-test-cache.

`tiny_image()`: busybox with an init, 1 MB, one file. `debian_image()`: what `flexc image build` makes of debian/12.
Both may be called from any number of test processes at once; what they are made of is part of the file names.
"""

import asyncio
import fcntl
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from flexd.api.image import ImagesPostSource
from flexd.host.linux import LinuxHost
from flexd.images import build, builders, recipes
from flexd.images.incoming import Incoming

_METADATA = """architecture: {architecture}
creation_date: 1700000000
properties:
  os: Busybox
  release: tiny
  description: Busybox for tests
"""
_INITTAB = """::sysinit:/etc/rc
::respawn:/sbin/getty -n -l /bin/sh 0 console
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/true
"""
_RC = """#!/bin/sh
mount -o remount,rw / 2>/dev/null
hostname >/run/hostname
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    udhcpc -i eth0 -b -t 30 -T 1 -A 1 -S >/dev/null 2>&1 &
fi
"""
_UDHCPC = """#!/bin/sh
case $1 in
bound|renew)
    ip addr replace "$ip/$mask" dev "$interface"
    for gateway in $router; do ip route replace default via "$gateway" dev "$interface"; done
    for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
    if [ -n "$domain" ]; then echo "search $domain" >>/etc/resolv.conf; fi
    ;;
deconfig)
    ip addr flush dev "$interface"
    ;;
esac
"""
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
    "etc/group": "root:x:0:\nusers:x:1000:user\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/profile": "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
    "etc/inittab": _INITTAB,
}
_PROGRAMS = {"etc/rc": _RC, "etc/udhcpc/default.script": _UDHCPC, "usr/share/udhcpc/default.script": _UDHCPC}
_DIRECTORIES = (
    *("bin", "sbin", "dev", "etc", "etc/udhcpc", "proc", "sys", "run", "root", "mnt", "home", "home/user", "tmp"),
    *("usr", "usr/bin", "usr/sbin", "usr/share", "usr/share/udhcpc", "var", "var/log"),
)


def cache_directory() -> Path:
    directory = Path(os.environ.get("FLEXD_TEST_CACHE", "/var/tmp/flexd-test-cache"))
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One maker at a time, over all test processes."""
    with (cache_directory() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def tiny_image() -> Path:
    """A unified image (tar.gz) of a static busybox; skips where there is none."""
    busybox = shutil.which("busybox")
    if busybox is None or b"statically linked" not in _described(busybox):
        pytest.skip("needs a static busybox (package busybox-static)")
    content = _tiny_archive(Path(busybox))
    file = cache_directory() / f"tiny-{hashlib.sha256(content).hexdigest()[:12]}.tar.gz"
    with locked("tiny"):
        if not file.exists():
            _write(file, gzip.compress(content, mtime=0))
    return file


def _described(program: str) -> bytes:
    """Static or not: a static program has no interpreter that ld.so would be."""
    dynamic = subprocess.run(["ldd", program], capture_output=True)
    return b"statically linked" if dynamic.returncode or b"statically" in dynamic.stdout else b""


def _tiny_archive(busybox: Path) -> bytes:
    buffer = io.BytesIO()
    applets = subprocess.run([str(busybox), "--list-full"], stdout=subprocess.PIPE, text=True, check=True).stdout
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        _add(archive, "metadata.yaml", _METADATA.format(architecture=os.uname().machine).encode())
        _add(archive, "rootfs")
        for directory in _DIRECTORIES:
            _add(archive, f"rootfs/{directory}", mode=0o1777 if directory == "tmp" else 0o755)
        for name, text in _FILES.items():
            _add(archive, f"rootfs/{name}", text.encode())
        for name, text in _PROGRAMS.items():
            _add(archive, f"rootfs/{name}", text.encode(), mode=0o755)
        _add(archive, "rootfs/bin/busybox", busybox.read_bytes(), mode=0o755)
        for applet in sorted({*applets.split(), "sbin/init"}):
            if applet.rpartition("/")[0] in _DIRECTORIES and applet != "bin/busybox":
                _add(archive, f"rootfs/{applet}", link="/bin/busybox")
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes | None = None, *, mode: int = 0o644, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.mtime, info.mode = 1700000000, mode
    if link:
        info.type, info.linkname = tarfile.SYMTYPE, link
    elif data is None:
        info.type, info.mode = tarfile.DIRTYPE, mode if mode != 0o644 else 0o755
    else:
        info.size = len(data)
    archive.addfile(info, io.BytesIO(data) if data is not None else None)


def debian_image(name: str = "debian/12") -> tuple[Path, Path]:
    """The metadata archive and the squashfs of a build: a split image. Built on first use, which takes a minute and
    the mirror, in the caller's network namespace. Skips where it cannot be built."""
    if os.geteuid() != 0:
        pytest.skip("building an image needs root")
    stem = name.replace("/", "-")
    made_of = [Path(build.__file__), Path(recipes.__file__), *sorted(Path(builders.__file__).parent.glob("*[!c]"))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in made_of if file.is_file())).hexdigest()[:12]
    metadata, rootfs = (cache_directory() / f"{stem}_{digest}.{suffix}" for suffix in ("tar.xz", "squashfs"))
    with locked(stem):
        if not (metadata.exists() and rootfs.exists()):
            for outdated in cache_directory().glob(f"{stem}_*"):
                outdated.unlink()
            # In a thread: the caller may or may not be in an event loop.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(lambda: asyncio.run(build_image(name, metadata, rootfs))).result()
    return metadata, rootfs


async def build_image(name: str, metadata: Path, rootfs: Path) -> None:
    """Build anew, into these files."""
    host = LinuxHost()
    incoming = await Incoming.make(cache_directory())
    try:
        made = await build.prepare_build(host, ImagesPostSource(type="build", name=name))
        await made.into(incoming, lambda _metadata: None)
        incoming.rootfs.rename(rootfs)
        incoming.metadata.rename(metadata)
    finally:
        await incoming.discard()
        await host.close()


def split_body(metadata: Path, rootfs: Path) -> tuple[bytes, str]:
    """Body and Content-Type that import a split image, as LXD's clients send it."""
    boundary = "flexd-tests-2f1c6e"
    pieces = []
    for name, path in (("metadata", metadata), ("rootfs", rootfs)):
        pieces.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{path.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n".encode()
        )
        pieces.append(path.read_bytes() + b"\r\n")
    pieces.append(f"--{boundary}--\r\n".encode())
    return b"".join(pieces), f"multipart/form-data; boundary={boundary}"


def _write(file: Path, data: bytes) -> None:
    part = file.with_suffix(".part")
    part.write_bytes(data)
    part.rename(file)
