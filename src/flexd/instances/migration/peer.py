# SPDX-License-Identifier: Apache-2.0
"""The other side of a migration: messages on its control channel, streams on the others.

Both sides may end it at any time, by a message that says why or by going away; whatever is under way then ends too.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable
from typing import TypeVar

import msgspec

from flexd.api.errors import FlexdError
from flexd.instances.migration.messages import (
    BadMessage,
    Control,
    Header,
    decode_control,
    decode_header,
    encode_control,
    encode_header,
)
from flexd.operations.contract import Channel

T = TypeVar("T")

# From here on a message is no message: headers of a thousand snapshots have some hundred KiB.
_MESSAGE_BYTES = 16 << 20
# How long the other side may take over what is only a decision (its lock may be held by a snapshot that is copied).
ANSWER_S = 120.0
# How long after a stream broke the other side's reason for it may still arrive.
_REASON_S = 2.0
_GOODBYE_S = 5.0


class MigrationFailed(FlexdError):
    pass


class PeerFailed(MigrationFailed):
    """The other side gave up; the message is its own."""

    def __init__(self, message: str) -> None:
        super().__init__(f"The other server failed: {message or 'it did not say why'}")


class PeerGone(MigrationFailed):
    def __init__(self) -> None:
        super().__init__("The connection to the other server broke before the migration was complete")


class Peer:
    """Call `close` at the end, whatever happened."""

    def __init__(self, control: Channel, fs: Channel, criu: Channel | None = None) -> None:
        self.fs, self.criu = fs, criu
        self._control = control
        self._messages: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._gone = False
        self._ended = False
        self._reading = asyncio.create_task(self._read())

    # --- messages ---

    async def send_header(self, header: Header) -> None:
        await self._send(encode_header(header))

    async def receive_header(self) -> Header:
        """The other side may fail instead. That message reads as a header without anything: their first fields have
        the same number and kind, the others are unknown to each other."""
        data = await self._next(ANSWER_S)
        header = decode_header(data)
        if header == Header():
            self._check(decode_control(data))
        return header

    async def tell(self, what: msgspec.Struct) -> None:
        """Something that only two of ours tell each other."""
        await self._send(encode_control(Control(True, flexd=msgspec.json.encode(what))))

    async def hear(self, kind: type[T], timeout_s: float | None = None) -> T:
        control = decode_control(await self._next(timeout_s))
        self._check(control)
        try:
            return msgspec.json.decode(control.flexd, type=kind)
        except msgspec.DecodeError as error:
            raise BadMessage(error) from error

    async def succeed(self) -> None:
        """All that was to arrive has arrived, and is safe."""
        await self._send(encode_control(Control(True)))
        self._ended = True

    async def expect_success(self) -> None:
        self._check(decode_control(await self._next(None)))
        self._ended = True

    async def fail(self, message: str) -> None:
        """Say why it ends; who does not listen any more misses it."""
        if not self._ended:
            self._ended = True
            with contextlib.suppress(ConnectionError, MigrationFailed, TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await self._send(encode_control(Control(False, message)))

    def _check(self, control: Control) -> None:
        if not control.success:
            self._ended = True
            raise PeerFailed(control.message)

    async def _send(self, data: bytes) -> None:
        try:
            await self._control.send(data)
        except ConnectionError as error:
            raise PeerGone from error

    async def _next(self, timeout_s: float | None) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                while not self._messages:
                    await self._more()
        except TimeoutError as error:
            raise MigrationFailed(f"The other server did not answer within {timeout_s:.0f} s") from error
        return self._messages.popleft()

    async def _more(self) -> None:
        """Until something else has arrived; PeerGone if nothing will."""
        if self._gone:
            self._ended = True
            raise PeerGone
        self._news.clear()
        await self._news.wait()

    async def _read(self) -> None:
        try:
            while (message := await self._control.receive()) is not None:
                if isinstance(message, bytes) and len(message) <= _MESSAGE_BYTES:
                    self._messages.append(message)
                    self._news.set()
        finally:
            self._gone = True
            self._news.set()

    # --- meanwhile ---

    async def during(self, work: Awaitable[T]) -> T:
        """Do something that takes long, unless the other side ends it all meanwhile. Of two failures theirs is told:
        a stream that breaks off is mostly what follows from it."""
        doing = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self._bad_news())
        try:
            await asyncio.wait([doing, watching], return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                watching.result()
            if not doing.cancelled() and doing.exception() is not None:
                await asyncio.wait([watching], timeout=_REASON_S)
                if watching.done() and isinstance(watching.exception(), PeerFailed):
                    watching.result()
            return await doing
        finally:
            for task in (doing, watching):
                task.cancel()
            await asyncio.gather(doing, watching, return_exceptions=True)

    async def _bad_news(self) -> None:
        """Ends only by raising; other messages stay for those who wait for them."""
        while True:
            for data in self._messages:
                with contextlib.suppress(BadMessage):
                    self._check(decode_control(data))
            if self._ended or (self._gone and self._messages):
                # All has been said: who goes now (an LXD does so at once) leaves us to see our own side to its end.
                await asyncio.get_running_loop().create_future()
            await self._more()

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        for channel in filter(None, (self._control, self.fs, self.criu)):
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await channel.close()
