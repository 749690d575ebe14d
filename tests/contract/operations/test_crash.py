# SPDX-License-Identifier: Apache-2.0
"""A daemon killed by SIGKILL at every moment of a plan: what it left is put right by the next one."""

import asyncio
import signal
import sys
from itertools import product
from pathlib import Path

import pytest

from tests.contract.operations.crashing import MOMENTS, STEPS, never, open_journal

ROOT = Path(__file__).parents[3]


async def killed(folder: Path, on_crash: str, side: str, step: int, moment: str) -> None:
    """Run the plan in a process of its own until that moment."""
    (folder / "made").mkdir()
    arguments = [str(folder), on_crash, side, str(step), moment]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.contract.operations.crashing", *arguments, cwd=ROOT
    )
    assert await process.wait() == -signal.SIGKILL


async def recovered(folder: Path) -> list[str]:
    """The files that are there after recovery; nothing may be left in the journal."""
    journal = await open_journal(folder, never)
    assert len(await journal._rows()) == 1
    assert await journal.recover() == []
    assert await journal._rows() == []
    await journal.close()
    return sorted(str(path.relative_to(folder / "made")) for path in (folder / "made").rglob("*"))


@pytest.mark.parametrize(("side", "step", "moment"), list(product(("do", "undo"), range(STEPS), MOMENTS)))
async def test_a_crash_is_undone(side: str, step: int, moment: str, tmp_path: Path) -> None:
    await killed(tmp_path, "undo", side, step, moment)
    assert await recovered(tmp_path) == []


@pytest.mark.parametrize(("step", "moment"), list(product(range(STEPS), MOMENTS)))
async def test_a_crash_is_finished(step: int, moment: str, tmp_path: Path) -> None:
    await killed(tmp_path, "finish", "do", step, moment)
    expected = [path for number in range(STEPS) for path in (f"{number}", f"{number}/file")]
    assert await recovered(tmp_path) == expected


@pytest.mark.parametrize("step", range(STEPS))
async def test_an_undo_under_way_goes_on_even_if_the_plan_would_be_finished(step: int, tmp_path: Path) -> None:
    await killed(tmp_path, "finish", "undo", step, "half")
    assert await recovered(tmp_path) == []
