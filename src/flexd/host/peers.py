# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a unix socket, and in which pid namespaces a process lives. All block."""

import errno
import fcntl
import os
import select
import socket
import struct

from flexd.host import syscalls
from flexd.host.contract import HostError, Peer, ProcessRef
from flexd.host.process_table import identify

_UCRED = struct.Struct("iII")  # struct ucred (unix(7))
_SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5; the same number on every architecture that we support
_NS_GET_PARENT = 0xB702  # linux/nsfs.h


def peer(connection: socket.socket) -> Peer | None:
    """Who connected; None if that process is gone. A pidfd pins it; before Linux 6.5 its pid could be another's by
    now, if all pids went round since the connection was made."""
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if pid <= 0:
        return None  # of a pid namespace that we do not see
    pidfd = _peer_pidfd(connection, pid)
    if pidfd is None:
        return None
    try:
        process = identify(pid)
        if process is None:
            return None
        spaces = pid_namespaces(process)
        # Still the same process after all was read, so what was read is about it.
        return Peer(process, uid, gid, spaces) if spaces and not _ended(pidfd) else None
    finally:
        os.close(pidfd)


def _peer_pidfd(connection: socket.socket, pid: int) -> int | None:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            return None
    try:
        return syscalls.pidfd_open(pid)
    except HostError:
        return None


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def pid_namespaces(process: ProcessRef) -> tuple[int, ...]:
    """Inode numbers of the process's pid namespace and those around it, as far as ours; empty if it is gone."""
    try:
        fd = os.open(f"/proc/{process.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ()
    found = []
    while fd >= 0:
        found.append(os.fstat(fd).st_ino)
        outer = _outer(fd)
        os.close(fd)
        fd = outer
    return tuple(found) if identify(process.pid) == process else ()


def _outer(fd: int) -> int:
    """-1 at our own namespace: what is around that we may not see (EPERM)."""
    try:
        return fcntl.ioctl(fd, _NS_GET_PARENT)
    except OSError:
        return -1
