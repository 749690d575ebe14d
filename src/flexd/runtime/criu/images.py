# SPDX-License-Identifier: Apache-2.0
"""Image files of CRIU that we write or change ourselves. Blocking.

A file is two magic numbers and messages, each after its length (crtools' images/*.proto)."""

import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, field

from flexd.runtime.criu.fields import Field, Malformed, decode, encode, text_of

# What we must know of a dump and CRIU's own images do not say.
NOTES = "flexd.json"
# Restored processes read their images themselves, through a descriptor of this directory, with the container's ids. So
# it lets everybody pass who has one, inside a directory that lets nobody else: memory is in there.
FILES = "criu"
_LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<II")
_SERVICE_MAGIC, _IRMAP_MAGIC = 0x55105940, 0x57004059
_SUBTREE = "cgroup.subtree_control"


class Notes(Struct, frozen=True):
    """`console` is the terminal that /dev/console was, as CRIU names it; `mounts` the keys of what came from outside;
    `delegated` the controllers that v2 cgroups hand down, outermost first."""

    console: str = ""
    mounts: tuple[str, ...] = ()
    delegated: tuple[tuple[str, tuple[str, ...]], ...] = ()
    criu_version: str = ""
    cgroup_mode: str = ""
    nics: tuple[str, ...] = field(default_factory=tuple)


def make_directory(images: Path) -> Path:
    """Anew and empty; where CRIU's files go."""
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(mode=0o700, parents=True)
    return open_directory(images)


def open_directory(images: Path) -> Path:
    """Where CRIU's files are, passable."""
    files = images / FILES
    files.mkdir(exist_ok=True)
    files.chmod(0o711)
    return files


def write_notes(images: Path, notes: Notes) -> None:
    (images / NOTES).write_bytes(msgspec.json.encode(notes))


def read_notes(images: Path) -> Notes:
    """Those of images from elsewhere are checked as they are used: nothing in them is believed."""
    return msgspec.json.decode((images / NOTES).read_bytes(), type=Notes)


def write_watch_cache(directory: Path, device: int, paths: Mapping[int, str]) -> None:
    """`irmap-cache`: where CRIU looks up the paths of watched inodes before it searches by itself."""
    messages = [encode([(1, device), (2, inode), (3, path.encode())]) for inode, path in paths.items()]
    body = b"".join(_LENGTH.pack(len(message)) + message for message in messages)
    (directory / "irmap-cache").write_bytes(_HEAD.pack(_SERVICE_MAGIC, _IRMAP_MAGIC) + body)


def keep_delegation(images: Path, notes: Notes) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What `take_delegation` finds the first time, noted for the others."""
    found = take_delegation(images / FILES)
    if found:
        write_notes(images, msgspec.structs.replace(notes, delegated=found))
    return found or notes.delegated


def take_delegation(files: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Take out of the images which controllers the v2 cgroups hand down, and return it, outermost first: CRIU would
    write it too late, after inotify watches on files that only then exist, and with a line break that is EINVAL."""
    path = files / "cgroup.img"
    data = path.read_bytes()
    head, messages = data[: _HEAD.size], list(_messages(data))
    found: list[tuple[str, tuple[str, ...]]] = []
    entry = [_strip_controller(each, found) for each in decode(messages[0])]
    body = encode(entry)
    path.write_bytes(head + _LENGTH.pack(len(body)) + body)
    return tuple(found)


def _messages(data: bytes) -> list[bytes]:
    found, position = [], _HEAD.size
    while position < len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if position + length > len(data):
            raise Malformed("an image ends in the middle of a message")
        found.append(data[position : position + length])
        position += length
    return found


def _strip_controller(each: Field, found: list[tuple[str, tuple[str, ...]]]) -> Field:
    number, value = each
    if number != 2 or not isinstance(value, bytes):
        return each
    controller = decode(value)
    if any(name for field_number, name in controller if field_number == 1):
        return each  # a v1 hierarchy; v2's has the empty name
    return 2, _each_group(controller, lambda group: _strip_group(group, "", found, top=True))


def _strip_group(data: bytes, path: str, found: list[tuple[str, tuple[str, ...]]], *, top: bool = False) -> bytes:
    """One cg directory: properties first, so that the outer ones come first in `found`."""
    group = decode(data)
    if not top:
        path = f"{path}/{text_of(group, 1).strip('/')}".strip("/")
    kept: list[Field] = []
    for number, value in group:
        if number == 3 and isinstance(value, bytes) and text_of(decode(value), 1) == _SUBTREE:
            names = tuple(text_of(decode(value), 2).split())
            found += [(path, names)] if names else []
        else:
            kept.append((number, value))
    return _each_group(kept, lambda group: _strip_group(group, path, found))


def _each_group(fields: list[Field], change: Callable[[bytes], bytes]) -> bytes:
    """In both messages field 2 holds the cgroups inside."""
    return encode([(n, change(v)) if n == 2 and isinstance(v, bytes) else (n, v) for n, v in fields])


def errors_of(log: Path) -> list[str]:
    """What a log of CRIU says went wrong, without its time stamps and places in its source."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return []
    errors = [line.partition("Error (")[2] for line in text.splitlines() if "Error (" in line]
    lines = [error.partition("): ")[2].strip() for error in errors]
    return [line for line in lines if line and "RLIMIT_NOFILE" not in line]


def keep_log(images: Path, name: str, logs: Path) -> None:
    """Where the container's other logs are: the images may be gone when somebody asks."""
    log = images / FILES / name
    if log.exists() and logs.is_dir():
        shutil.copyfile(log, logs / name)
        (logs / name).chmod(0o600)
