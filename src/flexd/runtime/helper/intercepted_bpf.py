# SPDX-License-Identifier: Apache-2.0
"""bpf(2) for programs that say which devices a cgroup of the container may use (systemd's DeviceAllow=, nested liblxc).

The program is loaded with the two capabilities that this takes, so the verifier trusts it no more than a user's: no
helpers that read the kernel's memory. It can be attached below the container's own cgroup only; programs add up, so
nothing that is denied further up becomes allowed."""

import contextlib
import ctypes
import errno
import os
import platform
import resource
import struct

from flexd.runtime.helper import wire
from flexd.runtime.helper.caller import Caller
from flexd.runtime.helper.resolver import set_capabilities

_libc = ctypes.CDLL(None, use_errno=True)

# linux/bpf.h
_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH = 5, 8, 9
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
# union bpf_attr of BPF_PROG_LOAD as far as it is used: prog_type, insn_cnt; insns, license; log_level, log_size;
# log_buf; kern_version, prog_flags; prog_name; prog_ifindex, expected_attach_type
_LOAD = struct.Struct("@IIQQIIQII16sII")
# … of BPF_PROG_ATTACH and DETACH: target_fd, attach_bpf_fd, attach_type, attach_flags, replace_bpf_fd
_ATTACH = struct.Struct("@IIIII")
_REPLACE = 4  # BPF_F_REPLACE
_INSTRUCTION_BYTES = 8
# The verifier's own limit for programs of users (BPF_MAXINSNS); systemd's have a few dozen.
_MOST_INSTRUCTIONS = 4096
_MOST_LOG_BYTES = 1 << 20
_LICENSE_BYTES = 128
# The opcode of a 64-bit constant, which takes two instructions; with a source register it means a file descriptor
# (BPF_PSEUDO_MAP_FD …), which here would be one of the host's.
_LOAD_64 = 0x18
# linux/capability.h
_CAP_NET_ADMIN, _CAP_SYS_ADMIN, _CAP_BPF = 12, 21, 39
_CAP_LAST = "/proc/sys/kernel/cap_last_cap"
_NUMBERS = {
    "x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351, "armv7l": 386, "i686": 357,
}  # fmt: skip
# Like pidfd_open(2) the same number everywhere (asm-generic/unistd.h).
_SYS_PIDFD_GETFD = 438

PROCEED: wire.Message = {"proceed": True}
DONE: wire.Message = {"value": 0}


def bpf(caller: Caller, request: wire.Message) -> wire.Message:
    command, address, size = request["arguments"][:3]
    number = _NUMBERS.get(platform.machine())
    if not request["bpf_devices"] or number is None or not _can_be_weak() or not _may(caller):
        return PROCEED
    if command == _PROG_LOAD:
        return _load(number, caller, caller.memory(address, min(size, _LOAD.size)))
    if command in (_PROG_ATTACH, _PROG_DETACH):
        attribute = caller.memory(address, min(size, _ATTACH.size))
        return _attach(number, caller, command, attribute, request["cgroup_directory"])
    return PROCEED


def _can_be_weak() -> bool:
    """Before Linux 5.8 only CAP_SYS_ADMIN loads programs, and those may read all memory."""
    with open(_CAP_LAST, encoding="ascii") as file:
        return int(file.read()) >= _CAP_BPF


def _may(caller: Caller) -> bool:
    return caller.may(_CAP_SYS_ADMIN) or (caller.may(_CAP_BPF) and caller.may(_CAP_NET_ADMIN))


def refers_to_fds(instructions: bytes) -> bool:
    """Whether a program names maps, other programs' functions or kernel symbols."""
    position = 0
    while position < len(instructions):
        opcode, registers = instructions[position], instructions[position + 1]
        if opcode == _LOAD_64:
            if registers >> 4:  # dst_reg is the low half, src_reg the high one
                return True
            position += _INSTRUCTION_BYTES
        position += _INSTRUCTION_BYTES
    return False


def _load(number: int, caller: Caller, given: bytes) -> wire.Message:
    kind, count, instructions_at, license_at, level, log_bytes, log_at, *rest = _LOAD.unpack(
        given.ljust(_LOAD.size, b"\0")
    )
    version, _flags, name, interface, attach_type = rest
    if kind != _TYPE_CGROUP_DEVICE or interface or attach_type not in (0, _ATTACH_CGROUP_DEVICE):
        return PROCEED
    if not 0 < count <= _MOST_INSTRUCTIONS:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    instructions = caller.memory(instructions_at, count * _INSTRUCTION_BYTES)
    if refers_to_fds(instructions):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    license_text = caller.text(license_at)[:_LICENSE_BYTES] + b"\0"
    log = ctypes.create_string_buffer(min(log_bytes, _MOST_LOG_BYTES)) if level and log_at else None
    # Held by locals until the call is over.
    code, words = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(license_text)
    attribute = ctypes.create_string_buffer(
        _LOAD.pack(
            kind, count, ctypes.addressof(code), ctypes.addressof(words), level if log else 0, len(log) if log else 0,
            ctypes.addressof(log) if log else 0, version, 0, name, 0, attach_type,
        ),
        _LOAD.size,
    )  # fmt: skip
    caller.check()
    _become_weak()
    made, failure = _call(number, _PROG_LOAD, attribute)
    if log is not None:
        caller.write(log_at, log.value + b"\0")
    if made < 0:
        raise OSError(failure, os.strerror(failure))
    return {"value": caller.give(made)}


def _attach(number: int, caller: Caller, command: int, given: bytes, own: str) -> wire.Message:
    target, program, kind, flags, replaced = _ATTACH.unpack(given.ljust(_ATTACH.size, b"\0"))
    if kind != _ATTACH_CGROUP_DEVICE:
        return PROCEED
    process = os.pidfd_open(_thread_group(caller))
    caller.check()
    cgroup = _take(process, target)
    if not own or not _is_below(cgroup, own):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    # To detach, a program need not be named.
    taken = _take(process, program) if command == _PROG_ATTACH or program else 0
    old = _take(process, replaced) if command == _PROG_ATTACH and flags & _REPLACE else 0
    attribute = ctypes.create_string_buffer(_ATTACH.pack(cgroup, taken, kind, flags, old), _ATTACH.size)
    caller.check()
    _become_weak()
    result, failure = _call(number, command, attribute)
    if result < 0:
        raise OSError(failure, os.strerror(failure))
    return DONE


def _thread_group(caller: Caller) -> int:
    fields = dict(line.split(":\t", 1) for line in caller.read("status").splitlines() if ":\t" in line)
    return int(fields["Tgid"])


def _take(process: int, descriptor: int) -> int:
    """The caller's descriptor, as one of ours."""
    found = _libc.syscall(_SYS_PIDFD_GETFD, process, ctypes.c_int(descriptor), 0)
    if found < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return int(found)


def _is_below(cgroup: int, own: str) -> bool:
    """Whether a descriptor is that of a cgroup inside the container's, which itself is the host's to rule."""
    wanted = os.fstat(cgroup)
    for parent, names, _ in os.walk(own):
        for name in names:
            found = os.stat(os.path.join(parent, name))
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False


def _become_weak() -> None:
    # Before Linux 5.11 programs count as locked memory; without the right to raise the limit it stays as it is.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    set_capabilities(1 << _CAP_BPF | 1 << _CAP_NET_ADMIN)


def _call(number: int, command: int, attribute: "ctypes.Array[ctypes.c_char]") -> tuple[int, int]:
    """(result, errno). What the attribute points to is read and written during the call only."""
    result = int(_libc.syscall(number, command, ctypes.byref(attribute), len(attribute)))
    return result, ctypes.get_errno() if result < 0 else 0
