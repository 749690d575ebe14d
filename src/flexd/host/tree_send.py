# SPDX-License-Identifier: Apache-2.0
"""A program: write a tree, or how it differs from what the receiver has, to stdout (`tree_format.py`).

`send ROOT [--known FILE] [--note FILE]`: FILE is a listing of the receiver's tree, or the note of the pass before.
`list ROOT`: a listing; lines on stdin are the id map under which ROOT's owners are (`shift_tree.py`).
"""

import argparse
import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from typing import IO

from flexd.host.tree_format import (
    ATTRIBUTES,
    END,
    ENTER,
    FILE,
    I64,
    LEAVE,
    LINK,
    LISTING,
    MAGIC,
    MTIME,
    REMOVE,
    STATE,
    SYMLINK,
    U16,
    BadStream,
    Ids,
    Listed,
    Listing,
    Writer,
    kind_of,
    read_meta,
)
from flexd.host.tree_ids import ids_from

# Larger files go straight from the page cache into the pipe.
_SMALL_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20
# The kernel's clock for times of files ticks every 1-10 ms: what changed that lately may change again unseen.
_TICK_NS = 50_000_000
_UNSURE = -1
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _Directory:
    """One that the walk is in; told to the receiver when something in it, or itself, differs."""

    def __init__(self, name: bytes, meta: bytes, *, changed: bool) -> None:
        self.name, self.meta, self.changed = name, meta, changed
        self.told = False


class Walk:
    """One pass over a tree. `known`: what the receiver has; `exact`: it is a note of our own, whose times of change
    can be relied on. `content`: send files, rather than list them."""

    def __init__(
        self, out: Writer | None, ids: Ids, *, known: Listing | None = None, exact: bool = False, note: Writer | None
    ) -> None:
        self._out, self._ids, self._known, self._exact, self._note = out, ids, known, exact, note
        self._open: list[_Directory] = []
        self._path: list[bytes] = []
        self._first: dict[tuple[int, int], bytes] = {}  # files with several names: the first one
        self._resent: set[tuple[int, int]] = set()

    def run(self, root: str) -> None:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            known = self._known.take() if self._known is not None else None
            self._directory(fd, b"", known)
        finally:
            os.close(fd)
        if self._known is not None and self._known.take().op != END:
            raise BadStream("a listing goes on after its end")
        for writer in (self._out, self._note):
            if writer is not None:
                writer.end()

    # --- directories ---

    def _directory(self, fd: int, name: bytes, known: Listed | None) -> None:
        meta = read_meta(os.fstat(fd), fd, self._ids).encode()
        here = _Directory(name, meta, changed=known is None or known.meta != meta)
        self._open.append(here)
        if here.changed:
            self._tell()
        self._remember(ENTER, name, meta)
        for entry in sorted(map(os.fsencode, os.listdir(fd))):
            self._gone_before(entry, known is not None)
            found = self._known.peek() if known is not None and self._known is not None else None
            if found is not None and (found.op in (LEAVE, END) or found.name != entry):
                found = None
            self._entry(fd, entry, found)
        self._gone_before(None, known is not None)
        if known is not None and self._known is not None and self._known.take().op != LEAVE:
            raise BadStream("a listing leaves a directory that it did not enter")
        self._open.pop()
        if here.told and self._out is not None:
            self._out.record(LEAVE, b"")
        self._remember(LEAVE, b"")

    def _gone_before(self, name: bytes | None, known: bool) -> None:
        """Remove what the receiver has, up to this name, that is not here."""
        if not known or self._known is None:
            return
        while (there := self._known.peek()).op not in (LEAVE, END) and (name is None or there.name < name):
            self._remove(there.name)
            self._known.skip()

    def _remove(self, name: bytes) -> None:
        self._tell()
        if self._out is not None:
            self._out.record(REMOVE, name)

    def _tell(self) -> None:
        """Enter the directories that lead here."""
        for directory in self._open:
            if not directory.told and self._out is not None:
                self._out.record(ENTER, directory.name, directory.meta)
            directory.told = True

    # --- what is in them ---

    def _entry(self, parent: int, name: bytes, known: Listed | None) -> None:
        try:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                self._enter(parent, name, known)
                return
            self._other(parent, name, found, known)
        except FileNotFoundError:  # it went while we looked: as if it had gone before
            if known is not None and self._known is not None:
                self._remove(name)
                if self._known.peek() is known:
                    self._known.skip()
            return
        if known is not None and self._known is not None:
            self._known.skip()

    def _enter(self, parent: int, name: bytes, known: Listed | None) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if known is not None and self._known is not None:
                if known.is_directory:
                    self._known.take()
                else:
                    self._known.skip()
                    known = None
            self._path.append(name)
            self._directory(fd, name, known)
            self._path.pop()
        finally:
            os.close(fd)

    def _other(self, parent: int, name: bytes, found: os.stat_result, known: Listed | None) -> None:
        key = (found.st_dev, found.st_ino)
        if found.st_nlink > 1:
            first = self._first.get(key)
            if first is not None:
                self._link(name, first, key, known)
                return
            self._first[key] = b"/".join((*self._path, name))
        if stat.S_ISREG(found.st_mode):
            self._file(parent, name, key, known)
            return
        where = f"/proc/self/fd/{parent}/{os.fsdecode(name)}"
        meta = read_meta(found, where, self._ids).encode()
        op = kind_of(found.st_mode)
        if op == SYMLINK:
            target = os.readlink(name, dir_fd=parent)
            detail = U16.pack(len(target)) + target
            same = known is not None and (known.op, known.meta, known.target) == (op, meta, target)
        else:
            detail = I64.pack(found.st_rdev)
            same = known is not None and (known.op, known.meta, known.device) == (op, meta, found.st_rdev)
        self._remember(op, name, meta, detail)
        if not same:
            self._send(op, name, meta, detail)
            self._resent.add(key)

    def _link(self, name: bytes, first: bytes, key: tuple[int, int], known: Listed | None) -> None:
        detail = U16.pack(len(first)) + first
        self._remember(LINK, name, detail)
        same = known is not None and known.op == LINK and known.target == first
        if not same or key in self._resent:
            self._send(LINK, name, detail)

    def _send(self, op: bytes, name: bytes, *parts: bytes) -> None:
        self._tell()
        if self._out is not None:
            self._out.record(op, name, *parts)

    # --- files ---

    def _file(self, parent: int, name: bytes, key: tuple[int, int], known: Listed | None) -> None:
        fd = os.open(name, _OPEN, dir_fd=parent)
        try:
            found = os.fstat(fd)
            decoded = read_meta(found, fd, self._ids)
            meta, state = decoded.encode(), self._state(found)
            self._remember(FILE, name, meta, STATE.pack(*state))
            if known is not None and known.op == FILE and self._same(known, meta, state):
                return
            if known is not None and self._same_content(known, meta, state):
                self._send(ATTRIBUTES, name, meta)
                return
            self._resent.add(key)
            self._send(FILE, name, meta)
            if self._out is not None:
                _send_content(fd, found, self._out)
        finally:
            os.close(fd)

    def _state(self, found: os.stat_result) -> tuple[int, int, int]:
        changed = found.st_ctime_ns if found.st_ctime_ns + _TICK_NS < time.time_ns() else _UNSURE
        return found.st_size, changed, found.st_ino

    def _same(self, known: Listed, meta: bytes, state: tuple[int, int, int]) -> bool:
        if known.meta != meta or known.state[0] != state[0]:
            return False
        return not self._exact or (known.state == state and state[1] != _UNSURE)

    def _same_content(self, known: Listed, meta: bytes, state: tuple[int, int, int]) -> bool:
        """By size and time of writing, as every tool compares trees of two hosts."""
        if self._exact or known.op != FILE:
            return False
        return known.state[0] == state[0] and known.meta[MTIME] == meta[MTIME]

    def _remember(self, op: bytes, name: bytes, *parts: bytes) -> None:
        if self._note is not None:
            self._note.record(op, name, *parts)


def _send_content(fd: int, found: os.stat_result, out: Writer) -> None:
    """Pieces, each after its length; holes are negative lengths; zero ends the file."""
    if found.st_size <= _SMALL_BYTES:
        data = os.read(fd, _SMALL_BYTES) if found.st_size else b""
        if data:
            out.raw(I64.pack(len(data)))
            out.raw(data)
    else:
        for start, end in _extents(fd, found):
            if end < 0:
                out.raw(I64.pack(end))
                continue
            _send_extent(fd, start, end, out)
    out.raw(I64.pack(0))


def _extents(fd: int, found: os.stat_result) -> Iterator[tuple[int, int]]:
    """(start, end) of data, and (start, -length) of holes."""
    size, position = found.st_size, 0
    if found.st_blocks * 512 >= size:
        yield 0, size
        return
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            start = size
        if start > position:
            yield position, position - start
        if start >= size:
            return
        position = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, position


def _send_extent(fd: int, start: int, end: int, out: Writer) -> None:
    """A file that shrinks meanwhile is filled up with zeros: it is sent again in the next pass."""
    while start < end:
        count = min(end - start, _CHUNK_BYTES)
        out.raw(I64.pack(count))
        out.flush()
        left = count
        while left:
            sent = os.sendfile(out.fd, fd, start + count - left, left)
            if not sent:
                out.raw(bytes(left))
                break
            left -= sent
        start += count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("send", "list"))
    parser.add_argument("root")
    parser.add_argument("--known")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--note")
    arguments = parser.parse_args()
    sys.setrecursionlimit(20000)
    ids = ids_from(sys.stdin, inward=True)
    with contextlib.ExitStack() as stack:
        try:
            known = None
            if arguments.known:
                stream: IO[bytes] = stack.enter_context(open(arguments.known, "rb"))
                known = Listing(stream)
            _run(arguments, ids, known, stack)
        except (OSError, BadStream, UnicodeDecodeError) as error:
            sys.exit(str(error))


def _run(arguments: argparse.Namespace, ids: Ids, known: Listing | None, stack: contextlib.ExitStack) -> None:
    if arguments.what == "list":
        Walk(None, ids, note=Writer(1, LISTING)).run(arguments.root)
        return
    note = None
    if arguments.note:
        fd = os.open(arguments.note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, fd)
        note = Writer(fd, LISTING)
    Walk(Writer(1, MAGIC), ids, known=known, exact=arguments.exact, note=note).run(arguments.root)


if __name__ == "__main__":
    main()
