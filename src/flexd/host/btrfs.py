# SPDX-License-Identifier: Apache-2.0
"""Subvolumes, snapshots and quota groups of btrfs by its own ioctls (linux/btrfs.h, linux/btrfs_tree.h).

A container can make subvolumes below its own root, and rename what leads to them meanwhile: they are opened without
following links and without leaving the tree.
"""

import errno
import fcntl
import os
import shutil
import struct
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexd.host import syscalls
from flexd.host.contract import BtrfsUsage, CommandFailed, HostError, Processes
from flexd.host.threads import Threads

# _IO*(0x94, number, size); the argument structures of 4096 bytes are padded to a page.
_SNAP_DESTROY = 0x5000940F
_TREE_SEARCH = 0xD0009411
_INO_LOOKUP = 0xD0009412
_SNAP_CREATE_V2 = 0x50009417
_SUBVOL_CREATE_V2 = 0x50009418
_SUBVOL_GETFLAGS = 0x80089419
_SUBVOL_SETFLAGS = 0x4008941A
_QUOTA_CTL = 0xC0109428
_QGROUP_CREATE = 0x4010942A
_QGROUP_LIMIT = 0x8030942B
_QUOTA_RESCAN_WAIT = 0x942E
_GET_SUBVOL_INFO = 0x81F8943C
_SYNC = 0x9408
_PAGE = 4096

_QUOTA_CTL_ENABLE = 1
_SUBVOL_RDONLY = 1 << 1
_QGROUP_LIMIT_MAX_RFER = 1 << 0
_NO_LIMIT = (1 << 64) - 1

_FILESYSTEMS = Path("/proc/filesystems")
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Trees and items that are searched.
_ROOT_TREE, _QUOTA_TREE = 1, 8
_ROOT_REF_KEY, _QGROUP_INFO_KEY = 156, 242
# The inode number of every subvolume's top directory.
_TOP_INODE = 256

_VOL_ARGS = struct.Struct("=q4088s")
# fd, transid, flags, 4 unused words, name
_VOL_ARGS_V2 = struct.Struct("=qQQ32x4040s")
# tree, objectids, offsets, transids, types, how many items, then padding to 104 bytes
_SEARCH_KEY = struct.Struct("=QQQQQQQIII4x32x")
_SEARCH_HEADER = struct.Struct("=QQQII")
_ROOT_REF = struct.Struct("=QQH")
_QGROUP_INFO = struct.Struct("=QQQQQ")
# struct btrfs_ioctl_get_subvol_info_args: numbers and a name, then three UUIDs of 16 bytes, then times
_SUBVOL_INFO_BYTES, _SUBVOL_UUID_AT = 504, 296
_LIMIT_ARGS = struct.Struct("=QQQQQQ")
_RESOLVE = 0x08 | 0x04 | 0x01  # linux/openat2.h: RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV


class LinuxBtrfs:
    def __init__(self, threads: Threads, processes: Processes) -> None:
        self._threads = threads
        self._processes = processes

    async def available(self) -> str | None:
        if not await self._threads.run(_known):
            # The first mount(8) of it would do that, too.
            await self._processes.run(["modprobe", "--quiet", "btrfs"], check=False)
            if not await self._threads.run(_known):
                return "this kernel has no btrfs (CONFIG_BTRFS_FS)"
        if await self._threads.run(shutil.which, "mkfs.btrfs", path=_SEARCH_PATH) is None:
            return "mkfs.btrfs is not installed (package btrfs-progs)"
        return None

    async def format(self, path: Path, *, label: str, force: bool = False) -> None:
        options = ["--force"] if force else []
        await self._processes.run(["mkfs.btrfs", "--quiet", *options, "--label", label, "--", str(path)])

    async def is_subvolume(self, path: Path) -> bool:
        return await self._threads.run(_is_subvolume, path)

    async def create_subvolume(self, path: Path) -> None:
        await self._threads.run(_create, path)

    async def snapshot(self, source: Path, target: Path, *, readonly: bool = False) -> None:
        await self._threads.run(_snapshot, source, target, readonly)

    async def set_readonly(self, path: Path, readonly: bool) -> None:
        await self._threads.run(_set_tree_readonly, path, readonly)

    async def subvolumes(self, path: Path) -> list[str]:
        return await self._threads.run(_subvolumes, path)

    async def uuid(self, path: Path) -> str:
        return await self._threads.run(_uuid, path)

    async def graft(self, source: Path, tree: Path, path: str) -> None:
        await self._threads.run(_graft, source, tree, path)

    async def send(self, path: Path, *, parent: Path | None = None, output: int) -> None:
        options = [] if parent is None else ["-p", str(parent)]
        await self._stream(["btrfs", "--quiet", "send", *options, "--", str(path)], output=output)

    async def receive(self, directory: Path, *, input: int) -> Path:
        before = set(await self._threads.run(os.listdir, directory))
        try:
            await self._stream(["btrfs", "--quiet", "receive", "-e", "--chroot", "--", str(directory)], input=input)
            arrived = set(await self._threads.run(os.listdir, directory)) - before
            if len(arrived) != 1:
                raise CommandFailed(["btrfs", "receive"], 0, f"{len(arrived)} subvolumes in a stream, not one")
        except BaseException:
            for name in set(await self._threads.run(os.listdir, directory)) - before:
                await self._threads.run(_delete_at_or_below, directory / name)
            raise
        return directory / arrived.pop()

    async def _stream(self, argv: list[str], *, input: int | None = None, output: int | None = None) -> None:
        with await self._threads.run(tempfile.TemporaryFile) as messages:
            child = await self._processes.spawn(argv, stdin=input, stdout=output, stderr=messages.fileno())
            try:
                status = await child.wait()
            except BaseException:
                child.kill()
                await child.wait()
                raise
            if status != 0:
                said = await self._threads.run(os.pread, messages.fileno(), _PAGE, 0)
                raise CommandFailed(argv, status, said.decode(errors="replace").strip())

    async def delete_subvolumes(self, path: Path) -> None:
        await self._threads.run(_delete_at_or_below, path)

    async def enable_quotas(self, path: Path) -> None:
        await self._threads.run(_enable_quotas, path)

    async def set_limit(self, path: Path, limit_bytes: int) -> None:
        await self._threads.run(_set_limit, path, limit_bytes)

    async def usage(self, path: Path) -> BtrfsUsage | None:
        return await self._threads.run(_usage, path)

    async def sync(self, path: Path) -> None:
        await self._threads.run(_sync, path)


def _known() -> bool:
    return "\tbtrfs\n" in _FILESYSTEMS.read_text()


@contextmanager
def _opened(path: Path | str, *, below: int | None = None) -> Iterator[int]:
    """A directory; with `below` one of a tree that others write to."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if below is not None:
        # A nested subvolume is another device to the kernel's eye, but not another mount.
        fd = syscalls.openat2(below, path, flags | os.O_NOFOLLOW, resolve=_RESOLVE)
    else:
        with syscalls.naming(f"open {path}", "open"):
            fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


# --- what is there -----------------------------------------------------------------------------------------------


def _is_subvolume(path: Path) -> bool:
    try:
        if path.lstat().st_ino != _TOP_INODE:
            return False
        with _opened(path) as fd:
            fcntl.ioctl(fd, _SUBVOL_GETFLAGS, bytearray(8))
    except (OSError, HostError):
        return False
    return True


def _lookup(fd: int, what: str, tree: int, inode: int) -> tuple[int, str]:
    """(the tree, the directory's path in it with a slash at the end); tree 0: the one that fd is in."""
    raw = bytearray(_PAGE)
    struct.pack_into("=QQ", raw, 0, tree, inode)
    syscalls.ioctl(fd, what, _INO_LOOKUP, raw)
    return struct.unpack_from("=Q", raw)[0], os.fsdecode(bytes(raw[16:]).split(b"\0", 1)[0])


def _tree_of(fd: int, what: str) -> int:
    return _lookup(fd, what, 0, _TOP_INODE)[0]


def _search(
    fd: int, what: str, tree: int, objectid: int, kind: int, offsets: tuple[int, int]
) -> Iterator[tuple[int, bytes]]:
    """(offset, item) of every item with a key in the range."""
    start, end = offsets
    while start <= end:
        raw = bytearray(_PAGE)
        _SEARCH_KEY.pack_into(raw, 0, tree, objectid, objectid, start, end, 0, _NO_LIMIT, kind, kind, 1 << 12)
        syscalls.ioctl(fd, what, _TREE_SEARCH, raw)
        (count,) = struct.unpack_from("=I", raw, 64)
        position = _SEARCH_KEY.size
        for _ in range(count):
            _, _, offset, _, length = _SEARCH_HEADER.unpack_from(raw, position)
            position += _SEARCH_HEADER.size
            yield offset, bytes(raw[position : position + length])
            position += length
            start = offset + 1
        if not count:
            return


def _children(fd: int, path: Path | str) -> list[str]:
    """The subvolumes right below the one that fd is in, as paths in it."""
    what = f"list the subvolumes of {path}"
    tree, found = _tree_of(fd, what), []
    for _, item in _search(fd, what, _ROOT_TREE, tree, _ROOT_REF_KEY, (0, _NO_LIMIT)):
        inode, _, length = _ROOT_REF.unpack_from(item)
        name = os.fsdecode(item[_ROOT_REF.size : _ROOT_REF.size + length])
        try:
            found.append(_lookup(fd, what, tree, inode)[1] + name)
        except HostError as error:
            if error.errno != errno.ENOENT:  # gone meanwhile
                raise
    return found


def _subvolumes(path: Path) -> list[str]:
    with _opened(path) as fd:
        return _subvolumes_below(fd, str(path))


def _subvolumes_below(fd: int, path: str) -> list[str]:
    found = []
    for child in sorted(_children(fd, path)):
        with _opened(child, below=fd) as below:
            found += [child, *(f"{child}/{deeper}" for deeper in _subvolumes_below(below, child))]
    return found


def _uuid(path: Path) -> str:
    with _opened(path) as fd:
        raw = bytearray(_SUBVOL_INFO_BYTES)
        syscalls.ioctl(fd, f"read the UUID of {path}", _GET_SUBVOL_INFO, raw)
    return str(uuid.UUID(bytes=bytes(raw[_SUBVOL_UUID_AT : _SUBVOL_UUID_AT + 16])))


# --- making ------------------------------------------------------------------------------------------------------


def _create(path: Path) -> None:
    if _is_subvolume(path):
        return
    with _opened(path.parent) as parent:
        name = os.fsencode(path.name)
        packed = bytearray(_VOL_ARGS_V2.pack(0, 0, 0, name))
        syscalls.ioctl(parent, f"create the subvolume {path}", _SUBVOL_CREATE_V2, packed)


def _snapshot(source: Path, target: Path, readonly: bool) -> None:
    with _opened(source) as fd, _opened(target.parent) as parent:
        nested = _snapshot_into(fd, str(source), parent, target.name, readonly)
    if nested and readonly:
        _set_tree_readonly(target, True)


def _snapshot_into(source: int, path: str, parent: int, name: str, readonly: bool) -> bool:
    """With the subvolumes below, of which the kernel leaves an empty directory; whether there were any."""
    children = _children(source, path)
    flags = _SUBVOL_RDONLY if readonly and not children else 0
    packed = bytearray(_VOL_ARGS_V2.pack(source, 0, flags, os.fsencode(name)))
    syscalls.ioctl(parent, f"snapshot {path} as {name}", _SNAP_CREATE_V2, packed)
    if not children:
        return False
    with _opened(name, below=parent) as made:
        for child in children:
            _snapshot_child(source, made, child)
    return True


def _snapshot_child(source: int, made: int, child: str) -> None:
    folder, name = os.path.split(child)
    try:
        with _opened(child, below=source) as fd, _opened(folder or ".", below=made) as parent:
            with syscalls.naming(f"replace {child}", "rmdir"):
                os.rmdir(name, dir_fd=parent)
            _snapshot_into(fd, child, parent, name, False)
    except HostError as error:
        # Moved or deleted since it was listed: then it was not there at the moment of the snapshot, or nearly so.
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise


def _graft(source: Path, tree: Path, path: str) -> None:
    folder, name = os.path.split(path.strip("/"))
    with _opened(tree) as top, _opened(folder or ".", below=top) as parent, _opened(source) as fd:
        try:
            os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise syscalls.failure(f"replace {path} in {tree}", "rmdir", error.errno or 0) from error
        _snapshot_into(fd, str(source), parent, name, False)


def _set_tree_readonly(path: Path, readonly: bool) -> None:
    with _opened(path) as fd:
        _set_readonly_below(fd, str(path), readonly)


def _set_readonly_below(fd: int, path: str, readonly: bool) -> None:
    for child in _children(fd, path):
        with _opened(child, below=fd) as below:
            _set_readonly_below(below, child, readonly)
    raw = bytearray(struct.pack("=Q", _SUBVOL_RDONLY if readonly else 0))
    syscalls.ioctl(fd, f"make {path} {'read-only' if readonly else 'writable'}", _SUBVOL_SETFLAGS, raw)


# --- removing ----------------------------------------------------------------------------------------------------


def _delete_at_or_below(path: Path) -> None:
    """`path`: a subvolume, or a directory that may hold some."""
    if not path.exists():
        return
    if _is_subvolume(path):
        with _opened(path.parent) as parent:
            _delete(parent, path.name)
        return
    with _opened(path) as fd:
        inode = os.fstat(fd).st_ino
        what = f"find the place of {path}"
        prefix = _lookup(fd, what, _tree_of(fd, what), inode)[1]
        for child in _children(fd, path):
            if child.startswith(prefix):
                place = path / child[len(prefix) :]
                with _opened(place.parent) as parent:
                    _delete(parent, place.name)


def _delete(parent: int, name: str) -> None:
    """One subvolume and all below it, the deepest first."""
    with _opened(name, below=parent) as fd:
        children = _children(fd, name)
        if children:
            # A read-only subvolume keeps what is in it.
            _set_readonly_below(fd, name, False)
        for child in children:
            folder, last = os.path.split(child)
            with _opened(folder or ".", below=fd) as below:
                _delete(below, last)
        _forget_group(fd, name)
    packed = bytearray(_VOL_ARGS.pack(0, os.fsencode(name)))
    syscalls.ioctl(parent, f"delete the subvolume {name}", _SNAP_DESTROY, packed)


def _forget_group(fd: int, name: str) -> None:
    """The quota group of a subvolume about to go. Newer kernels do that themselves, and refuse it here."""
    group = _tree_of(fd, f"find the quota group of {name}")
    with suppress(OSError):
        fcntl.ioctl(fd, _QGROUP_CREATE, bytearray(struct.pack("=QQ", 0, group)))


# --- quotas ------------------------------------------------------------------------------------------------------


def _enable_quotas(path: Path) -> None:
    what = f"switch on the quotas of {path}"
    with _opened(path) as fd:
        syscalls.ioctl(fd, what, _QUOTA_CTL, bytearray(struct.pack("=QQ", _QUOTA_CTL_ENABLE, 0)))
        # What was there before has to be counted before a limit of it means anything.
        with syscalls.naming(what, "ioctl"):
            fcntl.ioctl(fd, _QUOTA_RESCAN_WAIT)


def _set_limit(path: Path, limit_bytes: int) -> None:
    what = f"limit {path} to {limit_bytes} bytes"
    with _opened(path) as fd:
        group = _tree_of(fd, what)
        packed = _LIMIT_ARGS.pack(group, _QGROUP_LIMIT_MAX_RFER, limit_bytes or _NO_LIMIT, 0, 0, 0)
        syscalls.ioctl(fd, what, _QGROUP_LIMIT, bytearray(packed))


def _usage(path: Path) -> BtrfsUsage | None:
    what = f"read the usage of {path}"
    with _opened(path) as fd:
        group = _tree_of(fd, what)
        try:
            items = list(_search(fd, what, _QUOTA_TREE, 0, _QGROUP_INFO_KEY, (group, group)))
        except HostError as error:
            if error.errno == errno.ENOENT:  # no quota tree: they are off
                return None
            raise
    if not items:
        return None
    _, referenced, _, exclusive, _ = _QGROUP_INFO.unpack_from(items[0][1])
    return BtrfsUsage(referenced_bytes=referenced, exclusive_bytes=exclusive)


def _sync(path: Path) -> None:
    with _opened(path) as fd, syscalls.naming(f"sync {path}", "ioctl"):
        fcntl.ioctl(fd, _SYNC)
