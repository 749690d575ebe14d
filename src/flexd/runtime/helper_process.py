# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the helper process: it is started when first needed, and again when it has died."""

import asyncio
import socket
import sys
from collections.abc import Sequence

from flexd.host.contract import HostError, Processes, Spawned
from flexd.runtime.helper import wire
from flexd.runtime.sockets import receive_with_ancillary, wait_writable

# The helper must see the modules that the daemon sees, whatever made them visible; `site` would cost it 10 ms.
_BOOT = "import sys; sys.path[:] = sys.argv[2:]; from flexd.runtime.helper.main import main; main(int(sys.argv[1]))"


_READ_BYTES = 65536
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * wire.MOST_FDS)


class HelperError(HostError):
    """What a fork of the helper could not do; `errno` as in `HostError`."""


class Connection:
    """One fork of the helper: requests and answers, one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()
        self._fds: list[int] = []

    async def send(self, message: wire.Message) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, wire.pack(message))
        except ConnectionError as error:
            raise HelperError("the helper process ended") from error

    async def receive(self) -> tuple[wire.Message, list[int]]:
        """An answer and the descriptors with it, now the caller's. An error in the helper is `HelperError`."""
        length = wire.LENGTH.unpack(await self._take(wire.LENGTH.size))[0]
        message = wire.unpack(await self._take(length))
        fds, self._fds = self._fds, []
        if "error" in message:
            raise HelperError(message["error"], message["errno"])
        return message, fds

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            try:
                data, ancillary = await receive_with_ancillary(self._socket, _READ_BYTES, _ANCILLARY_BYTES)
            except ConnectionError as error:
                raise HelperError("the helper process ended") from error
            self._fds += wire.rights(ancillary)
            if not data:
                raise HelperError("the helper process ended")
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def close(self) -> None:
        self._socket.close()


class HelperProcess:
    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._process: Spawned | None = None
        self._control: socket.socket | None = None
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Before the first request, so that it need not wait 50 ms for an interpreter."""
        async with self._lock:
            await self._running()

    async def connect(self, kind: str, fds: Sequence[int] = ()) -> Connection:
        """A new fork for a request of this kind. It duplicates the descriptors."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            async with self._lock:
                try:
                    await self._hand_over(kind, (theirs.fileno(), *fds))
                except BaseException:
                    ours.close()
                    raise
        return Connection(ours)

    async def _hand_over(self, kind: str, fds: Sequence[int]) -> None:
        control = await self._running()
        try:
            await _send_fds(control, kind.encode(), fds)
        except ConnectionError:
            # Died since it was last used: the first request finds out.
            await self._discard()
            await _send_fds(await self._running(), kind.encode(), fds)

    async def _running(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.returncode is None:
            return self._control
        await self._discard()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            argv = [sys.executable, "-I", "-S", "-c", _BOOT, str(theirs.fileno()), *(path for path in sys.path if path)]
            self._process = await self.processes.spawn(argv, stderr=2, pass_fds=[theirs.fileno()])
        self._control = ours
        return ours

    async def _discard(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control = None
        self._process = None

    async def close(self) -> None:
        """The helper ends when its socket closes; its forks end with theirs."""
        async with self._lock:
            process = self._process
            await self._discard()
        if process is not None:
            await process.wait()


async def _send_fds(control: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """A sequenced packet is sent whole or not at all."""
    while True:
        try:
            socket.send_fds(control, [data], fds)
        except BlockingIOError:
            await wait_writable(control)
        else:
            return
