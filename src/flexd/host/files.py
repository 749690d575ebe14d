# SPDX-License-Identifier: Apache-2.0
"""Trees of files: remove, copy, shift, measure; walks are left to programs, apart from the loop and its GIL."""

import errno
import fcntl
import os
import stat
import sys
from pathlib import Path

from flexd.api.idmap import IdMap
from flexd.host import guest_init, mountinfo, shift_tree, syscalls
from flexd.host.contract import FileUsage, HostError, Processes
from flexd.host.mounts import mounts_below
from flexd.host.threads import Threads

_MOUNTINFO = Path("/proc/self/mountinfo")


# -W: both are local, so a file that differs is written whole instead of being read on both sides.
# -1: times are compared to the nanosecond. To the second, which is rsync's own way, a file that changes twice within
# one and keeps its size would look the same.
_RSYNC = ("-aHAXSW", "--numeric-ids", "--modify-window=-1")


class LinuxFiles:
    def __init__(self, threads: Threads, processes: Processes) -> None:
        self._threads = threads
        self._processes = processes

    async def remove_tree(self, path: Path) -> None:
        if not await self._threads.run(_prepare_removal, path):
            return
        # rm works with directory fds (fts), so a link put in its way leads nowhere.
        await self._processes.run(["rm", "-rf", "--one-file-system", "--", str(path)])

    async def copy_tree(self, source: Path, target: Path) -> None:
        # cp keeps hard links, xattrs (security.capability, trusted.* of overlays), ACLs, holes and device nodes as
        # rsync -aHAXS does, with a quarter of its CPU where the disk is not the brake, and it reflinks.
        await self._threads.run(_prepare_copy, source, target)
        # Not --one-file-system: a nested subvolume of btrfs looks like another one, and mounts were looked for above.
        await self._processes.run(["cp", "-aT", "--reflink=auto", "--", str(source), str(target)])

    async def copy_tree_from(self, source: Path, target: Path, *, spare: Path) -> None:
        await self._threads.run(_prepare_copy, source, target)
        if _joins_others(await self._linked(source), await self._linked(spare)):
            await self.copy_tree(source, target)
            return
        options = [*_RSYNC, f"--link-dest={spare}"]
        await self._processes.run(["rsync", *options, "--", f"{source}/", f"{target}/"])

    async def _linked(self, path: Path) -> dict[bytes, bytes]:
        """The inodes of the files in a tree that have several names, by these."""
        argv = ["find", str(path), "-type", "f", "-links", "+1", "-printf", r"%i %P\0"]
        found = await self._processes.run(argv)
        pairs = (entry.partition(b" ") for entry in found.stdout.split(b"\0") if entry)
        return {name: inode for inode, _, name in pairs}

    async def copy_attributes(self, source: Path, target: Path) -> None:
        await self._threads.run(_copy_attributes, source, target)

    async def refresh_tree(self, source: Path, target: Path, *, by_content: bool = False) -> None:
        options = [*_RSYNC, "--delete"]
        options += ["--checksum"] if by_content else []
        await self._processes.run(["rsync", *options, "--", f"{source}/", f"{target}/"])

    async def shift_tree(self, path: Path, *, old: IdMap, new: IdMap) -> None:
        if old == new:
            return
        program = [sys.executable, "-I", "-S", shift_tree.__file__, str(path)]
        await self._processes.run(program, stdin=_encode_maps(old, new))

    async def disk_usage(self, path: Path) -> int:
        done = await self._processes.run(["du", "-sx", "--block-size=1", "--", str(path)])
        return int(done.stdout.split()[0])

    async def filesystem(self, path: Path) -> FileUsage:
        return await self._threads.run(_filesystem, path)

    async def systemd_version(self, root: Path) -> int | None:
        return await self._threads.run(guest_init.systemd_version, root)

    async def filesystem_type(self, path: Path) -> str:
        return await self._threads.run(_filesystem_type, path)


def _joins_others(source: dict[bytes, bytes], spare: dict[bytes, bytes]) -> bool:
    """Whether files that are one in `spare` may be several in `source`, which links to `spare` would make one."""
    seen: dict[bytes, bytes] = {}
    return any(
        seen.setdefault(inode, source.get(name, name)) != source.get(name, name) for name, inode in spare.items()
    )


def _copy_attributes(source: Path, target: Path) -> None:
    with syscalls.naming(f"copy the attributes of {source} to {target}", "setxattr"):
        found = os.stat(source)
        os.chown(target, found.st_uid, found.st_gid)
        target.chmod(stat.S_IMODE(found.st_mode))
        for name in os.listxattr(source):
            os.setxattr(target, name, os.getxattr(source, name))
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _encode_maps(old: IdMap, new: IdMap) -> bytes:
    lines = [
        f"{side} {kind} {line}\n"
        for side, idmap in (("old", old), ("new", new))
        for kind in "ug"
        for line in idmap.proc_lines(users=kind == "u").splitlines()
    ]
    return "".join(lines).encode()


def _place_of(path: Path) -> str:
    """Where a path is, links on the way followed, but not itself one: a link to / has no mounts below it."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _prepare_removal(path: Path) -> bool:
    """Whether there is anything left to remove. Single files and empty directories go at once."""
    mounts = mounts_below(_place_of(path))
    if mounts:
        # A bind mount of the same file system has the same device number, so rm itself would walk into it.
        raise syscalls.failure(f"remove {path}", "unlink", errno.EBUSY, f"{mounts[-1].target} is mounted")
    try:
        path.rmdir()
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        path.unlink(missing_ok=True)
        return False
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            return True
        raise syscalls.failure(f"remove {path}", "rmdir", error.errno or 0) from error
    return False


def _prepare_copy(source: Path, target: Path) -> None:
    """cp would otherwise put a directory over what is there, or complain in words of its own."""
    if not source.exists() and not source.is_symlink():
        raise syscalls.failure(f"copy {source} to {target}", "open", errno.ENOENT)
    place = _place_of(source)
    mounts = [mount for mount in mounts_below(place) if str(mount.target) != place]
    if mounts:
        raise syscalls.failure(f"copy {source} to {target}", "open", errno.EBUSY, f"{mounts[-1].target} is mounted")


def _filesystem(path: Path) -> FileUsage:
    with syscalls.naming(f"measure the file system of {path}", "statvfs"):
        found = os.statvfs(path)
    return FileUsage(
        total_bytes=found.f_blocks * found.f_frsize,
        used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
        inodes_total=found.f_files,
        inodes_used=found.f_files - found.f_ffree,
    )


def _filesystem_type(path: Path) -> str:
    what = f"find the file system of {path}"
    try:
        resolved = path.resolve(strict=True)
    except OSError as error:
        raise syscalls.failure(what, "stat", error.errno or 0) from error
    mount = mountinfo.holding(mountinfo.parse(_MOUNTINFO.read_bytes()), resolved)
    if mount is None:
        raise HostError(f"{what}: no mount holds it")
    return mount.fstype


def lock_file(path: Path) -> int | None:
    """Make it and hold it for as long as the descriptor is open (flock(2)); None if another process does. At once."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError as error:
        os.close(fd)
        raise HostError(f"lock {path}: {error.strerror} (flock(2))", error.errno or 0) from error
    return fd
