# SPDX-License-Identifier: Apache-2.0
"""What kinds of files images are made of, told by their first bytes, and what `metadata.yaml` says.

Pure: bytes in, values or `BadImage` out.
"""

import struct
from datetime import UTC, datetime
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from flexd.api.architectures import canonical_architecture
from flexd.api.image import ImageMetadata
from flexd.api.times import ZERO_TIME
from flexd.images.contract import BadImage

HEAD_BYTES = 512
"""How much of a file `detect` wants to see: one tar header."""
METADATA_BYTES = 256 << 10
"""The largest metadata.yaml accepted; real ones have 1-4 KiB."""
_METADATA_DEPTH = 16
_METADATA_NODES = 20_000


class Compression(Struct, frozen=True):
    """`argv` decompresses stdin to stdout. Memory limits keep a crafted dictionary size from taking the machine's."""

    name: str
    magic: bytes
    suffix: str
    argv: tuple[str, ...]


COMPRESSIONS = (
    Compression("gzip", b"\x1f\x8b", ".gz", ("gzip", "-dc")),
    Compression("bzip2", b"BZh", ".bz2", ("bzip2", "-dc")),
    Compression("xz", b"\xfd7zXZ\x00", ".xz", ("xz", "-dc", "--format=xz", "--memlimit-decompress=512MiB", "-T0")),
    Compression("lzma", b"\x5d\x00\x00", ".lzma", ("xz", "-dc", "--format=lzma", "--memlimit-decompress=512MiB")),
    Compression("zstd", b"\x28\xb5\x2f\xfd", ".zst", ("zstd", "-dcq", "--long=27")),
    Compression("lz4", b"\x04\x22\x4d\x18", ".lz4", ("lz4", "-dcq")),
)


class Format(Struct, frozen=True):
    """`kind` is "tar" or "squashfs"; `compression` None for a plain tar (and for squashfs, which compresses inside)."""

    kind: str
    suffix: str
    compression: Compression | None = None


PLAIN_TAR = Format("tar", ".tar")
SQUASHFS = Format("squashfs", ".squashfs")


def detect(head: bytes, name: str) -> Format:
    """The format of a file that begins with `head`; `name` is for the error. A compressed file is taken for a
    compressed tar: what is inside shows when it is read."""
    for compression in COMPRESSIONS:
        if head.startswith(compression.magic):
            return Format("tar", ".tar" + compression.suffix, compression)
    if head.startswith(b"hsqs"):
        return SQUASHFS
    if _is_tar_header(head):
        return PLAIN_TAR
    if head.startswith(b"QFI\xfb"):
        raise BadImage(f"Invalid image {name}: it is a virtual machine's disk (qcow2), and flexd runs containers only")
    raise BadImage(f"Invalid image {name}: neither a tar archive (plain or compressed) nor a squashfs")


def _is_tar_header(head: bytes) -> bool:
    """A tar header has a checksum (POSIX pax, "ustar Interchange Format"), so old ones without magic are told too."""
    if len(head) < 512:
        return False
    try:
        expected = int(head[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return expected == sum(head[:148]) + 8 * 32 + sum(head[156:512])


class SquashfsHead(Struct, frozen=True):
    """What the superblock promises (Documentation/filesystems/squashfs.rst)."""

    inodes: int
    compression: str
    bytes_used: int


_SQUASHFS_COMPRESSIONS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}


def read_squashfs_head(head: bytes, size_bytes: int, name: str) -> SquashfsHead:
    if len(head) < 96:
        raise BadImage(f"Invalid image {name}: a squashfs of {len(head)} bytes is truncated")
    magic, inodes, compression, major, minor = struct.unpack("<4sI12xH6xHH", head[:32])
    (bytes_used,) = struct.unpack("<Q", head[40:48])
    if magic != b"hsqs" or (major, minor) != (4, 0):
        raise BadImage(f"Invalid image {name}: squashfs version {major}.{minor}, only 4.0 can be read")
    if bytes_used > size_bytes:
        raise BadImage(f"Invalid image {name}: truncated, has {size_bytes} of {bytes_used} bytes")
    return SquashfsHead(inodes, _SQUASHFS_COMPRESSIONS.get(compression, "unknown"), bytes_used)


# --- metadata.yaml -----------------------------------------------------------------------------------------------


def architecture_fault(architecture: str, supported: list[str]) -> str | None:
    """Why an image cannot run on a host that supports these architectures; checked when it is used, not when it is
    imported, for an image may be kept for another member."""
    if architecture in supported:
        return None
    return f'Requested architecture "{architecture}" isn\'t supported by this host ({", ".join(supported)})'


def parse_metadata(text: bytes, name: str) -> ImageMetadata:
    """The contents of a metadata.yaml, checked: every scalar is text, as LXD reads it (`serial: 20240101_0524` is not
    a number), anchors are refused since nested ones are a bomb."""
    where = f"metadata.yaml of image {name}"
    if len(text) > METADATA_BYTES:
        raise BadImage(f"Invalid {where}: more than {METADATA_BYTES} bytes")
    try:
        _check_yaml(text, where)
        raw = yaml.load(text, Loader=yaml.CBaseLoader)  # builds only str, list and dict
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadImage(f"Invalid {where}: {_one_line(error)}") from error
    if not isinstance(raw, dict):
        raise BadImage(f"Invalid {where}: it must be a mapping with `architecture` and `creation_date`")
    try:
        metadata = msgspec.convert(_without_nulls(raw), ImageMetadata, strict=False)
    except msgspec.ValidationError as error:
        raise BadImage(f"Invalid {where}: {error}") from error
    return _checked(metadata, where)


def _check_yaml(text: bytes, where: str) -> None:
    depth = 0
    for nodes, event in enumerate(yaml.parse(text, Loader=yaml.CBaseLoader)):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1 if event.start_mark is not None else 0
            raise BadImage(f"Invalid {where}: line {line}: anchors and aliases are not accepted")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _METADATA_DEPTH or nodes > _METADATA_NODES:
            raise BadImage(f"Invalid {where}: nested too deeply or too long")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _without_nulls(value: Any) -> Any:
    """Leave out keys without a value (`expiry_date:`), as YAML's null means."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item not in ("", "~", "null")}
    return value


def _checked(metadata: ImageMetadata, where: str) -> ImageMetadata:
    if not metadata.architecture:
        raise BadImage(f"Invalid {where}: architecture is missing")
    canonical = canonical_architecture(metadata.architecture)
    if canonical is None:
        raise BadImage(f'Invalid {where}: architecture "{metadata.architecture}" is unknown')
    if metadata.creation_date <= 0:
        raise BadImage(f"Invalid {where}: creation_date is missing")
    for path, template in metadata.templates.items():
        if not path.startswith("/") or ".." in path.split("/"):
            raise BadImage(f'Invalid {where}: template "{path}": must be an absolute path in the root file system')
        if "/" in template.template or template.template in ("", ".", ".."):
            raise BadImage(f'Invalid {where}: template "{path}": "{template.template}" is not a file name')
    metadata.architecture = canonical
    return metadata


def unix_time(seconds: int) -> datetime:
    """A time from metadata.yaml; 0 and what no calendar holds mean "never"."""
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds > 0 else ZERO_TIME
    except (OverflowError, ValueError, OSError):
        return ZERO_TIME
