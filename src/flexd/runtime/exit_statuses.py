# SPDX-License-Identifier: Apache-2.0
"""What containers' inits exited with: their monitors (we are nobody's parent) tell whoever reads a FIFO of liblxc's.

Monitors write without waiting, so while no daemon runs a status is lost, and nothing else."""

import asyncio
import os
import stat
import struct
from pathlib import Path

# liblxc's own place for it (src/lxc/monitor.c: lxc_monitor_fifo_name), below the runtime directory of root.
_RUN = Path("/run/lxc")
# struct lxc_msg of src/lxc/monitor.h: kind, name, value. A write of less than PIPE_BUF bytes is whole (pipe(7)).
_MESSAGE = struct.Struct("=i256si")
_EXIT = 2


class ExitStatuses:
    """`directory`: the one that liblxc keeps the containers in (lxc.lxcpath)."""

    def __init__(self, directory: Path, run: Path = _RUN) -> None:
        self._run = run
        self._path = run / str(directory.absolute()).lstrip("/") / "monitor-fifo"
        self._fd = -1
        self._known: dict[str, int] = {}

    async def open(self) -> None:
        """Read from now on. Before any container that matters ends."""
        self._fd = await asyncio.to_thread(self._open)
        asyncio.get_running_loop().add_reader(self._fd, self._drain)

    def _open(self) -> int:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._path.exists() and not stat.S_ISFIFO(self._path.lstat().st_mode):
            self._path.unlink()
        if not self._path.exists():
            os.mkfifo(self._path, 0o600)
        # Also as a writer of it: no end of file whenever the last monitor closes it.
        return os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def forget(self, name: str) -> None:
        """It is started anew."""
        self._known.pop(name, None)

    def of(self, name: str) -> int | None:
        """Of a container whose monitor has ended. None: a signal or reboot(2) ended its init, or nobody listened."""
        self._drain()
        status = self._known.get(name)
        return os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None

    def _drain(self) -> None:
        while self._fd >= 0:
            try:
                message = os.read(self._fd, _MESSAGE.size)
            except BlockingIOError:
                return
            if len(message) == _MESSAGE.size:
                kind, name, value = _MESSAGE.unpack(message)
                if kind == _EXIT:
                    self._known[name.partition(b"\0")[0].decode(errors="replace")] = value

    async def close(self) -> None:
        if self._fd < 0:
            return
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        self._path.unlink(missing_ok=True)
        for directory in self._path.parents:
            if not directory.is_relative_to(self._run) or any(directory.iterdir()):
                return
            directory.rmdir()
