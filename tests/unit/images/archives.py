# SPDX-License-Identifier: Apache-2.0
"""Small archives for tests, honest and hostile, made in memory."""

import io
import tarfile
from collections.abc import Iterable

METADATA = b"""architecture: x86_64
creation_date: 1700000000
properties:
  os: Tiny
  release: "1"
  serial: 20240101_0524
  description: Tiny 1 x86_64
"""


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", **fields: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def rootfs_members(prefix: str = "rootfs/") -> list[tuple[tarfile.TarInfo, bytes]]:
    top = [(entry(prefix.rstrip("/"), tarfile.DIRTYPE), b"")] if prefix else []
    return [
        *top,
        (entry(f"{prefix}etc", tarfile.DIRTYPE), b""),
        (entry(f"{prefix}etc/hostname", uid=7, gid=8), b"tiny\n"),
        (entry(f"{prefix}etc/again", tarfile.LNKTYPE, f"{prefix}etc/hostname"), b""),
        (entry(f"{prefix}etc/link", tarfile.SYMTYPE, "/etc/hostname"), b""),
    ]


def metadata_member(text: bytes = METADATA) -> tuple[tarfile.TarInfo, bytes]:
    return entry("metadata.yaml"), text


def unified(*extra: tuple[tarfile.TarInfo, bytes], metadata: bytes | None = METADATA) -> bytes:
    """A whole tiny image, and what is added to it."""
    head = [] if metadata is None else [metadata_member(metadata)]
    return tar([*head, *rootfs_members(), *extra])
