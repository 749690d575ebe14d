# SPDX-License-Identifier: Apache-2.0
"""How far a migration is, in LXD's words: `{"fs_progress": "main: 1.20GB (310MB/s)"}`."""

import time
from collections.abc import Callable

from flexd.operations.contract import Progress

_UNITS = ("B", "kB", "MB", "GB", "TB")


class Meter:
    def __init__(self, progress: Progress, key: str = "fs_progress") -> None:
        self._progress, self._key = progress, key

    def of(self, name: str) -> Callable[[int], None]:
        """For one stream; the empty name is the instance's (or volume's) own."""
        started, total = time.monotonic(), 0
        label = name or "main"

        def count(moved: int) -> None:
            nonlocal total
            total += moved
            rate = total / max(time.monotonic() - started, 0.001)
            self._progress({self._key: f"{label}: {size_text(total)} ({size_text(rate)}/s)"})

        return count

    def quietly(self, moved: int) -> None:
        """For what is not worth telling."""


def size_text(count: float) -> str:
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.2f}{unit}" if unit != "B" else f"{int(count)}B"
        count /= 1000
    return f"{count:.2f}{_UNITS[-1]}"
