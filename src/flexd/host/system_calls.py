# SPDX-License-Identifier: Apache-2.0
"""Names and numbers of system calls, from the library that liblxc makes its filters with (libseccomp)."""

import ctypes
from collections.abc import Iterable

# seccomp.h: __NR_SCMP_ERROR; a number below 0 but not this is a call of other architectures only.
_UNKNOWN = -1


def unknown(names: Iterable[str]) -> list[str]:
    """Those that no architecture has. Where the library is missing, none: liblxc does not filter then either."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return []
    resolve = library.seccomp_syscall_resolve_name
    resolve.argtypes, resolve.restype = (ctypes.c_char_p,), ctypes.c_int
    # The string is only read during the call.
    return [name for name in names if resolve(name.encode()) == _UNKNOWN]
