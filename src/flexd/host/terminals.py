# SPDX-License-Identifier: Apache-2.0
"""Pseudoterminals (pty(7)): on the host, or in a container's own devpts so that `tty` and `ps` know them there."""

import asyncio
import fcntl
import os
import stat
import struct
import termios
from typing import Protocol

from flexd.host.contract import HostError
from flexd.host.syscalls import RESOLVE_IN_ROOT, openat2

# ioctl_tty(2), asm-generic/ioctls.h
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
# Documentation/admin-guide/devices.txt: 5,2 is /dev/ptmx
_PTMX = os.makedev(5, 2)


class Terminals(Protocol):
    async def open_inside(self, pid: int) -> tuple[int, int]:
        """(master, slave) of a new terminal in the mount namespace of a process; the caller closes both."""
        ...

    def resize(self, master: int, width: int, height: int) -> None:
        """Columns and rows; 0 by 0 is ignored."""
        ...


def _resize(master: int, width: int, height: int) -> None:
    if width > 0 and height > 0:
        # struct winsize: rows, columns, and pixels that nobody uses (ioctl_tty(2))
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", min(height, 65535), min(width, 65535), 0, 0))


def _open_inside(pid: int) -> tuple[int, int]:
    where = f"/proc/{pid}/root"
    try:
        root = os.open(where, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"open {where}: {error.strerror}", error.errno or 0) from error
    try:
        # The container owns its /dev: a link there must not lead out, and what is there must be a ptmx.
        flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
        master = openat2(root, "dev/pts/ptmx", flags, resolve=RESOLVE_IN_ROOT)
    finally:
        os.close(root)
    try:
        status = os.fstat(master)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _PTMX:
            raise HostError(f"open {where}/dev/pts/ptmx: it is not the pseudoterminal multiplexer")
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except BaseException:
        os.close(master)
        raise
    return master, slave


class LinuxTerminals:
    """Terminals of containers."""

    async def open_inside(self, pid: int) -> tuple[int, int]:
        return await asyncio.to_thread(_open_inside, pid)

    def resize(self, master: int, width: int, height: int) -> None:
        _resize(master, width, height)


class HostTerminals:
    """Terminals of the host itself, for containers that only pretend to run (FakeRuntime)."""

    async def open_inside(self, pid: int) -> tuple[int, int]:
        del pid
        return await asyncio.to_thread(os.openpty)

    def resize(self, master: int, width: int, height: int) -> None:
        _resize(master, width, height)
