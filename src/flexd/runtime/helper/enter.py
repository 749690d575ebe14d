# SPDX-License-Identifier: Apache-2.0
"""Becoming the root user of a container, for work on its files: its user and mount namespaces, its root directory.

From there no path, link or race leads out: there is nothing else to be seen. Must run in a process with one thread."""

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_CLONE_NEWUSER = 0x10000000
_PR_SET_DUMPABLE = 4
_SYS_OPENAT2 = 437  # the same number on every architecture
_AT_FDCWD = -100
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10


def enter_running(init: int, start_time: int) -> None:
    """Join a container by its init. The pidfd pins the process, so that both namespaces are of one container."""
    pidfd = os.pidfd_open(init)
    if _start_time(init) != start_time:
        raise ProcessLookupError(errno.ESRCH, "the container ended")
    root = os.open(f"/proc/{init}/root", os.O_PATH | os.O_DIRECTORY)
    own = os.stat("/proc/self/ns/user").st_ino
    foreign = os.stat(f"/proc/{init}/ns/user").st_ino
    flags = _CLONE_NEWNS | (_CLONE_NEWUSER if foreign != own else 0)
    _check(_libc.setns(pidfd, flags), "setns")
    os.close(pidfd)
    _become_root(root)


def enter_network(init: int, start_time: int) -> None:
    """Join a container's network namespace only; before its user namespace, from where one cannot."""
    pidfd = os.pidfd_open(init)
    if _start_time(init) != start_time:
        raise ProcessLookupError(errno.ESRCH, "the container ended")
    _check(_libc.setns(pidfd, _CLONE_NEWNET), "setns")
    os.close(pidfd)


def _start_time(pid: int) -> int:
    """Field 22 of proc_pid_stat(5); the second may contain anything but ends with the last parenthesis."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def enter_stopped(rootfs: str, uid_map: str, gid_map: str) -> None:
    """Take a mounted root file system as root, with the ids of a container that does not run."""
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY)
    if uid_map:
        _new_user_namespace(uid_map, gid_map)
    _become_root(root)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(root: int, path: str, flags: int) -> int:
    """Open a path in a container from outside: links and ".." cannot lead out (openat2(2), RESOLVE_IN_ROOT)."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    # The struct is read during the call only; no other thread changes errno in between.
    fd = _libc.syscall(_SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    _check(fd, "openat2")
    return int(fd)


def open_plainly(path: bytes, flags: int) -> int:
    """Open a path from where this process is, but never through a magic link (`/proc/1/root`, `/proc/self/fd/3`)."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_NO_MAGICLINKS)
    # The struct is read during the call only; no other thread changes errno in between.
    fd = _libc.syscall(_SYS_OPENAT2, _AT_FDCWD, path, ctypes.byref(how), ctypes.sizeof(how))
    _check(fd, "openat2")
    return int(fd)


def _new_user_namespace(uid_map: str, gid_map: str) -> None:
    """The maps must be written from outside, by a process with the capabilities that the unsharing one gives up."""
    ready_read, ready_write = os.pipe()
    ourselves = os.getpid()
    writer = os.fork()
    if writer == 0:
        os.close(ready_write)
        os.read(ready_read, 1)
        os._exit(_write_maps(ourselves, uid_map, gid_map))
    os.close(ready_read)
    _check(_libc.unshare(_CLONE_NEWUSER), "unshare")
    os.close(ready_write)
    _, status = os.waitpid(writer, 0)
    if status != 0:
        error = os.waitstatus_to_exitcode(status)
        raise OSError(error, f"write uid_map {uid_map!r} and gid_map {gid_map!r}: {os.strerror(error)}")


def _write_maps(pid: int, uid_map: str, gid_map: str) -> int:
    try:
        for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY)
            os.write(fd, text.encode())
            os.close(fd)
    except OSError as error:
        return error.errno or 1
    return 0


def _become_root(root: int) -> None:
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # In a mapped user namespace this is the container's own CAP_SYS_CHROOT.
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")
    os.close(root)
    os.umask(0)
    # Nothing inside the container may trace a process that came from outside.
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
