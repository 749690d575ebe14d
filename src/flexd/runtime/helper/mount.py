# SPDX-License-Identifier: Apache-2.0
"""Mounts given to and taken from a container that runs, by a fork of the helper that enters it.

The source is cloned while still on the host; inside, being the container's root, no path leads out of it."""

import contextlib
import ctypes
import errno
import os
import socket
import stat

from flexd.runtime.helper import enter, wire

_libc = ctypes.CDLL(None, use_errno=True)

# The same numbers on every architecture.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MNT_DETACH = 0x2
_UMOUNT_NOFOLLOW = 0x8
# mount_setattr(2), MOUNT_ATTR_*
_ATTRIBUTES = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8}
# mount(2), MS_*
_PROPAGATIONS = {"unbindable": 1 << 17, "private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20}


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def serve_add(connection: socket.socket) -> None:
    """Bind a path of the host at a path of the container; answers {}."""
    request = wire.receive(connection)
    options = set(request["options"])
    recursive = "rbind" in options
    clone = _open_tree(request["source"], _OPEN_TREE_CLONE | (_AT_RECURSIVE if recursive else 0))
    _set_attributes(clone, options, recursive=recursive)
    enter.enter_running(request["init"], request["start_time"])
    target = "/" + request["target"].lstrip("/")
    _make_target(target, directory="create=dir" in options, file="create=file" in options)
    _check(
        _libc.syscall(_SYS_MOVE_MOUNT, clone, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH),
        "move_mount",
    )
    wire.send(connection, {})


def serve_remove(connection: socket.socket) -> None:
    """Unmount lazily what lies at a path if it is the one that was given (`source`); answers {}."""
    request = wire.receive(connection)
    known = _identity(request["source"])
    enter.enter_running(request["init"], request["start_time"])
    target = "/" + request["target"].lstrip("/")
    # Somebody inside may have unmounted it, and put something of their own there.
    if known is None or _identity(target) == known:
        _unmount(target)
        if "create=file" in request["options"]:
            _remove_mount_point(target)
    wire.send(connection, {})


def _remove_mount_point(target: str) -> None:
    """The empty file without permissions that was made for a mount; whatever else is there is somebody's."""
    with contextlib.suppress(OSError):
        found = os.lstat(target)
        if stat.S_ISREG(found.st_mode) and not found.st_size and not stat.S_IMODE(found.st_mode):
            os.unlink(target)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _unmount(target: str) -> None:
    if _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) < 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):  # not mounted
            raise OSError(number, f"umount2: {os.strerror(number)}")


def _open_tree(path: str, flags: int) -> int:
    # The string is read during the call only.
    fd = _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags | os.O_CLOEXEC)
    _check(fd, f"open_tree {path}")
    return int(fd)


def _set_attributes(clone: int, options: set[str], *, recursive: bool) -> None:
    flags = sum(bit for name, bit in _ATTRIBUTES.items() if name in options)
    # Without a word the mount must not spread what is mounted inside back to the host.
    propagation, deep = _PROPAGATIONS["private"], recursive
    for name, bit in _PROPAGATIONS.items():
        if name in options or f"r{name}" in options:
            propagation, deep = bit, f"r{name}" in options
    attributes = _MountAttr(flags, 0, propagation, 0)
    how = _AT_EMPTY_PATH | (_AT_RECURSIVE if deep else 0)
    size = ctypes.sizeof(attributes)
    _check(
        _libc.syscall(_SYS_MOUNT_SETATTR, clone, b"", how, ctypes.byref(attributes), ctypes.c_size_t(size)),
        "mount_setattr",
    )


def _make_target(target: str, *, directory: bool, file: bool) -> None:
    if os.path.exists(target):
        return
    if directory:
        os.makedirs(target, 0o755, exist_ok=True)
    elif file:
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o000))


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
