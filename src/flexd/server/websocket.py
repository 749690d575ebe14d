# SPDX-License-Identifier: Apache-2.0
"""Websockets as `flexd.operations.contract.Channel`: str is a text message, bytes a binary one."""

import asyncio
import weakref

from aiohttp import WSCloseCode, WSMsgType, web

from flexd.api.errors import BadRequest

# Frames of 32-128 KiB cost the least CPU (measured; see docs/decisions).
_MAX_FRAME_BYTES = 128 * 1024
_ENDS = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


class OpenSockets:
    """The websockets that are open now, so that a stopping server can close them."""

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[web.WebSocketResponse] = weakref.WeakSet()

    def add(self, websocket: web.WebSocketResponse) -> None:
        self._sockets.add(websocket)

    async def close_all(self) -> None:
        for websocket in list(self._sockets):
            await websocket.close(code=WSCloseCode.GOING_AWAY, message=b"server shutdown")


class WebSocketChannel:
    """A websocket, usable by another task as soon as `open` has answered the upgrade."""

    def __init__(self, request: web.Request, sockets: OpenSockets, *, heartbeat_s: float | None = None) -> None:
        self._request = request
        self._sockets = sockets
        self._opened = asyncio.Event()
        self._closed = asyncio.Event()
        self.response = web.WebSocketResponse(heartbeat=heartbeat_s, compress=False)
        if not self.response.can_prepare(request):
            raise BadRequest("Bad Request: a websocket upgrade is expected (Upgrade: websocket)")

    async def open(self) -> None:
        await self.response.prepare(self._request)
        self._sockets.add(self.response)
        self._opened.set()

    async def receive(self) -> bytes | str | None:
        await self._opened.wait()
        while True:
            message = await self.response.receive()
            if message.type is WSMsgType.TEXT or message.type is WSMsgType.BINARY:
                data: bytes | str = message.data
                return data
            if message.type in _ENDS:
                self._closed.set()
                return None

    async def send(self, message: bytes | str) -> None:
        """ConnectionError if the peer is gone."""
        await self._opened.wait()
        if isinstance(message, str):
            await self.response.send_str(message)
            return
        for start in range(0, max(len(message), 1), _MAX_FRAME_BYTES):
            await self.response.send_bytes(message[start : start + _MAX_FRAME_BYTES])

    async def close(self) -> None:
        await self._opened.wait()
        await self.response.close()
        self._closed.set()

    @property
    def aborted(self) -> bool:
        return self.response.close_code in (None, WSCloseCode.ABNORMAL_CLOSURE)

    async def wait_closed(self) -> None:
        await self._closed.wait()
