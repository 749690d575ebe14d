# SPDX-License-Identifier: Apache-2.0
"""A process that runs a plan of real effects (folders with a file in them) and kills itself at a given moment.

`python -m tests.contract.operations.crashing FOLDER ON_CRASH SIDE STEP MOMENT`
"""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.journal import Journal

STEPS = 3
MOMENTS = ("before", "half", "after")
Crash = Callable[[str, int, str], None]


def never(_side: str, _step: int, _moment: str) -> None:
    """The crash of a daemon that lives."""


class Folders:
    """The actions: a folder for each step, made in two moves and removed in two."""

    def __init__(self, root: Path, crash: Crash) -> None:
        self._root = root
        self._crash = crash

    async def make(self, args: dict[str, Any], _progress: Progress) -> None:
        await asyncio.to_thread(self._make, args["step"])

    async def unmake(self, args: dict[str, Any]) -> None:
        await asyncio.to_thread(self._unmake, args["step"])

    async def fail(self, args: dict[str, Any], _progress: Progress) -> None:
        raise OSError("the last step fails, so that all is undone")

    def _make(self, step: int) -> None:
        self._crash("do", step, "before")
        (self._root / str(step)).mkdir(exist_ok=True)
        self._crash("do", step, "half")
        (self._root / str(step) / "file").write_text("made")
        self._crash("do", step, "after")

    def _unmake(self, step: int) -> None:
        self._crash("undo", step, "before")
        (self._root / str(step) / "file").unlink(missing_ok=True)
        self._crash("undo", step, "half")
        shutil.rmtree(self._root / str(step), ignore_errors=True)
        self._crash("undo", step, "after")


async def open_journal(folder: Path, crash: Crash) -> Journal:
    journal = await Journal.open(folder / "journal.db")
    folders = Folders(folder / "made", crash)
    journal.register("make", folders.make, folders.unmake)
    journal.register("fail", folders.fail)
    return journal


async def run(folder: Path, on_crash: Any, side: str, step: int, moment: str) -> None:
    def crash(*now: object) -> None:
        if now == (side, step, moment):
            os.kill(os.getpid(), signal.SIGKILL)

    journal = await open_journal(folder, crash)
    steps = [Step("make", {"step": number}) for number in range(STEPS)]
    if side == "undo":
        steps.append(Step("fail"))
    await journal.run(Plan("Making folders", tuple(steps), on_crash))


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]))
