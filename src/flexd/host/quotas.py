# SPDX-License-Identifier: Apache-2.0
"""Project quotas of ext4, xfs and f2fs (quotactl(2), ioctl_fs FS_IOC_FSSETXATTR)."""

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from flexd.host import mountinfo, syscalls
from flexd.host.contract import HostError
from flexd.host.threads import Threads

_MOUNTINFO = Path("/proc/self/mountinfo")
# linux/quota.h, sys/quota.h
_PRJQUOTA = 2
_SUBCMD_SHIFT = 8
_Q_GETQUOTA = 0x800007
_Q_SETQUOTA = 0x800008
_QIF_BLIMITS = 1
_QIF_DQBLKSIZE = 1024
# linux/dqblk_xfs.h; the generic quota code answers it for ext4 too
_Q_XGETQSTATV = (ord("X") << 8) + 8
_FS_QSTATV_VERSION1 = 1
_FS_QUOTA_PDQ_ENFD = 1 << 5
# linux/fs.h: _IOR('X', 31, struct fsxattr), _IOW('X', 32, …): xflags, extsize, nextents, projid, cowextsize
_FSXATTR = struct.Struct("=IIIII8x")
_FS_IOC_FSGETXATTR = 0x801C581F
_FS_IOC_FSSETXATTR = 0x401C5820
_FS_XFLAG_PROJINHERIT = 0x200


class _Dqblk(ctypes.Structure):
    # linux/quota.h struct if_dqblk; limits in blocks of 1 KiB, the space used in bytes
    _fields_ = (
        ("hard_limit", ctypes.c_uint64), ("soft_limit", ctypes.c_uint64), ("space", ctypes.c_uint64),
        ("inode_hard_limit", ctypes.c_uint64), ("inode_soft_limit", ctypes.c_uint64), ("inodes", ctypes.c_uint64),
        ("block_time", ctypes.c_uint64), ("inode_time", ctypes.c_uint64), ("valid", ctypes.c_uint32),
    )  # fmt: skip


class _Statv(ctypes.Structure):
    # linux/dqblk_xfs.h struct fs_quota_statv: what we read of it, the rest only for its size
    _fields_ = (
        ("version", ctypes.c_int8), ("pad", ctypes.c_uint8), ("flags", ctypes.c_uint16), ("rest", ctypes.c_uint8 * 252),
    )  # fmt: skip


class LinuxQuotas:
    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    async def available(self, path: Path) -> str | None:
        return await self._threads.run(_fault, path)

    async def assign(self, path: Path, project: int) -> None:
        await self._threads.run(_assign, path, project)

    async def set_limit(self, path: Path, project: int, limit_bytes: int) -> None:
        await self._threads.run(_set_limit, path, project, limit_bytes)

    async def usage(self, path: Path, project: int) -> int:
        return await self._threads.run(_usage, path, project)


def _command(number: int) -> int:
    return (number << _SUBCMD_SHIFT) | _PRJQUOTA


def _quotactl(path: Path, what: str, number: int, project: int, buffer: ctypes.Structure) -> None:
    with syscalls.naming(what, "open"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.quotactl(fd, what, _command(number), project, buffer)
    finally:
        os.close(fd)


def _fault(path: Path) -> str | None:
    mount = mountinfo.holding(mountinfo.parse(_MOUNTINFO.read_bytes()), Path(os.path.realpath(path)))
    where = f"{path} ({mount.fstype if mount else 'unknown file system'})"
    state = _Statv(version=_FS_QSTATV_VERSION1)
    try:
        _quotactl(path, f"ask for the quota state of {path}", _Q_XGETQSTATV, 0, state)
    except HostError as error:
        return _words(where, error)
    if not state.flags & _FS_QUOTA_PDQ_ENFD:
        return f"Project quotas are not enforced on {where}: mount it with the option prjquota"
    return None


def _words(where: str, error: HostError) -> str:
    # ENOSYS: a file system without quotas as well as a kernel before 5.14.
    if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENODEV, errno.EINVAL, errno.ENOTTY, errno.ESRCH):
        return f"Project quotas are not switched on for {where}, or this kernel has none"
    return str(error)


def _set_limit(path: Path, project: int, limit_bytes: int) -> None:
    blocks = -(-limit_bytes // _QIF_DQBLKSIZE)
    quota = _Dqblk(hard_limit=blocks, soft_limit=0, valid=_QIF_BLIMITS)
    what = f"limit project {project} at {path} to {limit_bytes} bytes"
    _quotactl(path, what, _Q_SETQUOTA, project, quota)


def _usage(path: Path, project: int) -> int:
    quota = _Dqblk()
    try:
        _quotactl(path, f"read the usage of project {project} at {path}", _Q_GETQUOTA, project, quota)
    except HostError as error:
        if error.errno == errno.ENOENT:  # xfs: nothing was ever accounted to it
            return 0
        raise
    return int(quota.space)


def _assign(path: Path, project: int) -> None:
    """Directories pass the project on to what is made in them; what is there already is assigned one by one."""
    what = f"assign project {project} to {path}"
    with syscalls.naming(what, "ioctl"):
        _set_project(path, project)
        _walk(path, lambda entry: _set_project(entry, project))


def _walk(top: Path, visit: Callable[[Path], None]) -> None:
    device = top.lstat().st_dev
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            entry = Path(directory, name)
            found = entry.lstat()
            # The ioctl needs the file opened: devices, pipes, sockets and links stay without (they hold no blocks).
            if found.st_dev == device and (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                visit(entry)


def _set_project(path: Path, project: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        raw = bytearray(_FSXATTR.size)
        fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, raw)
        flags, extent, extents, _, cow = _FSXATTR.unpack(raw)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            flags = flags | _FS_XFLAG_PROJINHERIT if project else flags & ~_FS_XFLAG_PROJINHERIT
        fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, _FSXATTR.pack(flags, extent, extents, project, cow))
    finally:
        os.close(fd)
