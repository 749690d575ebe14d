# SPDX-License-Identifier: Apache-2.0
"""Progress of an operation or a transfer on a terminal. rich costs 50 ms, so it is imported at the first news."""

from __future__ import annotations

import re
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any, Self

# LXD's texts: "45% (3.10MB/s)", "rootfs: 45% (…)", "metadata: 100% (…)".
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


class OperationProgress:
    """Shows the last `…progress` of an operation's metadata as a bar; nothing until there is one."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, operation: Mapping[str, Any]) -> None:
        """Take the news of an operation."""
        text = progress_text(operation.get("metadata") or {})
        if text:
            match = _PERCENT.search(text)
            self.update(float(match[1]) if match else None, text)

    def update(self, percent: float | None, text: str) -> None:
        """Draw; a percentage that isn't known shows as a moving bar."""
        if self._bar is None:
            self._start()
        detail = " ".join(_PERCENT.sub("", text).replace("()", "").replace(":  (", " (").strip(" :").split())
        self._bar.update(self._task, completed=percent or 0, total=None if percent is None else 100, detail=detail)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        self._bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
        self._task = self._bar.add_task(self._label, total=100, detail="")
        self._bar.start()


class TransferProgress(OperationProgress):
    """Bytes sent or received by us. Nothing is drawn unless `shown`."""

    def __init__(self, label: str, total_bytes: int | None, shown: bool) -> None:
        super().__init__(label)
        self._total_bytes = total_bytes
        self._shown = shown
        self._last = -1

    def moved(self, count: int) -> None:
        """That many bytes so far."""
        percent = 100 * count / self._total_bytes if self._total_bytes else None
        step = int(percent) if percent is not None else count >> 22
        if self._shown and step != self._last:
            self._last = step
            self.update(percent, f"{count / 1e6:.1f}MB")


def progress_text(metadata: Mapping[str, Any]) -> str:
    """The progress that an operation's metadata tell, whatever the key is called."""
    for key, value in metadata.items():
        if key.endswith("progress") and isinstance(value, str):
            return value
    return ""
