# SPDX-License-Identifier: Apache-2.0
"""Trees of files as a stream of bytes: what `tree_send.py` writes and `tree_receive.py` applies, without paths.

A stream walks the tree depth first, names in byte order: directories are entered and left, and every other record names
something in the directory that is open. So there is no path in it that could lead out of the receiver's tree.
"""

import os
import stat
import struct
from collections.abc import Callable
from typing import IO, NamedTuple

MAGIC = b"FLXTREE1"
LISTING = b"FLXLIST1"
"""What a listing begins with: the same walk, sizes in the place of contents, for the other side to compare with."""
ENTER, LEAVE, FILE, ATTRIBUTES, SYMLINK, NODE, LINK, REMOVE, END = (c.encode() for c in "DUFALNHRE")

# The longest name of every Linux file system, path of a system call, and value of an extended attribute (limits.h).
_NAME_BYTES, PATH_BYTES, _VALUE_BYTES = 255, 4096, 65536
_ATTRIBUTES = 256
_META = struct.Struct("<IIIqH")  # mode, uid, gid, mtime in ns, number of extended attributes
MTIME = slice(12, 20)
"""Where the time stands in an encoded `Meta`."""
U16, U32, I64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<q")
STATE = struct.Struct("<qqQ")  # of a file in a listing: size, ctime in ns, inode
_BUFFER_BYTES = 1 << 18
# Names that travel. The overlay's own (trusted.overlay.*) describe layers, security modules' labels one host.
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_OVERLAY = "trusted.overlay."


class BadStream(Exception):
    """What arrives is not what a sender of ours makes."""


class Meta(NamedTuple):
    """What every file has, ids as the container sees them."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    attributes: tuple[tuple[str, bytes], ...] = ()

    def encode(self) -> bytes:
        head = _META.pack(self.mode, self.uid, self.gid, self.mtime_ns, len(self.attributes))
        if not self.attributes:
            return head
        pieces = [head]
        for name, value in self.attributes:
            text = name.encode()
            pieces += (U16.pack(len(text)), text, U32.pack(len(value)), value)
        return b"".join(pieces)


def travels(attribute: str) -> bool:
    """Whether an extended attribute is part of a tree, rather than of the host it is on."""
    if attribute.startswith("trusted."):
        return not attribute.startswith(_OVERLAY)
    return attribute.startswith("user.") or attribute == "security.capability" or attribute in _ACLS


class Ids(NamedTuple):
    """How ids, access lists and file capabilities change on the way between disk and stream."""

    user: Callable[[int], int]
    group: Callable[[int], int]
    value: Callable[[str, bytes], bytes]


def read_meta(found: os.stat_result, where: int | str, ids: Ids) -> Meta:
    """`where`: a descriptor, or a path that is not followed (`/proc/self/fd/N/NAME`)."""
    attributes: tuple[tuple[str, bytes], ...] = ()
    names = os.listxattr(where, follow_symlinks=False) if isinstance(where, str) else os.listxattr(where)
    if names:
        attributes = tuple((name, ids.value(name, _value(where, name))) for name in sorted(names) if travels(name))
    return Meta(found.st_mode, ids.user(found.st_uid), ids.group(found.st_gid), found.st_mtime_ns, attributes)


def _value(where: int | str, name: str) -> bytes:
    return os.getxattr(where, name, follow_symlinks=False) if isinstance(where, str) else os.getxattr(where, name)


class Writer:
    """Records, gathered into pieces of some size."""

    def __init__(self, fd: int, magic: bytes) -> None:
        self.fd = fd
        self._buffer = bytearray(magic)

    def record(self, op: bytes, name: bytes, *parts: bytes) -> None:
        buffer = self._buffer
        buffer += op
        buffer += U16.pack(len(name))
        buffer += name
        for part in parts:
            buffer += part
        if len(buffer) > _BUFFER_BYTES:
            self.flush()

    def raw(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        view = memoryview(self._buffer)
        while view:
            view = view[os.write(self.fd, view) :]
        self._buffer = bytearray()

    def end(self) -> None:
        self.record(END, b"")
        self.flush()


class Reader:
    """Records as they arrive, every length checked before it is believed."""

    def __init__(self, stream: IO[bytes], magic: bytes) -> None:
        self._stream = stream
        if self.exactly(len(magic)) != magic:
            raise BadStream("it does not begin as a tree does")

    def exactly(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) != count:
            raise BadStream("it ended too early")
        return data

    def head(self) -> tuple[bytes, bytes]:
        """The next record's kind and name."""
        op = self.exactly(1)
        (length,) = U16.unpack(self.exactly(2))
        if length > _NAME_BYTES:
            raise BadStream(f"a name of {length} bytes")
        return op, self.exactly(length) if length else b""

    def meta(self) -> Meta:
        mode, uid, gid, mtime_ns, count = _META.unpack(self.exactly(_META.size))
        if count > _ATTRIBUTES:
            raise BadStream(f"{count} extended attributes of one file")
        return Meta(mode, uid, gid, mtime_ns, tuple(self._attribute() for _ in range(count)) if count else ())

    def _attribute(self) -> tuple[str, bytes]:
        name = self.exactly(self.number(U16, _NAME_BYTES)).decode()
        value = self.exactly(self.number(U32, _VALUE_BYTES))
        if not travels(name):
            raise BadStream(f'the extended attribute "{name}"')
        return name, value

    def number(self, kind: struct.Struct, limit: int) -> int:
        number: int = kind.unpack(self.exactly(kind.size))[0]
        if not 0 <= number <= limit:
            raise BadStream(f"a length of {number}")
        return number

    def path(self) -> bytes:
        """A symbolic link's target, or the way from the root to a file's first name."""
        return self.exactly(self.number(U16, PATH_BYTES))


def check_name(name: bytes) -> str:
    """One component, as the kernel takes it."""
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise BadStream(f"the name {name!r}")
    return os.fsdecode(name)


class Listed(NamedTuple):
    """A record of a listing. `meta` as encoded, for comparing; `state` (size, ctime, inode) of files only; `target` of
    links of both kinds; `device` of nodes."""

    op: bytes
    name: bytes
    meta: bytes = b""
    state: tuple[int, int, int] = (0, 0, 0)
    target: bytes = b""
    device: int = 0

    @property
    def is_directory(self) -> bool:
        return self.op == ENTER


class Listing:
    """What the other side has, or what was sent last time, read beside a walk that is in the same order."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._reader = Reader(stream, LISTING)
        self._next: Listed | None = None

    def peek(self) -> Listed:
        if self._next is None:
            self._next = self._read()
        return self._next

    def take(self) -> Listed:
        found, self._next = self.peek(), None
        return found

    def skip(self) -> None:
        """Past the next record, and past what it holds if it is a directory."""
        depth = 0
        while True:
            op = self.take().op
            depth += (op == ENTER) - (op == LEAVE)
            if depth <= 0:
                return

    def _read(self) -> Listed:
        reader = self._reader
        op, name = reader.head()
        if op in (LEAVE, END):
            return Listed(op, name)
        if op == LINK:
            return Listed(op, name, target=reader.path())
        meta = reader.meta().encode()
        if op == ENTER:
            return Listed(op, name, meta)
        if op == FILE:
            return Listed(op, name, meta, STATE.unpack(reader.exactly(STATE.size)))
        if op == SYMLINK:
            return Listed(op, name, meta, target=reader.path())
        if op == NODE:
            return Listed(op, name, meta, device=reader.number(I64, 1 << 62))
        raise BadStream(f"a record of the kind {op!r}")


def kind_of(mode: int) -> bytes:
    if stat.S_ISREG(mode):
        return FILE
    return SYMLINK if stat.S_ISLNK(mode) else NODE
