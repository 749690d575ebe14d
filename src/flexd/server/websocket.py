# SPDX-License-Identifier: Apache-2.0
"""Websockets as `flexd.operations.contract.Channel`: str is a text message, bytes a binary one."""

import asyncio
import contextlib
import weakref

from aiohttp import WSCloseCode, WSMsgType, web

from flexd.api.errors import BadRequest
from flexd.host.keepalive import keep_alive

# Frames of 32-128 KiB cost the least CPU (measured with aiohttp: 0.23 s/GiB; 0.54 with 1 MiB).
_MAX_FRAME_BYTES = 128 * 1024
# Messages taken from the connection before anybody wants them, so that its end is seen.
_READ_AHEAD = 4
# A peer that does not answer a close within this time is not waited for.
_CLOSE_S = 5.0
_DATA = (WSMsgType.TEXT, WSMsgType.BINARY)
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
    """A websocket. The handler opens it and stays in `pump`; another task may meanwhile receive and send."""

    def __init__(self, request: web.Request, sockets: OpenSockets, *, heartbeat_s: float | None = None) -> None:
        self._request = request
        self._sockets = sockets
        self._opened = asyncio.Event()
        self._incoming: asyncio.Queue[bytes | str | None] = asyncio.Queue(_READ_AHEAD)
        self._closing: asyncio.Future[bool] | None = None
        self.response = web.WebSocketResponse(timeout=_CLOSE_S, heartbeat=heartbeat_s, compress=False)
        if not self.response.can_prepare(request):
            raise BadRequest("Bad Request: a websocket upgrade is expected (Upgrade: websocket)")

    async def open(self) -> None:
        await self.response.prepare(self._request)
        keep_alive(self._request.get_extra_info("socket"))
        self._sockets.add(self.response)
        self._opened.set()

    async def pump(self, *, discard: bool = False) -> None:
        """Read until the peer closes or vanishes, also while nobody receives."""
        try:
            while (message := await self.response.receive()).type not in _ENDS:
                if message.type in _DATA and not discard:
                    await self._incoming.put(message.data)
            await self._incoming.put(None)
        except asyncio.CancelledError:
            with contextlib.suppress(asyncio.QueueFull):
                self._incoming.put_nowait(None)
            raise

    async def receive(self) -> bytes | str | None:
        message = await self._incoming.get()
        if message is None:
            self._incoming.put_nowait(None)  # every later call ends too
        return message

    async def send(self, message: bytes | str) -> None:
        """ConnectionError if the peer is gone."""
        await self._opened.wait()
        if isinstance(message, str):
            await self.response.send_str(message)
            return
        for start in range(0, max(len(message), 1), _MAX_FRAME_BYTES):
            await self.response.send_bytes(message[start : start + _MAX_FRAME_BYTES])

    async def close(self) -> None:
        """Say goodbye and wait for the peer's answer. The handler ends with this too, so that the connection stays
        until another task's goodbye is answered."""
        await self._opened.wait()
        if self._closing is None:
            self._closing = asyncio.ensure_future(self.response.close())
        await asyncio.shield(self._closing)

    @property
    def aborted(self) -> bool:
        return self.response.close_code in (None, WSCloseCode.ABNORMAL_CLOSURE)
