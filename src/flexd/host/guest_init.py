# SPDX-License-Identifier: Apache-2.0
"""What a root file system would boot with, told from its files. They are somebody else's: no link leads out of it."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexd.host import syscalls
from flexd.host.contract import HostError

# Since 231 systemd has a library of its own, with its version in the name; Debian keeps it by architecture since 257.
_DIRECTORIES = ("lib/systemd", "usr/lib/systemd", "lib64/systemd", "usr/lib64/systemd")
_LIBRARY = re.compile(r"libsystemd-shared-(\d+)")
_TRIPLET = re.compile(r"[a-z0-9_]+-linux-[a-z0-9_]+")
# Before, its program says it (PACKAGE_STRING); 1.4 MB in Debian 8.
_VERSION = re.compile(rb"\0systemd (\d{2,3})\0")
_MOST_BYTES = 8 << 20


def systemd_version(root: Path) -> int | None:
    """Blocking. None for another init, and where the version is nowhere to be seen."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _opened(top, "sbin/init", os.O_PATH) as init:
            if init is None or Path(os.readlink(f"/proc/self/fd/{init}")).name != "systemd":
                return None
        return next(_from_libraries(top), None) or _from_program(top)
    finally:
        os.close(top)


@contextmanager
def _opened(top: int, path: str, flags: int) -> Iterator[int | None]:
    """None if it is not there."""
    try:
        fd = syscalls.openat2(top, path, flags, resolve=syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS)
    except HostError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _from_libraries(top: int) -> Iterator[int]:
    with _opened(top, "usr/lib", os.O_RDONLY | os.O_DIRECTORY) as libraries:
        names = os.listdir(libraries) if libraries is not None else []
    triplets = [f"usr/lib/{name}/systemd" for name in names if _TRIPLET.fullmatch(name)]
    for path in (*_DIRECTORIES, *triplets):
        with _opened(top, path, os.O_RDONLY | os.O_DIRECTORY) as directory:
            for name in os.listdir(directory) if directory is not None else ():
                match = _LIBRARY.match(name)
                if match:
                    yield int(match[1])


def _from_program(top: int) -> int | None:
    # Not waiting: it may be a FIFO.
    with _opened(top, "sbin/init", os.O_RDONLY | os.O_NONBLOCK) as program:
        if program is None or not stat.S_ISREG(os.fstat(program).st_mode):
            return None
        with open(program, "rb", closefd=False) as file:
            match = _VERSION.search(file.read(_MOST_BYTES))
    return int(match[1]) if match else None
