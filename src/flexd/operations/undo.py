# SPDX-License-Identifier: Apache-2.0
"""The undo stack: what was done so far, taken back in reverse order when a later step fails."""

import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)


class Undo:
    """`async with Undo() as undo:` - push the way back of each step before the next begins.

    Leaving with an exception runs the stack in reverse; leaving without one forgets it. An error in an undo is logged
    and added to the first error as a note, never in its place. Cancellation counts as failure and passes through.
    """

    def __init__(self) -> None:
        self._stack: list[tuple[Callable[..., Awaitable[Any]], tuple[Any, ...]]] = []

    def push(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self._stack.append((function, args))

    async def __aenter__(self) -> "Undo":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error is None:
            return
        while self._stack:
            function, args = self._stack.pop()
            try:
                await function(*args)
            except Exception as failure:  # border: an undo that fails must not hide the error it follows
                log.exception("undo failed: %s%r", getattr(function, "__qualname__", function), args)
                error.add_note(f"Undoing also failed: {failure}")
