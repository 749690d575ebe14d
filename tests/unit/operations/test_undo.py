# SPDX-License-Identifier: Apache-2.0
"""The undo stack."""

import asyncio

import pytest

from flexd.operations.undo import Undo


class Recorder:
    def __init__(self) -> None:
        self.undone: list[str] = []

    async def undo(self, name: str) -> None:
        self.undone.append(name)

    async def fail(self) -> None:
        raise OSError("stuck")


async def test_success_undoes_nothing() -> None:
    recorder = Recorder()
    async with Undo() as undo:
        undo.push(recorder.undo, "a")
    assert recorder.undone == []


async def test_failure_undoes_in_reverse_and_keeps_the_first_error() -> None:
    recorder = Recorder()

    async def work() -> None:
        async with Undo() as undo:
            undo.push(recorder.undo, "a")
            undo.push(recorder.fail)
            undo.push(recorder.undo, "b")
            raise KeyError("first")

    with pytest.raises(KeyError) as caught:
        await work()
    assert recorder.undone == ["b", "a"]
    assert caught.value.__notes__ == ["Undoing also failed: stuck"]


async def test_cancellation_undoes_and_passes() -> None:
    recorder = Recorder()

    async def work() -> None:
        async with Undo() as undo:
            undo.push(recorder.undo, "a")
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.undone == ["a"]
