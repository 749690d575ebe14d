# SPDX-License-Identifier: Apache-2.0
"""A program: change the owners in a tree from one id map to another. `python -I -S shift_tree.py PATH < maps`.

Lines on stdin: `old|new u|g INSIDE OUTSIDE COUNT`; no line for a side means that its ids are the host's own. Repeated
after a crash it does no harm where the two ranges do not overlap: ids outside of `old` are left as they are.
"""

import os
import stat
import struct
import sys
from collections.abc import Callable, Iterable

Ranges = list[tuple[int, int, int]]  # inside, outside, count

# linux/posix_acl_xattr.h: a u32 version, then (u16 tag, u16 permissions, u32 id) each
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_ACL_VERSION = 2
_ACL_USER = 0x02
_ACL_GROUP = 0x08
# linux/capability.h: struct vfs_cap_data (revision 2) and struct vfs_ns_cap_data (revision 3, with the root's id)
_CAPABILITY = "security.capability"
_CAP_REVISION_MASK = 0xFF000000
_CAP_REVISION_2 = 0x02000000
_CAP_REVISION_3 = 0x03000000
_CAP_V2_BYTES = 20
_CAP_V3_BYTES = 24


class Shift:
    """Host id under the old map -> host id under the new one."""

    def __init__(self, old: Ranges, new: Ranges) -> None:
        self._old = old
        self._new = new
        self._known: dict[int, int] = {}

    def __call__(self, number: int) -> int:
        """The id itself where one of the maps has no place for it."""
        if number not in self._known:
            self._known[number] = self._shifted(number)
        return self._known[number]

    def _shifted(self, number: int) -> int:
        inside = _translate(((outside, inside, count) for inside, outside, count in self._old), number, not self._old)
        moved = None if inside is None else _translate(self._new, inside, not self._new)
        return number if moved is None else moved


def _translate(ranges: Iterable[tuple[int, int, int]], number: int, identity: bool) -> int | None:
    if identity:
        return number
    for start, destination, count in ranges:
        if start <= number < start + count:
            return destination + number - start
    return None


def shift_acl(value: bytes, user: Callable[[int], int], group: Callable[[int], int]) -> bytes:
    if len(value) < 4 or struct.unpack_from("<I", value)[0] != _ACL_VERSION:
        return value
    entries = []
    for tag, permissions, number in struct.iter_unpack("<HHI", value[4:]):
        shift = {_ACL_USER: user, _ACL_GROUP: group}.get(tag)
        entries.append(struct.pack("<HHI", tag, permissions, shift(number) if shift else number))
    return value[:4] + b"".join(entries)


def shift_capability(value: bytes, user: Callable[[int], int]) -> bytes:
    """File capabilities count only below the user namespace whose root they name (capabilities(7))."""
    if len(value) not in (_CAP_V2_BYTES, _CAP_V3_BYTES):
        return value
    magic = struct.unpack_from("<I", value)[0]
    flags, body = magic & ~_CAP_REVISION_MASK, value[4:_CAP_V2_BYTES]
    root = user(struct.unpack_from("<I", value, _CAP_V2_BYTES)[0] if len(value) == _CAP_V3_BYTES else 0)
    if root == 0:
        return struct.pack("<I", _CAP_REVISION_2 | flags) + body
    return struct.pack("<I", _CAP_REVISION_3 | flags) + body + struct.pack("<I", root)


def read_maps(lines: Iterable[str]) -> tuple[Shift, Shift]:
    ranges: dict[tuple[str, str], Ranges] = {}
    for line in lines:
        side, kind, *numbers = line.split()
        inside, outside, count = map(int, numbers)
        ranges.setdefault((side, kind), []).append((inside, outside, count))
    user, group = (Shift(ranges.get(("old", kind), []), ranges.get(("new", kind), [])) for kind in "ug")
    return user, group


class Walk:
    """One walk over a tree, by directory fds, so that nothing put in its way leads out of it."""

    def __init__(self, user: Shift, group: Shift) -> None:
        self._user = user
        self._group = group
        self._linked: set[int] = set()  # inodes with several names, done already
        self._device = 0

    def tree(self, path: str) -> None:
        found = os.lstat(path)
        self._device = found.st_dev
        parent = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._entry(parent, os.path.basename(os.path.abspath(path)), found)
        finally:
            os.close(parent)

    def _entry(self, parent: int, name: str, found: os.stat_result) -> None:
        if stat.S_ISDIR(found.st_mode):
            if found.st_dev == self._device:
                self._directory(parent, name)
                self._shift(parent, name, found)
            return
        if found.st_nlink > 1:
            if found.st_ino in self._linked:
                return
            self._linked.add(found.st_ino)
        self._shift(parent, name, found)

    def _directory(self, parent: int, name: str) -> None:
        directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            with os.scandir(directory) as entries:
                names = [entry.name for entry in entries]
            for child in names:
                self._entry(directory, child, os.lstat(child, dir_fd=directory))
        finally:
            os.close(directory)

    def _shift(self, parent: int, name: str, found: os.stat_result) -> None:
        by_fd = f"/proc/self/fd/{parent}/{name}"
        plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
        attributes = _attributes(by_fd) if plain else {}  # read first: chown(2) drops capabilities and set-id bits
        owner, group = self._user(found.st_uid), self._group(found.st_gid)
        if (owner, group) != (found.st_uid, found.st_gid):
            os.chown(name, owner, group, dir_fd=parent, follow_symlinks=False)
            if plain and found.st_mode & (stat.S_ISUID | stat.S_ISGID):
                os.chmod(by_fd, stat.S_IMODE(found.st_mode))
        for key, value in attributes.items():
            if key == _CAPABILITY:
                os.setxattr(by_fd, key, shift_capability(value, self._user), follow_symlinks=False)
            else:
                os.setxattr(by_fd, key, shift_acl(value, self._user, self._group), follow_symlinks=False)


def _attributes(path: str) -> dict[str, bytes]:
    """The extended attributes that hold ids."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:  # a file system without them
        return {}
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names if name in (*_ACLS, _CAPABILITY)}


def main() -> None:
    user, group = read_maps(sys.stdin)
    try:
        Walk(user, group).tree(sys.argv[1])
    except OSError as error:
        sys.exit(f"shift ids of {error.filename or sys.argv[1]}: {error.strerror}")


if __name__ == "__main__":
    main()
