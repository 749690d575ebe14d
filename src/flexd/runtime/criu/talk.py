# SPDX-License-Identifier: Apache-2.0
"""One CRIU that works for us: a socket on which it reports its stages and waits at each for our word.

It waits on the socket alone, so the daemon's death is an answer, too: no. A dump that is held then lets its container
go on, a restore that is held ends what it has made."""

import socket

from flexd.runtime.criu import options
from flexd.runtime.sockets import receive_with_ancillary, wait_writable

_MESSAGE_BYTES = 65536


class Silent(Exception):
    """CRIU ended without an answer."""


class Talk:
    """Our side. `theirs` is CRIU's, to be passed to the program and closed here once it runs."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)

    async def send(self, message: bytes) -> None:
        while True:
            try:
                self._ours.send(message)
            except BlockingIOError:
                await wait_writable(self._ours)
            except ConnectionError as error:
                raise Silent from error
            else:
                return

    async def receive(self) -> options.Answer:
        try:
            data, _ = await receive_with_ancillary(self._ours, _MESSAGE_BYTES, 0)
        except ConnectionError as error:
            raise Silent from error
        if not data:
            raise Silent
        return options.parse(data)

    async def until(self, stage: str) -> options.Answer:
        """Agree to every stage before this one; what comes then, unanswered: this stage, or the result."""
        while True:
            answer = await self.receive()
            if answer.stage in ("", stage):
                return answer
            await self.send(options.go_on(True))

    async def result(self, *, decide: bool | None = None) -> options.Answer:
        """Answer the stage that is waited at (None: none is), agree to the rest, and see how it ends."""
        if decide is not None:
            await self.send(options.go_on(decide))
        return await self.until("")

    def close(self) -> None:
        self.theirs.close()
        self._ours.close()
