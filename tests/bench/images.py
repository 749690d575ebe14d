# SPDX-License-Identifier: Apache-2.0
"""The images of a run: one Debian for all peers, and a tiny one for long lists."""

import io
import json
import os
import re
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.rest import Api

_BUSYBOX = Path("/usr/bin/busybox")  # Debian's busybox-static
_METADATA = "architecture: x86_64\ncreation_date: 1700000000\nproperties: {os: tiny, release: '1'}\n"
_INITTAB = "::sysinit:/bin/true\n::ctrlaltdel:/bin/poweroff\n"


@dataclass
class Image:
    """A unified image in one file, or a split one in two (metadata, root file system)."""

    alias: str
    files: tuple[Path, ...]

    def upload(self, api: Api) -> str:
        """Its fingerprint on that server."""
        if len(self.files) == 1:
            body, kind = self.files[0].read_bytes(), "application/octet-stream"
        else:
            body, kind = _multipart(*self.files)
        envelope = json.loads(api.raw("POST", "/1.0/images", body, {"Content-Type": kind}))
        fingerprint: str = api.wait(envelope["operation"])["fingerprint"]
        return fingerprint


def _multipart(metadata: Path, rootfs: Path) -> tuple[bytes, str]:
    boundary = uuid.uuid4().hex
    body = io.BytesIO()
    for field, path in (("metadata", metadata), ("rootfs", rootfs)):
        header = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{path.name}"\r\n'
        body.write(f"{header}Content-Type: application/octet-stream\r\n\r\n".encode())
        body.write(path.read_bytes())
        body.write(b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    return body.getvalue(), f"multipart/form-data; boundary={boundary}"


def build_debian(api: Api, directory: Path) -> None:
    """Debian 12 as `flexc image build` makes it, in files: `metadata` and `rootfs`."""
    fingerprint = api.call("POST", "/1.0/images", {"source": {"type": "build", "name": "debian/12"}})["fingerprint"]
    body = api.raw("GET", f"/1.0/images/{fingerprint}/export")
    partial = directory.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for name, data in _parts(body):
        (partial / name).write_bytes(data)
    partial.rename(directory)


def _parts(body: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each part of a multipart body (RFC 2046), as a split image is exported."""
    boundary = body[: body.index(b"\r\n")]
    for part in body.split(b"\r\n" + boundary):
        header, separator, data = part.removeprefix(boundary).partition(b"\r\n\r\n")
        name = re.search(rb'\bname="?([a-z]+)', header)
        if separator and name:
            yield name[1].decode(), data


def tiny_image(target: Path) -> Image | None:
    """A busybox with an init; None where there is no static busybox."""
    if not _BUSYBOX.exists():
        return None
    with tarfile.open(target, "w") as archive:
        _add(archive, "metadata.yaml", _METADATA.encode())
        for folder in ("bin", "sbin", "etc", "proc", "sys", "dev", "tmp", "root", "run", "var"):
            entry = tarfile.TarInfo(f"rootfs/{folder}")
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        _add(archive, "rootfs/etc/inittab", _INITTAB.encode())
        _add(archive, "rootfs/bin/busybox", _BUSYBOX.read_bytes(), 0o755)
        for link in ("sbin/init", "bin/sh", "bin/true", "bin/poweroff"):
            entry = tarfile.TarInfo(f"rootfs/{link}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "/bin/busybox"
            archive.addfile(entry)
    return Image("tiny", (target,))


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def unpack(image: Image, directory: Path) -> Path:
    """The root file system, for the floor; where the archive's own ids are kept."""
    directory.mkdir(mode=0o755)
    file = image.files[-1]
    target = directory / "rootfs"
    if file.read_bytes()[:4] == b"hsqs":
        subprocess.run(["unsquashfs", "-q", "-n", "-d", str(target), str(file)], check=True, capture_output=True)
    else:
        subprocess.run(["tar", "-C", str(directory), "--numeric-owner", "-xf", str(file)], check=True)
    if (target / "rootfs").is_dir():  # a unified image in squashfs
        target = target / "rootfs"
    target.chmod(0o755)
    if not os.path.lexists(target / "sbin/init"):
        raise RuntimeError(f"{file} holds no root file system")
    return target
