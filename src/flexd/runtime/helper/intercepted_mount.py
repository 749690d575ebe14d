# SPDX-License-Identifier: Apache-2.0
"""mount(2) of a file system that the host's administrator allows a container, which the kernel does not.

Source and target are opened as the caller; the mount is made of those descriptors, so no path is walked twice."""

import ctypes
import errno
import fcntl
import os
import stat

from flexd.runtime.helper import intercepted_fuse, wire
from flexd.runtime.helper.caller import Caller, IdMap, outside
from flexd.runtime.helper.enter import open_plainly
from flexd.runtime.helper.resolver import resolve, set_capabilities

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS = 0x00020000
_NS_GET_USERNS = 0xB701  # linux/nsfs.h
_CAP_SYS_ADMIN = 21
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
# The same numbers on every architecture (asm-generic/unistd.h).
_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT, _SYS_MOUNT_SETATTR = 429, 430, 431, 432, 442
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6  # fsconfig(2)
_CLOEXEC = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_MOVE_F_EMPTY, _MOVE_T_EMPTY = 0x4, 0x40
_ATTR_IDMAP = 0x100000
_MS_RDONLY = 0x1
# mount(2) flag -> mount attribute (linux/mount.h); the others are options of the file system.
_ATTRIBUTES = {_MS_RDONLY: 0x1, 0x2: 0x2, 0x4: 0x4, 0x8: 0x8, 0x400: 0x10, 0x1000000: 0x20, 0x800: 0x80}
_OPTIONS = {_MS_RDONLY: b"ro", 0x10: b"sync", 0x80: b"dirsync", 0x2000000: b"lazytime"}
_ATTR_NODEV = 0x4
_HUGE_PAGES = "hugetlbfs"

PROCEED: wire.Message = {"proceed": True}
DONE: wire.Message = {"value": 0}


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(caller: Caller, request: wire.Message) -> wire.Message:
    source_at, target_at, type_at, flags, data_at = request["arguments"][:5]
    if not (source_at and target_at and type_at and caller.may(_CAP_SYS_ADMIN) and _owns_its_mounts(caller)):
        return PROCEED
    fstype = caller.text(type_at).decode(errors="surrogateescape")
    if fstype not in request["mount_allowed"] and fstype not in request["mount_fuse"]:
        return PROCEED
    source, target = caller.text(source_at), caller.text(target_at)
    options = caller.text(data_at) if data_at else b""
    if fstype in request["mount_fuse"]:
        program = request["mount_fuse"][fstype]
        return intercepted_fuse.mount(caller, program, source, target, flags, options)
    on_device = _needs_device(fstype)
    fds = resolve(
        caller, caller.directory_of(_AT_FDCWD), lambda: _open_both(source if on_device else b"", target, flags)
    )
    caller.check()
    owned = fstype == _HUGE_PAGES  # by whom, is an option of its own, which no shift may change again
    if owned:
        options = huge_pages_options(options, caller.uid_map, caller.gid_map)
    user = caller.open("ns/user") if request["mount_shift"] and not owned else -1
    _enter(caller)
    name = b"self/fd/%d" % fds[1] if on_device else source
    made = _make(fstype, name, flags, options)
    _attach(made, fds[0], user)
    return DONE


def huge_pages_options(options: bytes, *maps: IdMap) -> bytes:
    """hugetlbfs is made by the host, so its `uid` and `gid` are the host's ids: those of the container's root, unless
    it asks for others of its own (extension: container_syscall_intercept_hugetlbfs)."""
    words = [word for word in options.split(b",") if word]
    for name, id_map in zip((b"uid", b"gid"), maps, strict=True):
        asked = [word.partition(b"=")[2] for word in words if word.startswith(name + b"=")]
        text = asked[-1] if asked else b"0"
        found = outside(int(text), id_map) if text.isdigit() else None
        if found is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        words = [word for word in words if not word.startswith(name + b"=")] + [b"%s=%d" % (name, found)]
    return b",".join(words)


def _owns_its_mounts(caller: Caller) -> bool:
    """Its mount namespace belongs to its own user namespace, or the kernel would refuse any mount there."""
    namespace = caller.open("ns/mnt")
    owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
    os.close(namespace)
    found = os.fstat(owner).st_ino
    os.close(owner)
    return found == caller.namespace("user")


def _needs_device(fstype: str) -> bool:
    with open("/proc/filesystems", encoding="ascii") as file:
        known = {line.split("\t")[1].strip(): line.startswith("nodev") for line in file}
    if fstype not in known:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return not known[fstype]


def _open_both(source: bytes, target: bytes, flags: int) -> tuple[int, ...]:
    """For use in `resolve`. Opening the device tells whether the caller may read, and write, it."""
    found = open_plainly(target, os.O_PATH)
    if not source:
        return (found,)
    device = open_plainly(source, (os.O_RDONLY if flags & _MS_RDONLY else os.O_RDWR) | os.O_NONBLOCK)
    if not stat.S_ISBLK(os.fstat(device).st_mode):
        raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK))
    return found, device


def _enter(caller: Caller) -> None:
    """Into the caller's mount namespace, where alone something can be attached to it; with the one capability that this
    takes and the caller's ids, in a directory that it cannot name."""
    root, namespace = caller.open("root", os.O_PATH | os.O_DIRECTORY), caller.open("ns/mnt")
    processes = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    caller.check()
    _check(_libc.setns(namespace, _CLONE_NEWNS), "setns")
    os.fchdir(root)
    os.chroot(".")
    os.fchdir(processes)
    set_capabilities(1 << _CAP_SYS_ADMIN)


def _make(fstype: str, source: bytes, flags: int, options: bytes) -> int:
    """A superblock and a mount of it that is nowhere yet."""
    context = _check(_libc.syscall(_SYS_FSOPEN, os.fsencode(fstype), _CLOEXEC), "fsopen")
    _configure(context, _SET_STRING, b"source", source)
    for flag, name in _OPTIONS.items():
        if flags & flag:
            _configure(context, _SET_FLAG, name, None)
    for option in options.split(b","):
        key, equals, value = option.partition(b"=")
        if key:
            _configure(context, _SET_STRING if equals else _SET_FLAG, key, value if equals else None)
    _configure(context, _CREATE, None, None)
    # No device nodes: whoever filled the device with data could have put one of the host's disk there.
    attributes = _ATTR_NODEV
    for flag, bit in _ATTRIBUTES.items():
        attributes |= bit if flags & flag else 0
    return _check(_libc.syscall(_SYS_FSMOUNT, context, _CLOEXEC, attributes), "fsmount")


def _configure(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    # Strings are read during the call only.
    _check(_libc.syscall(_SYS_FSCONFIG, context, command, key, value, 0), "fsconfig")


def _attach(made: int, target: int, user: int) -> None:
    if user >= 0:
        shift = _MountAttr(_ATTR_IDMAP, 0, 0, user)
        size = ctypes.c_size_t(ctypes.sizeof(shift))
        arguments = (made, b"", _AT_EMPTY_PATH, ctypes.byref(shift), size)
        _check(_libc.syscall(_SYS_MOUNT_SETATTR, *arguments), "mount_setattr")
    how = _MOVE_F_EMPTY | _MOVE_T_EMPTY
    _check(_libc.syscall(_SYS_MOVE_MOUNT, made, b"", target, b"", how), "move_mount")


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return int(result)
