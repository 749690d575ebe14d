# SPDX-License-Identifier: Apache-2.0
"""Plans carried out, taken back and recovered, with actions that note what they did."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from flexd.api.errors import Conflict
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.journal import Journal, UnknownAction

STEPS = 4


class World:
    """What the actions change: `made` holds the numbers of the steps that are in effect."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.calls: list[tuple[str, int]] = []
        self.fail_do: set[int] = set()
        self.fail_undo: set[int] = set()
        self.reached = asyncio.Event()
        self.hang_at: int | None = None

    async def make(self, args: dict[str, Any], progress: Progress) -> None:
        number = args["number"]
        self.calls.append(("do", number))
        progress({"step": number})
        if number in self.fail_do:
            raise Conflict(f"step {number} failed")
        if number == self.hang_at:
            self.reached.set()
            await asyncio.Event().wait()
        if number not in self.made:
            self.made.append(number)

    async def unmake(self, args: dict[str, Any]) -> None:
        number = args["number"]
        self.calls.append(("undo", number))
        if number in self.fail_undo:
            raise OSError(f"step {number} is stuck")
        if number in self.made:
            self.made.remove(number)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def journal(tmp_path: Path, world: World) -> AsyncIterator[Journal]:
    journal = await Journal.open(tmp_path / "journal.db")
    journal.register("make", world.make, world.unmake)
    yield journal
    await journal.close()


def plan_of(steps: int = STEPS, on_crash: Literal["undo", "finish"] = "undo") -> Plan:
    return Plan("Making", tuple(Step("make", {"number": number}) for number in range(steps)), on_crash)


async def rows(journal: Journal) -> list[tuple[str, int]]:
    return [(row.state, row.position) for row in await journal._rows()]


async def test_all_steps_are_done_and_forgotten(journal: Journal, world: World) -> None:
    seen: list[Mapping[str, Any]] = []
    await journal.run(plan_of(), seen.append)
    assert world.made == [0, 1, 2, 3]
    assert seen == [{"step": number} for number in range(4)]
    assert await rows(journal) == []


async def test_an_empty_plan_is_done(journal: Journal) -> None:
    await journal.run(Plan("Nothing", ()))


async def test_the_row_is_there_before_the_step(journal: Journal) -> None:
    seen: list[list[tuple[str, int]]] = []

    async def look(plan: Plan, position: int, step: Step) -> None:
        assert (plan.description, step.args) == ("Making", {"number": position})
        seen.append(await rows(journal))

    journal.before_step = look
    await journal.run(plan_of())
    assert seen == [[("doing", number)] for number in range(STEPS)]


@pytest.mark.parametrize("failing", range(STEPS))
async def test_a_failing_step_undoes_itself_and_those_before(failing: int, journal: Journal, world: World) -> None:
    world.fail_do = {failing}
    with pytest.raises(Conflict, match=f"step {failing} failed"):
        await journal.run(plan_of())
    assert world.calls[failing + 1 :] == [("undo", number) for number in range(failing, -1, -1)]
    assert world.made == []
    assert await rows(journal) == []


@pytest.mark.parametrize("failing", range(STEPS))
async def test_an_injected_error_undoes_as_well(failing: int, journal: Journal, world: World) -> None:
    async def inject(_plan: Plan, position: int, _step: Step) -> None:
        if position == failing:
            raise OSError("injected")

    journal.before_step = inject
    with pytest.raises(OSError, match="injected"):
        await journal.run(plan_of())
    assert world.made == []
    assert await rows(journal) == []


@pytest.mark.parametrize("at", range(STEPS))
async def test_a_cancelled_plan_is_undone(at: int, journal: Journal, world: World) -> None:
    world.hang_at = at
    task = asyncio.create_task(journal.run(plan_of()))
    await world.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.made == []
    assert await rows(journal) == []


@pytest.mark.parametrize("turns", range(40))
async def test_cancelled_at_any_turn_of_the_loop_it_is_all_or_nothing(
    turns: int, journal: Journal, world: World
) -> None:
    task = asyncio.create_task(journal.run(plan_of()))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert world.made == ([] if task.cancelled() else [0, 1, 2, 3])
    assert await rows(journal) == []


async def test_cancelling_again_does_not_stop_the_undo(journal: Journal, world: World) -> None:
    world.hang_at = 2
    task = asyncio.create_task(journal.run(plan_of()))
    await world.reached.wait()
    for _ in range(20):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task])
    assert world.made == []
    assert await rows(journal) == []


async def test_an_undo_that_fails_is_noted_and_the_others_are_done(journal: Journal, world: World) -> None:
    world.fail_do, world.fail_undo = {3}, {1}
    with pytest.raises(Conflict) as caught:
        await journal.run(plan_of())
    assert caught.value.__notes__ == ["Undoing also failed: make: step 1 is stuck"]
    assert world.made == [1]
    (failed,) = await journal.failed()
    assert (failed.plan, failed.state, failed.error) == (plan_of(), "failed", "make: step 1 is stuck")
    await journal.forget(failed.token)
    assert await journal.failed() == []


async def test_an_action_without_undo(journal: Journal, world: World) -> None:
    journal.register("log", world.make)
    world.fail_do = {1}
    steps = (Step("make", {"number": 0}), Step("log", {"number": 5}), Step("make", {"number": 1}))
    with pytest.raises(Conflict):
        await journal.run(Plan("Mixed", steps))
    assert world.made == [5]


async def test_an_unknown_action_is_refused_before_anything_is_done(journal: Journal, world: World) -> None:
    with pytest.raises(UnknownAction, match='"Odd": unknown action "fly"'):
        await journal.run(Plan("Odd", (Step("make", {"number": 0}), Step("fly"))))
    assert world.calls == []
    assert await rows(journal) == []


async def test_an_action_has_one_meaning(journal: Journal, world: World) -> None:
    with pytest.raises(ValueError, match="twice"):
        journal.register("make", world.make)


async def test_plans_run_side_by_side(journal: Journal, world: World) -> None:
    await asyncio.gather(
        *(journal.run(Plan(f"p{number}", (Step("make", {"number": number}),))) for number in range(20))
    )
    assert sorted(world.made) == list(range(20))


async def test_actions_see_what_they_would_see_after_a_crash(journal: Journal) -> None:
    seen: list[dict[str, Any]] = []

    async def look(args: dict[str, Any], _progress: Progress) -> None:
        seen.append(args)

    journal.register("look", look)
    await journal.run(Plan("Looking", (Step("look", {"ids": (1, 2)}),)))
    assert seen == [{"ids": [1, 2]}]


async def crash(path: Path, plan: Plan, world: World, at: int) -> None:
    """Leave the journal as a daemon leaves it that dies in step `at`: a copy, taken there, takes its place."""
    journal = await Journal.open(path)
    journal.register("make", world.make, world.unmake)
    journal.register("gone", world.make, world.unmake)

    async def copy(_plan: Plan, position: int, _step: Step) -> None:
        if position == at:
            await journal._database.run(lambda db: db.execute(f"VACUUM INTO '{path}.copy'"))

    journal.before_step = copy
    await journal.run(plan)
    await journal.close()
    for leftover in path.parent.glob(f"{path.name}-*"):
        await asyncio.to_thread(leftover.unlink)
    await asyncio.to_thread(Path(f"{path}.copy").rename, path)
    world.made = [number for number in world.made if number < at]
    world.calls.clear()


async def reopened(path: Path, world: World) -> Journal:
    journal = await Journal.open(path)
    journal.register("make", world.make, world.unmake)
    return journal


@pytest.mark.parametrize("at", range(STEPS))
async def test_recovery_undoes(at: int, tmp_path: Path, world: World) -> None:
    await crash(tmp_path / "j", plan_of(), world, at)
    journal = await reopened(tmp_path / "j", world)
    assert await rows(journal) == [("doing", at)]
    assert await journal.recover() == []
    assert world.calls == [("undo", number) for number in range(at, -1, -1)]
    assert world.made == []
    assert await rows(journal) == []
    assert await journal.recover() == []
    await journal.close()


@pytest.mark.parametrize("at", range(STEPS))
async def test_recovery_finishes(at: int, tmp_path: Path, world: World) -> None:
    await crash(tmp_path / "j", plan_of(on_crash="finish"), world, at)
    journal = await reopened(tmp_path / "j", world)
    await journal.recover()
    assert world.made == [0, 1, 2, 3]
    assert await rows(journal) == []
    await journal.close()


async def test_what_cannot_be_finished_is_undone(
    tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await crash(tmp_path / "j", plan_of(on_crash="finish"), world, 1)
    journal = await reopened(tmp_path / "j", world)
    world.fail_do = {2}
    await journal.recover()
    assert world.made == []
    assert await rows(journal) == []
    assert "step 2 failed" in caplog.text
    await journal.close()


async def test_an_action_unknown_after_a_crash_is_kept_and_the_rest_undone(
    tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    steps = (Step("make", {"number": 0}), Step("gone", {"number": 1}), Step("make", {"number": 2}))
    await crash(tmp_path / "j", Plan("Old", steps), world, 2)
    journal = await reopened(tmp_path / "j", world)
    (failed,) = await journal.recover()
    assert world.made == [1]
    assert str(failed) == '"Old": gone: Failed running "Old": unknown action "gone"'
    world.calls.clear()
    assert await journal.recover() == await journal.failed() == [failed]
    assert world.calls == []
    await journal.close()


async def test_an_undo_goes_on_where_it_was_interrupted(tmp_path: Path, world: World) -> None:
    await crash(tmp_path / "j", plan_of(), world, 3)
    connection = sqlite3.connect(tmp_path / "j")
    connection.execute("UPDATE plan SET state = 'undoing', position = 1, error = 'make: stuck'")
    connection.commit()
    connection.close()
    journal = await reopened(tmp_path / "j", world)
    await journal.recover()
    assert world.calls == [("undo", 1), ("undo", 0)]
    (failed,) = await journal.failed()
    assert failed.error == "make: stuck"
    await journal.close()


async def test_a_full_disk_does_not_stop_an_undo(journal: Journal, world: World) -> None:
    async def fill(_plan: Plan, position: int, _step: Step) -> None:
        if position == 2:
            await journal._database.run(lambda db: db.execute("PRAGMA query_only = ON"))

    journal.before_step = fill
    with pytest.raises(Exception, match="readonly"):
        await journal.run(plan_of())
    assert world.made == []
    assert await rows(journal) == [("doing", 2)]
