# SPDX-License-Identifier: Apache-2.0
"""Acting on one intercepted system call, in a fork of the helper. Arguments are read once and never again, so nobody
can change them between check and act; what is not acted on goes back to the kernel, which checks it as always."""

import ctypes
import errno
import os
import socket
import stat
import sys

from flexd.runtime.helper import intercepted_bpf, intercepted_mount, intercepted_sysinfo, wire
from flexd.runtime.helper.caller import Caller, Gone
from flexd.runtime.helper.enter import open_plainly
from flexd.runtime.helper.resolver import open_parent, resolve, set_capabilities

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWPID = 0x20000000
_AT_FDCWD = -100
# linux/capability.h
_CAP_DAC_OVERRIDE, _CAP_SYS_ADMIN, _CAP_SYS_NICE, _CAP_MKNOD = 1, 21, 23, 27

PROCEED: wire.Message = {"proceed": True}
DONE: wire.Message = {"value": 0}

# What LXD lets unprivileged containers make: (major, minor) of null, zero, full, random, urandom, tty, console
# (admin-guide/devices.txt). They do no harm to whoever opens them, and every container has them anyway.
_DEVICES = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1)})


def serve(connection: socket.socket, fds: list[int]) -> None:
    """Answers with the members of `Verdict`."""
    request = wire.receive(connection)
    try:
        wire.send(connection, act(request, fds))
    except Gone:
        wire.send(connection, PROCEED)  # nobody is there to hear it
    except OSError as error:
        wire.send(connection, {"errno": error.errno or errno.EPERM})


def act(request: wire.Message, fds: list[int]) -> wire.Message:
    name = call_name(request["architecture"], request["number"])
    handler = _HANDLERS.get(name)
    if handler is None or _family(name) not in request["calls"]:
        return PROCEED
    caller = Caller(fds[0], fds[1], fds[2], request["id"])
    # A container nested in this one has root users of its own, whom nobody allowed anything.
    if caller.namespace("user") != os.stat(f"/proc/{request['init']}/ns/user").st_ino:
        return PROCEED
    caller.check()
    return handler(caller, request)


def _family(name: str) -> str:
    return "mknod" if name == "mknodat" else name


def call_name(architecture: int, number: int) -> str:
    """ "" for what libseccomp, with which liblxc made the filter, does not know."""
    library = ctypes.CDLL("libseccomp.so.2")
    resolve_number = library.seccomp_syscall_resolve_num_arch
    resolve_number.argtypes, resolve_number.restype = (ctypes.c_uint32, ctypes.c_int), ctypes.c_char_p
    # ctypes copies the string; its few bytes are the process's, which ends soon.
    found: bytes | None = resolve_number(architecture, number)
    return (found or b"").decode()


def _mknod(caller: Caller, request: wire.Message) -> wire.Message:
    path, mode, device = request["arguments"][:3]
    return _make_node(caller, _AT_FDCWD, path, mode, device)


def _mknodat(caller: Caller, request: wire.Message) -> wire.Message:
    directory, path, mode, device = request["arguments"][:4]
    return _make_node(caller, directory, path, mode, device)


def decode_device(device: int) -> tuple[int, int]:
    """(major, minor) of the 32 bits that mknod(2) takes (linux/kdev_t.h new_decode_dev)."""
    return (device & 0xFFF00) >> 8, (device & 0xFF) | ((device >> 12) & 0xFFF00)


def _make_node(caller: Caller, directory: int, address: int, mode: int, device: int) -> wire.Message:
    major, minor = decode_device(device & 0xFFFFFFFF)
    if not stat.S_ISCHR(mode) or (major, minor) not in _DEVICES or not caller.may(_CAP_MKNOD):
        return PROCEED
    path = caller.text(address)
    name = os.path.basename(path)
    if name in (b"", b".", b".."):
        return PROCEED
    start = caller.directory_of(directory)
    (parent,) = resolve(caller, start, lambda: open_parent(path))
    caller.check()
    os.umask(caller.umask)
    _own_files_as(caller)
    os.mknod(name, mode & 0o177777, os.makedev(major, minor), dir_fd=parent)
    return DONE


def _own_files_as(caller: Caller) -> None:
    """What this process makes from now on is the caller's. That it may make it there was asked before."""
    _libc.setfsgid(caller.fsgid)
    _libc.setfsuid(caller.fsuid)
    set_capabilities(1 << _CAP_MKNOD | 1 << _CAP_DAC_OVERRIDE)


def _setxattr(caller: Caller, request: wire.Message) -> wire.Message:
    """Marks a directory as opaque, which an overlay mounted inside a container is made of."""
    path_at, name_at, value_at, size, flags = request["arguments"][:5]
    if size != 1 or not caller.may(_CAP_SYS_ADMIN):
        return PROCEED
    path, name, value = caller.text(path_at), caller.text(name_at), caller.memory(value_at, 1)
    if name != b"trusted.overlay.opaque" or value != b"y":
        return PROCEED
    start = caller.directory_of(_AT_FDCWD)
    (found,) = resolve(caller, start, lambda: _open_writable_directory(path))
    caller.check()
    os.setxattr(f"/proc/self/fd/{found}", name, value, flags & 0xFFFFFFFF)
    return DONE


def _open_writable_directory(path: bytes) -> tuple[int]:
    found = open_plainly(path, os.O_PATH | os.O_DIRECTORY)
    os.fchdir(found)
    if not os.access(".", os.W_OK, effective_ids=True):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return (found,)


def _sched_setscheduler(caller: Caller, request: wire.Message) -> wire.Message:
    target, policy, address = request["arguments"][:3]
    target, policy = ctypes.c_int32(target & 0xFFFFFFFF).value, ctypes.c_int32(policy & 0xFFFFFFFF).value
    if target < 0 or policy < 0 or not caller.may(_CAP_SYS_NICE):
        return PROCEED
    priority = int.from_bytes(caller.memory(address, 4), sys.byteorder, signed=True)
    space = caller.open("ns/pid")
    caller.check()
    # From inside, pids are those of the container and can be nobody else's.
    if _libc.setns(space, _CLONE_NEWPID) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    child = os.fork()
    if child == 0:
        os._exit(_schedule(target or caller.inside_pid, policy, priority))
    _, status = os.waitpid(child, 0)
    return {"errno": os.waitstatus_to_exitcode(status)} if status else DONE


def _schedule(target: int, policy: int, priority: int) -> int:
    try:
        os.sched_setscheduler(target, policy, os.sched_param(priority))
    except OSError as error:
        return error.errno or errno.EPERM
    return 0


def _sysinfo(caller: Caller, request: wire.Message) -> wire.Message:
    """Not for 32-bit programs, whose struct is another."""
    return intercepted_sysinfo.sysinfo(caller, request) if _is_native(request["architecture"]) else PROCEED


def _is_native(architecture: int) -> bool:
    native = ctypes.CDLL("libseccomp.so.2").seccomp_arch_native
    native.restype = ctypes.c_uint32
    return bool(native() == architecture)


_HANDLERS = {
    "mknod": _mknod,
    "mknodat": _mknodat,
    "setxattr": _setxattr,
    "sched_setscheduler": _sched_setscheduler,
    "sysinfo": _sysinfo,
    "mount": intercepted_mount.mount,
    "bpf": intercepted_bpf.bpf,
}
