# SPDX-License-Identifier: Apache-2.0
"""The log files of one container: what liblxc says, what init wrote to its console. Blocking."""

import os
import shutil
from pathlib import Path

from msgspec import Struct

from flexd.runtime.paths import ContainerPaths

# How much of a failed start goes into the error: what fits on a screen.
_LAST_LINES = 12
_TAIL_BYTES = 16 * 1024


class Logs(Struct, frozen=True):
    paths: ContainerPaths

    def begin(self) -> None:
        """A new run: the console's log is of this run, liblxc's of this one and the one before (LXD's `.old`)."""
        self.paths.old_console_log.unlink(missing_ok=True)
        self.clear_console()
        if self.paths.log.exists():
            self.paths.log.replace(self.paths.old_log)

    def console(self) -> bytes:
        """Both parts of the console's log, the older first."""
        return _read(self.paths.old_console_log) + _read(self.paths.console_log)

    def clear_console(self) -> None:
        """The running monitor appends, so cutting the file short is all it takes."""
        self.paths.old_console_log.unlink(missing_ok=True)
        if self.paths.console_log.exists():
            os.truncate(self.paths.console_log, 0)

    def files(self) -> list[Path]:
        return sorted(self.paths.logs.iterdir()) if self.paths.logs.is_dir() else []

    def note(self, text: str) -> None:
        with self.paths.log.open("a") as file:
            file.write(f"flexd {self.paths.name} {text}\n")

    def last_words(self, said: str) -> str:
        """For the error of a failed start: liblxc's errors, else what the program said, then the console's end."""
        errors = [line for line in _lines(self.paths.log) if " ERROR " in line]
        parts = "\n".join(errors[-_LAST_LINES:]) or said
        console = "\n".join(_lines(self.paths.console_log)[-_LAST_LINES:])
        text = f"; log: {parts}" if parts else ""
        return text + (f"; console: {console}" if console else "")

    def remove(self) -> None:
        if self.paths.logs.is_dir():
            shutil.rmtree(self.paths.logs)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _lines(path: Path) -> list[str]:
    """The last lines that say something; a terminal's line ends and control sequences are left to the reader."""
    text = _read(path)[-_TAIL_BYTES:].decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
