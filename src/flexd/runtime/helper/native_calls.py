# SPDX-License-Identifier: Apache-2.0
"""A seccomp filter that knows one architecture: every system call through another table (32-bit programs, x32) fails
with ENOSYS. Filters are inherited, so what is started behind it never gets rid of it.

liblxc's policies cannot say this: it adds every rule for every architecture. Run as a program: PROGRAM ARGUMENT..."""

import ctypes
import errno
import os
import platform
import sys

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h
# linux/audit.h AUDIT_ARCH_X86_64; numbers of x32 have a bit of their own (asm/unistd.h __X32_SYSCALL_BIT), and -1 is
# what a tracer writes to skip a call.
_X86_64, _X32_BIT, _SKIPPED = 0xC000003E, 0x40000000, 0xFFFFFFFF
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE = 0, 4  # struct seccomp_data
_LOAD_WORD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/filter.h


class _Instruction(ctypes.Structure):
    """struct sock_filter; `then` and `otherwise` are how many instructions to skip."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("then", ctypes.c_uint8),
        ("otherwise", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


_FILTER = (
    (_LOAD_WORD, 0, 0, _OFFSET_ARCHITECTURE),
    (_JUMP_EQUAL, 0, 4, _X86_64),
    (_LOAD_WORD, 0, 0, _OFFSET_NUMBER),
    (_JUMP_EQUAL, 1, 0, _SKIPPED),
    (_JUMP_GREATER_EQUAL, 1, 0, _X32_BIT),
    (_RETURN, 0, 0, _ALLOW),
    (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
)


def is_known() -> bool:
    """LXD's words: the key says something on x86_64 only."""
    return platform.machine() == "x86_64"


def refuse_others() -> None:
    """For this process and all it starts; needs CAP_SYS_ADMIN, or a setuid program could be fooled."""
    if not is_known():
        return
    instructions = (_Instruction * len(_FILTER))(*(_Instruction(*line) for line in _FILTER))
    # The kernel copies both during the call.
    program = _Program(len(_FILTER), instructions)
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"load the filter of foreign system calls: {os.strerror(number)}")


if __name__ == "__main__":
    refuse_others()
    os.execvpe(sys.argv[1], sys.argv[1:], os.environ)
