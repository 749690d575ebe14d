# SPDX-License-Identifier: Apache-2.0
"""Channels in memory, joined as a relaying client joins them, that break where a test wants."""

import asyncio
from collections.abc import Mapping

from flexd.operations.operations import Operation

Message = bytes | str


class Wire:
    """One end; what is sent arrives at `other`."""

    def __init__(self, cut: "Scissors") -> None:
        self.other: Wire = self
        self.aborted = False
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._cut = cut
        self._closed = False

    async def receive(self) -> Message | None:
        message = await self._inbox.get()
        if message is None:
            self._inbox.put_nowait(None)
        return message

    async def send(self, message: Message) -> None:
        self._cut.count()
        if self._closed or self.other._closed:
            raise ConnectionResetError("cut")
        self.other._inbox.put_nowait(message)
        await asyncio.sleep(0)

    async def close(self) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        for end in (self, self.other):
            end._inbox.put_nowait(None)
            end._closed = True


class Scissors:
    """Cuts all wires when `after` messages have been sent over them."""

    def __init__(self, after: int | None = None) -> None:
        self.sent = 0
        self._after = after
        self.wires: list[Wire] = []

    def count(self) -> None:
        self.sent += 1
        if self._after is not None and self.sent > self._after:
            for wire in self.wires:
                wire.hang_up()


def join(source: Operation, sink: Operation, scissors: Scissors) -> None:
    """Connect the channels of two operations, as the client of a relay does."""
    ours, theirs = _secrets(source), _secrets(sink)
    for name in ("control", "fs"):
        ends = pair(scissors)
        source.connect(ours[name], ends[0])
        sink.connect(theirs[name], ends[1])


def pair(scissors: Scissors) -> tuple[Wire, Wire]:
    here, there = Wire(scissors), Wire(scissors)
    here.other, there.other = there, here
    scissors.wires += [here, there]
    return here, there


def _secrets(operation: Operation) -> Mapping[str, str]:
    return dict(operation.metadata)
