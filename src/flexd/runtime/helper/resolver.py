# SPDX-License-Identifier: Apache-2.0
"""Looking up a path as the thread that named it: in its user and mount namespaces, root and working directory, with its
ids and capabilities. What it may not reach is not reached for it.

A child does it and hands back O_PATH descriptors, so the privileged side never walks a path of the container's."""

import ctypes
import errno
import os
import socket
from collections.abc import Callable

from flexd.runtime.helper import wire
from flexd.runtime.helper.caller import Caller, inside
from flexd.runtime.helper.enter import open_plainly

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_PR_SET_KEEPCAPS = 8
_PR_SET_DUMPABLE = 4
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h


def resolve(caller: Caller, start: int, work: Callable[[], tuple[int, ...]]) -> list[int]:
    """What `work` opens, called in a child that has become the caller in the directory `start`; its OSError is
    raised here."""
    ours, theirs = socket.socketpair()
    root = caller.open("root", os.O_PATH | os.O_DIRECTORY)
    user, mount = caller.open("ns/user"), caller.open("ns/mnt")
    caller.check()
    child = os.fork()
    if child == 0:
        ours.close()
        os._exit(_in_child(caller, theirs, (user, mount, root, start), work))
    for fd in (root, user, mount):
        os.close(fd)
    theirs.close()
    with ours:
        data, fds, _, _ = socket.recv_fds(ours, 64, wire.MOST_FDS)
    os.waitpid(child, 0)
    number = int(data or errno.EIO)
    if number:
        raise OSError(number, os.strerror(number))
    return fds


def _in_child(
    caller: Caller, answer: socket.socket, where: tuple[int, int, int, int], work: Callable[[], tuple[int, ...]]
) -> int:
    try:
        become(caller, *where)
        socket.send_fds(answer, [b"0"], work())
    except OSError as error:
        answer.send(str(error.errno or errno.EIO).encode())
    return 0


def become(caller: Caller, user: int, mount: int, root: int, start: int) -> None:
    """This process becomes the caller, as far as files are concerned; for good."""
    if os.stat("/proc/self/ns/user").st_ino != os.fstat(user).st_ino:
        _check(_libc.setns(user, _CLONE_NEWUSER), "setns")
    _check(_libc.setns(mount, _CLONE_NEWNS), "setns")
    os.fchdir(root)
    os.chroot(".")
    os.fchdir(start)
    uid, gid = inside(caller.fsuid, caller.uid_map), inside(caller.fsgid, caller.gid_map)
    if uid is None or gid is None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    groups = [mapped for group in caller.groups if (mapped := inside(group, caller.gid_map)) is not None]
    _check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl")
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    set_capabilities(caller.capabilities)
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")


def set_capabilities(mask: int) -> None:
    """Exactly these, effective and permitted."""
    head = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    # Both are read during the call only.
    _check(_libc.capset(head, data), "capset")


def open_parent(path: bytes) -> tuple[int]:
    """For use in `resolve`: the directory that something is to be made in, if the caller may write there."""
    head = os.path.dirname(path) or b"."
    parent = open_plainly(head, os.O_PATH | os.O_DIRECTORY)
    os.fchdir(parent)
    if not os.access(".", os.W_OK | os.X_OK, effective_ids=True):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return (parent,)


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
