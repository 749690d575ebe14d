# SPDX-License-Identifier: Apache-2.0
"""The person's terminal: its size, raw mode, and signals as bytes in a pipe."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Any, Self


class RawTerminal:
    """A terminal in raw mode while the `with` block runs: every key reaches the other side, nothing is echoed here."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    def __enter__(self) -> Self:
        if os.isatty(self._fd):
            import termios
            import tty

            self._saved = termios.tcgetattr(self._fd)
            tty.setraw(self._fd, termios.TCSANOW)  # the default would throw away what was typed already
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is not None:
            import termios

            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)


def size_of(fd: int) -> tuple[int, int]:
    """Columns and lines; 0, 0 if it is no terminal."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return 0, 0
    return size.columns, size.lines


class SignalPipe:
    """Signals to watch with `poll` while the `with` block runs, instead of what they would do to the process."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self._signals = tuple(signals)
        self._before: dict[signal.Signals, Any] = {}
        self._read_fd = self._write_fd = -1
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in self._signals:
            self._before[number] = signal.signal(number, _ignored)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def fileno(self) -> int:
        return self._read_fd

    def read(self) -> bytes:
        """One byte for each signal that came."""
        return os.read(self._read_fd, 256)


def _ignored(number: int, frame: object) -> None:
    """A handler has to exist for the wakeup fd to be written."""
