# SPDX-License-Identifier: Apache-2.0
"""The console of a restored container. Its monitor holds the terminal open, as that must outlive the daemon, but knows
nothing of it: the daemon reads what is written there into the console's log, and gives it out to one holder."""

import asyncio
import os
from pathlib import Path

import msgspec

from flexd.host.contract import HostError
from flexd.host.syscalls import pidfd_getfd
from flexd.runtime.criu.restore import ConsoleRecord
from flexd.runtime.paths import ContainerPaths
from flexd.runtime.render import CONSOLE_LOG_BYTES

_READ_BYTES = 65536


def write_record(paths: ContainerPaths, record: ConsoleRecord) -> None:
    paths.console.write_bytes(msgspec.json.encode(record))


def read_record(paths: ContainerPaths) -> ConsoleRecord | None:
    """None for a container that was started, not restored."""
    try:
        return msgspec.json.decode(paths.console.read_bytes(), type=ConsoleRecord)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


class Console:
    """Owns a duplicate of the terminal's master while the container runs."""

    def __init__(self, record: ConsoleRecord, master: int, log: Path, old_log: Path) -> None:
        self.record, self._master, self._log, self._old_log = record, master, log, old_log
        self.held = False
        os.set_blocking(master, False)

    @classmethod
    def open(cls, record: ConsoleRecord, paths: ContainerPaths) -> "Console | None":
        """Blocking; None if the monitor is gone."""
        try:
            master = pidfd_getfd(record.monitor.pid, record.fd)
        except HostError:
            return None
        return cls(record, master, paths.console_log, paths.old_console_log)

    def listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._master, self._read)

    def hold(self) -> int:
        """Somebody else reads it from now on; the descriptor is ours."""
        self.held = True
        asyncio.get_running_loop().remove_reader(self._master)
        return self._master

    def release(self) -> None:
        self.held = False
        if self._master >= 0:
            self.listen()

    def close(self) -> None:
        if self._master >= 0:
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)
        self._master = -1

    def _read(self) -> None:
        try:
            data = os.read(self._master, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has it open any more
            data = b""
        if not data:
            self.close()
            return
        asyncio.get_running_loop().run_in_executor(None, append, self._log, self._old_log, data)


def append(log: Path, old_log: Path, data: bytes) -> None:
    """As liblxc does it: at its size the log is moved away once."""
    with log.open("ab") as file:
        file.write(data)
        full = file.tell() > CONSOLE_LOG_BYTES
    if full:
        log.replace(old_log)
