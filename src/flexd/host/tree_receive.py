# SPDX-License-Identifier: Apache-2.0
"""A program: apply a stream of `tree_send.py` to a tree. `receive ROOT FD`: the stream comes from FD, the id map from
stdin as lines `u|g INSIDE OUTSIDE COUNT`.

Nothing in the stream is trusted: it works by descriptors of directories that it opened itself, without following links,
and sees nothing but its tree (chroot).
"""

import contextlib
import os
import resource
import shutil
import stat
import sys
from typing import IO

from flexd.host.tree_format import (
    ATTRIBUTES,
    END,
    ENTER,
    FILE,
    I64,
    LEAVE,
    LINK,
    MAGIC,
    NODE,
    REMOVE,
    SYMLINK,
    BadStream,
    Ids,
    Meta,
    Reader,
    check_name,
    travels,
)
from flexd.host.tree_ids import ids_from

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1 << 18
# No real file is larger (ext4's limit is 16 TiB); a stream that says so is no tree.
_FILE_BYTES = 1 << 50
# Each open directory takes a descriptor.
_DEPTH = 2048


class Receiver:
    def __init__(self, stream: IO[bytes], ids: Ids) -> None:
        self._reader = Reader(stream, MAGIC)
        self._ids = ids
        self._open: list[tuple[int, Meta]] = []
        self._root = -1

    def run(self, root: str) -> None:
        self._root = os.open(root, _DIRECTORY)
        op, name = self._reader.head()
        if op == ENTER and not name:
            self._open.append((os.dup(self._root), self._reader.meta()))
            self._inside()
            op, name = self._reader.head()
        if op != END:
            raise BadStream(f"a record of the kind {op!r} outside of the tree")

    def _inside(self) -> None:
        actions = {
            ENTER: self._enter,
            FILE: self._file,
            ATTRIBUTES: self._attributes,
            SYMLINK: self._symlink,
            NODE: self._node,
            LINK: self._link,
            REMOVE: self._remove,
        }
        while self._open:
            op, name = self._reader.head()
            if op == LEAVE:
                self._leave()
                continue
            action = actions.get(op)
            if action is None:
                raise BadStream(f"a record of the kind {op!r}")
            action(self._open[-1][0], check_name(name))

    def _enter(self, parent: int, name: str) -> None:
        meta = self._reader.meta()
        if not stat.S_ISDIR(meta.mode) or len(self._open) >= _DEPTH:
            raise BadStream(f'the directory "{name}" at depth {len(self._open)} with mode {meta.mode:o}')
        there = _look(parent, name)
        if there is not None and not stat.S_ISDIR(there.st_mode):
            os.unlink(name, dir_fd=parent)
            there = None
        if there is None:
            os.mkdir(name, 0o700, dir_fd=parent)
        self._open.append((os.open(name, _DIRECTORY, dir_fd=parent), meta))

    def _leave(self) -> None:
        fd, meta = self._open.pop()
        try:
            self._dress(fd, meta)
        finally:
            os.close(fd)

    def _file(self, parent: int, name: str) -> None:
        meta = self._reader.meta()
        if not stat.S_ISREG(meta.mode):
            raise BadStream(f'the file "{name}" with mode {meta.mode:o}')
        _clear(parent, name)
        fd = os.open(name, _NEW, 0o600, dir_fd=parent)
        try:
            self._content(fd, name)
            self._dress(fd, meta, fresh=True)
        finally:
            os.close(fd)

    def _content(self, fd: int, name: str) -> None:
        position = 0
        while length := int(I64.unpack(self._reader.exactly(8))[0]):
            position += abs(length)
            if position > _FILE_BYTES:
                raise BadStream(f'the file "{name}" of more than {_FILE_BYTES} bytes')
            if length < 0:
                os.lseek(fd, -length, os.SEEK_CUR)
                continue
            while length:
                data = memoryview(self._reader.exactly(min(length, _COPY_BYTES)))
                length -= len(data)
                while data:
                    data = data[os.write(fd, data) :]
        os.ftruncate(fd, position)

    def _attributes(self, parent: int, name: str) -> None:
        meta = self._reader.meta()
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        try:
            if not stat.S_ISREG(meta.mode) or not stat.S_ISREG(os.fstat(fd).st_mode):
                raise BadStream(f'attributes of "{name}", which is no file')
            self._dress(fd, meta)
        finally:
            os.close(fd)

    def _symlink(self, parent: int, name: str) -> None:
        meta, target = self._reader.meta(), self._reader.path()
        if not stat.S_ISLNK(meta.mode) or not target or b"\0" in target:
            raise BadStream(f'the link "{name}" to {target!r}')
        _clear(parent, name)
        os.symlink(target, os.fsencode(name), dir_fd=parent)
        self._dress_unopened(parent, name, meta)

    def _node(self, parent: int, name: str) -> None:
        """Pipes and sockets. Devices are left out: what a container may use its host makes (`instances`' devices)."""
        meta = self._reader.meta()
        self._reader.number(I64, 1 << 62)
        kind = stat.S_IFMT(meta.mode)
        if kind not in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            raise BadStream(f'the node "{name}" with mode {meta.mode:o}')
        _clear(parent, name)
        if kind in (stat.S_IFIFO, stat.S_IFSOCK):
            os.mknod(name, kind | 0o600, dir_fd=parent)
            self._dress_unopened(parent, name, meta)

    def _link(self, parent: int, name: str) -> None:
        """Another name for a file that is there already."""
        *folders, last = self._reader.path().split(b"/")
        with contextlib.ExitStack() as stack:
            there = self._root
            for folder in folders:
                there = os.open(check_name(folder), _DIRECTORY, dir_fd=there)
                stack.callback(os.close, there)
            first = check_name(last)
            _clear(parent, name)
            os.link(first, name, src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)

    def _remove(self, parent: int, name: str) -> None:
        _clear(parent, name)

    # --- owners, modes, times ---

    def _dress(self, fd: int, meta: Meta, *, fresh: bool = False) -> None:
        """Only what differs is written: on an overlay every write copies the file up. Owner first, for chown(2) takes
        setuid bits and capabilities away."""
        found = os.fstat(fd)
        uid, gid = self._ids.user(meta.uid), self._ids.group(meta.gid)
        mode = stat.S_IMODE(meta.mode)
        owned = (found.st_uid, found.st_gid) == (uid, gid)
        if not owned:
            os.fchown(fd, uid, gid)
        if not owned or stat.S_IMODE(found.st_mode) != mode:
            os.fchmod(fd, mode)
        self._dress_attributes(fd, meta, fresh=fresh)
        if os.fstat(fd).st_mtime_ns != meta.mtime_ns:
            os.utime(fd, ns=(meta.mtime_ns, meta.mtime_ns))

    def _dress_attributes(self, fd: int, meta: Meta, *, fresh: bool) -> None:
        wanted = {name: self._ids.value(name, value) for name, value in meta.attributes}
        names = [] if fresh and not wanted else os.listxattr(fd)
        for name in names:
            if travels(name) and name not in wanted:
                os.removexattr(fd, name)
        for name, value in wanted.items():
            if name not in names or os.getxattr(fd, name) != value:
                os.setxattr(fd, name, value)

    def _dress_unopened(self, parent: int, name: str, meta: Meta) -> None:
        """A link, pipe or socket just made, which cannot be opened."""
        uid, gid = self._ids.user(meta.uid), self._ids.group(meta.gid)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISLNK(meta.mode):
            os.chmod(name, stat.S_IMODE(meta.mode), dir_fd=parent)
        os.utime(name, ns=(meta.mtime_ns, meta.mtime_ns), dir_fd=parent, follow_symlinks=False)


def _look(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _clear(parent: int, name: str) -> None:
    """Make room for something new of this name."""
    there = _look(parent, name)
    if there is None:
        return
    if stat.S_ISDIR(there.st_mode):
        shutil.rmtree(name, dir_fd=parent)  # by descriptors, links are not followed
    else:
        os.unlink(name, dir_fd=parent)


def main() -> None:
    root, number = sys.argv[1:]
    ids = ids_from(sys.stdin, inward=False)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    os.umask(0)
    try:
        os.chroot(root)
        os.chdir("/")
        with open(int(number), "rb", buffering=1 << 20) as stream:
            Receiver(stream, ids).run("/")
            while stream.read(1 << 16):
                raise BadStream("it goes on after its end")
    except (OSError, BadStream, UnicodeDecodeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
