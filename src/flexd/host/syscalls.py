# SPDX-License-Identifier: Apache-2.0
"""System calls that Python 3.11 does not have, through ctypes. All block: call them in a thread or a helper process.

ctypes releases the GIL around each call and keeps errno per thread (`use_errno`). Buffers passed are referenced by
the caller's frame for the time of the call; no call here keeps a pointer after it returned.
"""

import ctypes
import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexd.host.contract import HostError

_libc = ctypes.CDLL(None, use_errno=True)

# Numbers from 424 on are the same on all architectures that we support (asm-generic/unistd.h).
_SYS_PIDFD_SEND_SIGNAL = 424
_SYS_PIDFD_GETFD = 438
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_SYS_QUOTACTL_FD = 443
# seccomp(2) is older than the common numbering: asm/unistd.h of each.
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277, "ppc64le": 358, "s390x": 348, "armv7l": 383, "i686": 354}

# linux/fcntl.h
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
# linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_DIRSYNC = 0x80
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_IDMAP = 0x100000
# sys/mount.h
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8
# linux/sched.h
CLONE_VM = 0x100
CLONE_VFORK = 0x4000
CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
# linux/wait.h: wait for a child that announces its end with no signal
_WALL = 0x40000000
# linux/openat2.h
RESOLVE_NO_XDEV = 0x1
RESOLVE_NO_MAGICLINKS = 0x2
RESOLVE_NO_SYMLINKS = 0x4
RESOLVE_BENEATH = 0x8
RESOLVE_IN_ROOT = 0x10
# linux/netlink.h
SOL_NETLINK = 270
NETLINK_GET_STRICT_CHK = 12
# linux/seccomp.h
_SECCOMP_GET_ACTION_AVAIL = 2
SECCOMP_RET_USER_NOTIF = 0x7FC00000

_STACK_BYTES = 64 * 1024


def errno_name(number: int) -> str:
    return errno.errorcode.get(number, str(number))


def failure(what: str, call: str, number: int, detail: str = "") -> HostError:
    """`mount /a on /b: Invalid argument (mount(2) EINVAL)`; `detail` replaces the general words for the errno."""
    return HostError(f"{what}: {detail or os.strerror(number)} ({call}(2) {errno_name(number)})", number)


@contextmanager
def naming(what: str, call: str) -> Iterator[None]:
    """Turn an `OSError` of a call that Python has (open, read, …) into a `HostError`."""
    try:
        yield
    except OSError as error:
        raise failure(what, call, error.errno or 0) from error


def _word(value: object) -> object:
    # Variadic arguments must be as wide as a register: a bare Python int would go as a 32-bit int.
    if isinstance(value, int):
        return ctypes.c_long(value)
    return ctypes.c_void_p(None) if value is None else value


def _syscall(number: int, what: str, call: str, *args: object) -> int:
    result: int = _libc.syscall(*(_word(a) for a in (number, *args)))
    if result < 0:
        raise failure(what, call, ctypes.get_errno())
    return result


def _path(path: str | Path) -> bytes:
    return os.fsencode(path)


# --- mounts ------------------------------------------------------------------------------------------------------


def mount(source: str, target: Path, fstype: str, flags: int, data: str) -> None:
    """mount(2). The kernel copies all strings before it returns; `data` must be shorter than a page."""
    what = f"mount {source or fstype} on {target}"
    encoded = data.encode()
    if len(encoded) >= os.sysconf("SC_PAGESIZE"):
        raise failure(what, "mount", errno.E2BIG, f"options of {len(encoded)} bytes are longer than a page")
    arguments = (source.encode(), _path(target), fstype.encode(), ctypes.c_ulong(flags), encoded or None)
    if _libc.mount(*arguments) < 0:
        raise failure(what, "mount", ctypes.get_errno())


def unmount(target: Path, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(_path(target), flags) < 0:
        raise failure(f"unmount {target}", "umount2", ctypes.get_errno())


def open_tree(path: Path, *, recursive: bool = False) -> int:
    """A detached copy of the mount at a path (open_tree(2), OPEN_TREE_CLONE; Linux 5.2); gone with its last fd."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return _syscall(_SYS_OPEN_TREE, f"clone the mount of {path}", "open_tree", AT_FDCWD, _path(path), flags)


class _MountAttr(ctypes.Structure):
    # linux/mount.h struct mount_attr, version 0
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount_setattr(
    mount_fd: int, path: Path, *, set_flags: int = 0, propagation: int = 0, userns_fd: int = 0, recursive: bool = False
) -> None:
    """Change a detached mount (mount_setattr(2), Linux 5.12); `path` is only for the message. The userns fd may be
    closed afterwards: the mount holds its own reference."""
    attributes = _MountAttr(set_flags, 0, propagation, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    what = f"shift ids of the mount of {path}" if set_flags & MOUNT_ATTR_IDMAP else f"change the mount of {path}"
    _syscall(
        _SYS_MOUNT_SETATTR, what, "mount_setattr",
        mount_fd, b"", flags, ctypes.byref(attributes), ctypes.sizeof(attributes),
    )  # fmt: skip


def move_mount(mount_fd: int, target: Path) -> None:
    """Attach a detached mount (move_mount(2)); the fd may be closed afterwards."""
    what = f"attach a mount at {target}"
    arguments = (mount_fd, b"", AT_FDCWD, _path(target), MOVE_MOUNT_F_EMPTY_PATH)
    _syscall(_SYS_MOVE_MOUNT, what, "move_mount", *arguments)


def fsopen(fstype: str) -> int:
    """A file system context (fsopen(2), Linux 5.2)."""
    return _syscall(_SYS_FSOPEN, f"open file system {fstype}", "fsopen", fstype.encode(), FSOPEN_CLOEXEC)


def fsconfig_string(context: int, what: str, key: str, value: str) -> None:
    """fsconfig(2) FSCONFIG_SET_STRING; the kernel refuses values of 256 bytes and more."""
    try:
        _syscall(
            _SYS_FSCONFIG, f"{what}: {key}", "fsconfig", context, FSCONFIG_SET_STRING, key.encode(), value.encode(), 0
        )
    except HostError as error:
        raise _explained(context, error) from error


def fsconfig_fd(context: int, what: str, key: str, fd: int) -> None:
    """fsconfig(2) FSCONFIG_SET_FD: overlayfs takes its layers so since Linux 6.13, EINVAL before."""
    try:
        _syscall(_SYS_FSCONFIG, f"{what}: {key}", "fsconfig", context, FSCONFIG_SET_FD, key.encode(), None, fd)
    except HostError as error:
        raise _explained(context, error) from error


def fsmount(context: int, what: str, attributes: int = 0) -> int:
    """Make the superblock (FSCONFIG_CMD_CREATE) and a detached mount of it (fsmount(2))."""
    try:
        _syscall(_SYS_FSCONFIG, what, "fsconfig", context, FSCONFIG_CMD_CREATE, None, None, 0)
        return _syscall(_SYS_FSMOUNT, what, "fsmount", context, FSMOUNT_CLOEXEC, attributes)
    except HostError as error:
        raise _explained(context, error) from error


def _explained(context: int, error: HostError) -> HostError:
    """The kernel leaves a line per complaint (`e overlay: …`) to be read from the context; ENODATA if none."""
    lines: list[str] = []
    try:
        while len(lines) < 8:
            lines.append(os.read(context, 1024).decode(errors="replace").strip().removeprefix("e "))
    except OSError:
        pass
    return HostError(f"{error}: {'; '.join(lines)}", error.errno) if lines else error


# --- namespaces --------------------------------------------------------------------------------------------------


def user_namespace(uid_map: str, gid_map: str) -> int:
    """An fd of a new user namespace with these maps; nothing runs in it.

    The child is made as vfork does: it borrows our memory on a stack of its own, runs libc's `_exit` and nothing
    else (no Python, no allocation, no signal at its end), while this one thread waits in the kernel. A fork would copy
    page tables of the daemon; a program would cost milliseconds. As a zombie it still names its namespace in /proc.
    """
    stack = ctypes.create_string_buffer(_STACK_BYTES)
    top = (ctypes.addressof(stack) + _STACK_BYTES) & ~15  # the ABIs want 16 byte alignment
    entry = ctypes.cast(_libc._exit, ctypes.c_void_p)
    pid = _libc.clone(entry, ctypes.c_void_p(top), CLONE_VM | CLONE_VFORK | CLONE_NEWUSER, ctypes.c_void_p(None))
    if pid < 0:
        raise failure("make a user namespace", "clone", ctypes.get_errno())
    try:
        _write_id_map(pid, "uid_map", uid_map)
        _write_id_map(pid, "gid_map", gid_map)
        with naming("open a user namespace", "open"):
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.waitpid(pid, _WALL)


def _write_id_map(pid: int, name: str, text: str) -> None:
    # The kernel takes a map in a single write only (user_namespaces(7)).
    with naming(f"write {name} {' '.join(text.split())}", "write"):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def setns(fd: int, kinds: int) -> None:
    """setns(2); moves the calling thread, so only in helper processes, never in the daemon."""
    if _libc.setns(fd, kinds) < 0:
        raise failure("enter a namespace", "setns", ctypes.get_errno())


def unshare(kinds: int) -> None:
    """unshare(2); as `setns`, only in helper processes."""
    if _libc.unshare(kinds) < 0:
        raise failure("leave namespaces", "unshare", ctypes.get_errno())


# --- processes ---------------------------------------------------------------------------------------------------


def pidfd_open(pid: int) -> int:
    """A pidfd (pidfd_open(2), Linux 5.3); close-on-exec by itself."""
    with naming(f"open a pidfd of process {pid}", "pidfd_open"):
        return os.pidfd_open(pid)


def pidfd_send_signal(pidfd: int, pid: int, number: int) -> None:
    """pidfd_send_signal(2), Linux 5.1; `pid` is only for the message."""
    what = f"send signal {number} to process {pid}"
    _syscall(_SYS_PIDFD_SEND_SIGNAL, what, "pidfd_send_signal", pidfd, number, None, 0)


def pidfd_getfd(pid: int, fd: int) -> int:
    """A duplicate of another process's descriptor (pidfd_getfd(2), Linux 5.6); close-on-exec by itself."""
    pidfd = pidfd_open(pid)
    try:
        return _syscall(_SYS_PIDFD_GETFD, f"duplicate descriptor {fd} of process {pid}", "pidfd_getfd", pidfd, fd, 0)
    finally:
        os.close(pidfd)


def inotify_remove_watch(fd: int, watch: int) -> None:
    """inotify_rm_watch(2); whoever reads the descriptor is told that the watch is gone. A watch that is not there is
    EINVAL."""
    if _libc.inotify_rm_watch(fd, watch) < 0:
        raise failure(f"remove watch {watch} of descriptor {fd}", "inotify_rm_watch", ctypes.get_errno())


def seccomp_action_available(action: int) -> bool:
    """Whether a seccomp filter may return this action (seccomp(2) SECCOMP_GET_ACTION_AVAIL)."""
    number = _SYS_SECCOMP.get(platform.machine())
    if number is None:
        return False
    value = ctypes.c_uint32(action)
    try:
        _syscall(number, "ask for a seccomp action", "seccomp", _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(value))
    except HostError:
        return False
    return True


# --- files and quotas --------------------------------------------------------------------------------------------


class _OpenHow(ctypes.Structure):
    # linux/openat2.h struct open_how, version 0
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(directory: int, path: str | Path, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2), Linux 5.6. The kernel refuses a mode without O_CREAT or O_TMPFILE."""
    creates = flags & (os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY)
    how = _OpenHow(flags | os.O_CLOEXEC, mode if creates else 0, resolve)
    arguments = (directory, _path(path), ctypes.byref(how), ctypes.sizeof(how))
    return _syscall(_SYS_OPENAT2, f"open {path}", "openat2", *arguments)


# linux/inotify.h: IN_CREATE, IN_DELETE, IN_MOVED_FROM, IN_MOVED_TO; a directory only, and not through a link's loop
_IN_ENTRIES = 0x100 | 0x200 | 0x40 | 0x80
_IN_ONLYDIR = 0x1000000


def inotify_init() -> int:
    """An fd (inotify_init1(2)), not blocking and closed on exec."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise failure("watch directories", "inotify_init1", ctypes.get_errno())
    return fd


def inotify_add(fd: int, directory: Path) -> int:
    """Watch entries of a directory come and go (inotify_add_watch(2)); the watch's number."""
    watch: int = _libc.inotify_add_watch(fd, _path(directory), ctypes.c_uint32(_IN_ENTRIES | _IN_ONLYDIR))
    if watch < 0:
        raise failure(f"watch {directory}", "inotify_add_watch", ctypes.get_errno())
    return watch


def inotify_remove(fd: int, watch: int) -> None:
    """A watch that is gone with its directory is no error."""
    _libc.inotify_rm_watch(fd, watch)


def ioctl(fd: int, what: str, request: int, argument: bytearray) -> None:
    """ioctl(2) that fills or reads `argument`, kept alive by the caller. For what may take long: unlike `fcntl.ioctl`
    with more than 1 KiB of argument (CPython's fcntlmodule.c), ctypes lets go of the GIL."""
    buffer = (ctypes.c_char * len(argument)).from_buffer(argument)
    if _libc.ioctl(fd, ctypes.c_ulong(request), buffer) < 0:
        raise failure(what, "ioctl", ctypes.get_errno())


def quotactl(fd: int, what: str, command: int, identity: int, buffer: ctypes.Structure) -> None:
    """quotactl_fd(2), Linux 5.14: the quota of the file system that an fd is on; fills or reads `buffer`."""
    _syscall(_SYS_QUOTACTL_FD, what, "quotactl_fd", fd, command, identity, ctypes.byref(buffer))
