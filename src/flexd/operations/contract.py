# SPDX-License-Identifier: Apache-2.0
"""What the rest of the house uses of operations, events, locks and plans.

The implementations are `operations.py`, `events.py`, `locks.py` and `journal.py` in this package; they are concrete
classes, used directly. This file holds the data they share.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol

from msgspec import Struct, field


class Requestor(Struct, frozen=True):
    """Who asked: LXD's lifecycle `requestor` (extension: event_lifecycle_requestor)."""

    username: str = ""
    protocol: str = "unix"
    address: str = ""


class Step(Struct, frozen=True):
    """One step of a plan: the name of an action and its arguments, plain JSON, so that it can be journalled."""

    action: str
    args: dict[str, Any] = field(default_factory=dict)


class Plan(Struct, frozen=True):
    """Steps in order. `on_crash`: what a restarted daemon does with a plan that was under way: "undo" what was done,
    or "finish" the rest (and undo if that fails)."""

    description: str
    steps: tuple[Step, ...]
    on_crash: Literal["undo", "finish"] = "undo"


class Progress(Protocol):
    """Where a step reports: merged into the operation's metadata (`{"download_progress": "45% (3MB/s)"}`)."""

    def __call__(self, metadata: Mapping[str, Any], /) -> None: ...


class Action(Protocol):
    """How a step is done and taken back.

    Both are idempotent: `do` is repeated after a crash in the middle of it, `undo` may find only half of `do` done,
    or nothing. `undo` None: there is nothing to take back.
    """

    name: str
    do: Callable[[dict[str, Any], Progress], Awaitable[None]]
    undo: Callable[[dict[str, Any]], Awaitable[None]] | None


class Channel(Protocol):
    """One websocket of an operation, as the server hands it over: messages in order; str is text, bytes is binary."""

    async def receive(self) -> bytes | str | None:
        """The next message; None when the peer has closed."""
        ...

    async def send(self, message: bytes | str) -> None: ...
    async def close(self) -> None: ...

    @property
    def aborted(self) -> bool:
        """Whether the peer vanished without a proper close (RFC 6455's 1006); known once `receive` gave None."""
        ...
