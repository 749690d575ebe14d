# SPDX-License-Identifier: Apache-2.0
"""Carries out plans, with a row in a small SQLite file around every step, so that a crash leaves nothing half-made.

"Doing step k" implies that the steps before k are done: one write a step. WAL with synchronous=NORMAL survives the
daemon's death at any moment; after a power cut the last few rows may be missing.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from flexd.api.errors import FlexdError
from flexd.operations.contract import Plan, Progress, Step
from flexd.store.database import Database, DatabaseFailed

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"

Do = Callable[[dict[str, Any], Progress], Awaitable[None]]
Take = Callable[[dict[str, Any]], Awaitable[None]]
Hook = Callable[[Plan, int, Step], Awaitable[None]]


class UnknownAction(FlexdError):
    """A plan names an action that this daemon does not have, as after going back to an older version."""

    def __init__(self, plan: Plan, action: str) -> None:
        self.action = action
        super().__init__(f'Failed running "{plan.description}": unknown action "{action}"')


class Unfinished(Struct, frozen=True):
    """A plan that a crash interrupted or that could not be taken back."""

    token: str
    plan: Plan
    state: Literal["doing", "undoing", "failed"] = "doing"
    position: int = 0
    error: str = ""

    def __str__(self) -> str:
        return f'"{self.plan.description}": {self.error or self.state}'


class _Registered(Struct, frozen=True):
    """An action, as `contract.Action` describes it."""

    name: str
    do: Do
    undo: Take | None


def ignore_progress(_metadata: Mapping[str, Any]) -> None:
    """For plans that nobody watches."""


class Journal:
    """`await Journal.open(path)`, `register` every action, `await recover()` before anything else runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._actions: dict[str, _Registered] = {}
        # For fault injection in tests: called after the row is written, before the step is done or undone.
        self.before_step: Hook | None = None
        self.before_undo: Hook | None = None

    @classmethod
    async def open(cls, path: Path) -> "Journal":
        return cls(await Database.open(path, MIGRATIONS, "NORMAL"))

    async def close(self) -> None:
        await self._database.close()

    def register(self, name: str, do: Do, undo: Take | None = None) -> None:
        """Both must be idempotent (`contract.Action`); `undo` None: there is nothing to take back."""
        if name in self._actions:
            raise ValueError(f'the action "{name}" is registered twice')
        self._actions[name] = _Registered(name, do, undo)

    async def run(self, plan: Plan, progress: Progress = ignore_progress) -> None:
        """Do every step. If one fails or the caller is cancelled, undo it and those before, then raise that error.

        Returns normally if the cancellation came after the last step: then all is done.
        """
        for step in plan.steps:
            self._action(plan, step)
        if not plan.steps:
            return
        token = str(uuid.uuid4())
        encoded = msgspec.json.encode(plan)
        try:
            await self._write("INSERT INTO plan (token, plan, state) VALUES (?, ?, 'doing')", token, encoded)
        except asyncio.CancelledError:
            await _to_the_end(self.forget(token))
            raise
        # Decoded again, so that actions see the same after a crash as without one.
        await self._do(Unfinished(token, msgspec.json.decode(encoded, type=Plan)), progress)

    async def recover(self) -> list[Unfinished]:
        """Undo or finish what was under way when the daemon died, in the order in which it was begun. A plan that
        cannot be put right stays as `failed` and does not keep the daemon from starting; returns those, old and new."""
        for row in await self._rows():
            if row.state == "failed":
                continue
            log.warning('Recovering "%s": %s step %d', row.plan.description, row.state, row.position)
            try:
                if row.state == "doing" and row.plan.on_crash == "finish":
                    await self._do(row, ignore_progress)
                else:
                    await self._undo(row, row.position, None)
            except Exception:  # border: the daemon must start; what could not be undone is in the row
                log.exception('Failed finishing "%s" after a crash; it was undone', row.plan.description)
        return await self.failed()

    async def failed(self) -> list[Unfinished]:
        """Plans that could not be taken back. They are never tried again by themselves: by now their names may
        belong to something new."""
        return [row for row in await self._rows() if row.state == "failed"]

    async def forget(self, token: str) -> None:
        """Drop a plan: it is done, or somebody has cleaned up a failed one by hand."""
        await self._write("DELETE FROM plan WHERE token = ?", token)

    async def _do(self, row: Unfinished, progress: Progress) -> None:
        position = row.position
        try:
            for position in range(row.position, len(row.plan.steps)):
                step = row.plan.steps[position]
                if position > row.position:
                    await self._write("UPDATE plan SET position = ? WHERE token = ?", position, row.token)
                if self.before_step is not None:
                    await self.before_step(row.plan, position, step)
                await self._action(row.plan, step).do(step.args, progress)
            # From here on the plan is done: a cancellation comes too late, a failure to say so undoes all.
            await _to_the_end(self.forget(row.token))
        except BaseException as error:
            await _to_the_end(self._undo(row, position, error))
            raise

    async def _undo(self, row: Unfinished, start: int, error: BaseException | None) -> None:
        """Take back the steps from `start` down. An undo that fails is noted and does not stop the others."""
        failures = row.error
        for position in range(start, -1, -1):
            await self._note("UPDATE plan SET state = 'undoing', position = ? WHERE token = ?", position, row.token)
            failure = await self._undo_step(row.plan, position)
            if failure:
                failures = "; ".join(filter(None, (failures, failure)))
                await self._note("UPDATE plan SET error = ? WHERE token = ?", failures, row.token)
                if error is not None:
                    error.add_note(f"Undoing also failed: {failure}")
        if failures:
            await self._note("UPDATE plan SET state = 'failed' WHERE token = ?", row.token)
        else:
            await self._note("DELETE FROM plan WHERE token = ?", row.token)

    async def _undo_step(self, plan: Plan, position: int) -> str:
        """The error's text, "" if there was none."""
        step = plan.steps[position]
        try:
            if self.before_undo is not None:
                await self.before_undo(plan, position, step)
            undo = self._action(plan, step).undo
            if undo is not None:
                await undo(step.args)
        except Exception as failure:  # border: an undo that fails must not keep the others from being done
            log.exception('Failed undoing "%s" of "%s"', step.action, plan.description)
            return f"{step.action}: {failure}"
        return ""

    def _action(self, plan: Plan, step: Step) -> _Registered:
        action = self._actions.get(step.action)
        if action is None:
            raise UnknownAction(plan, step.action)
        return action

    async def _rows(self) -> list[Unfinished]:
        rows = await self._database.run(
            lambda db: db.execute("SELECT token, plan, state, position, error FROM plan ORDER BY id").fetchall()
        )
        return [
            Unfinished(token, msgspec.json.decode(plan, type=Plan), state, position, error)
            for token, plan, state, position, error in rows
        ]

    async def _write(self, statement: str, *values: Any) -> None:
        await self._database.run(lambda connection: connection.execute(statement, values))

    async def _note(self, statement: str, *values: Any) -> None:
        """Write, on the way back: a full disk must not stop an undo, which may well be what frees it."""
        try:
            await self._write(statement, *values)
        except DatabaseFailed:
            log.exception("Failed writing the journal while undoing")


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Carry out `work` even if the caller is cancelled meanwhile; the cancellation is dropped."""
    task = asyncio.create_task(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    task.result()
