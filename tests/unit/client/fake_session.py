# SPDX-License-Identifier: Apache-2.0
"""exec and console operations of the fake server: a test scripts what happens behind their websockets."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import WSMsgType, web

from tests.unit.client.fake_server import FakeServer, background, envelope, failure, operation


class FakeSession:
    """The websockets of one operation. `script` returns the exit status; it runs when all but `control` are connected,
    as LXD's command does, and who comes after its end is refused."""

    def __init__(self, server: FakeServer, path: str, script: "Script") -> None:
        self.request: dict[str, Any] = {}
        self.commands: list[dict[str, Any]] = []
        self._script = script
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._done: asyncio.Future[int] | None = None
        self._wanted: set[str] = set()
        self._ready: asyncio.Event | None = None
        server.on("POST", path, self._post)
        server.on("GET", "/1.0/operations/session/websocket", self._websocket)
        server.on("GET", "/1.0/operations/session/wait", self._wait)

    async def receive(self, name: str) -> bytes:
        """The next data of a stream; empty at its end."""
        message = await self._sockets[name].receive()
        return message.data if message.type is WSMsgType.BINARY else b""

    async def send(self, name: str, data: bytes) -> None:
        await self._sockets[name].send_bytes(data)

    async def end(self, name: str) -> None:
        """What LXD sends at the end of a stream. A terminal's goes both ways: LXD waits until the client closes it."""
        await self._sockets[name].send_str("")
        while name == "0" and await self.receive(name):
            pass

    async def command(self) -> dict[str, Any]:
        """The next command on the control socket."""
        message = await self._sockets["control"].receive()
        self.commands.append(json.loads(message.data))
        return self.commands[-1]

    async def _post(self, request: web.Request) -> web.Response:
        self.request = await request.json()
        names = ("0", "control") if self.request.get("interactive", True) else ("0", "1", "2", "control")
        self._wanted = set(names) - {"control"}
        self._ready = asyncio.Event()
        self._done = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().create_task(self._play())
        state = operation("session", status_code=103, metadata={"fds": {name: f"secret-{name}" for name in names}})
        return background({**state, "class": "websocket"})

    @property
    def connected(self) -> list[str]:
        """Names of the websockets, in the order in which they came."""
        return list(self._sockets)

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        assert self._done is not None
        if self._done.done():
            return failure(403, "not authorized")
        name = request.query["secret"].removeprefix("secret-")
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        self._sockets[name] = socket
        assert self._ready is not None
        if self._wanted <= set(self._sockets):
            self._ready.set()
        await asyncio.wait([self._done])
        if name in ("0", "1", "2") and not socket.closed:
            await socket.close()
        return socket

    async def _play(self) -> None:
        assert self._ready is not None
        assert self._done is not None
        await self._ready.wait()
        self._done.set_result(await self._script(self))

    async def _wait(self, request: web.Request) -> web.Response:
        assert self._done is not None
        status = await self._done
        return envelope(operation("session", metadata={"return": status}))


Script = Callable[[FakeSession], Awaitable[int]]
