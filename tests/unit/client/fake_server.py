# SPDX-License-Identifier: Apache-2.0
"""A server on a unix socket that says what a test tells it to say, and remembers what it was asked.

aiohttp, in a thread: an implementation of HTTP and websockets that owes nothing to the client under test.
"""

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Asked(NamedTuple):
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


def envelope(metadata: Any, *, etag: str = "") -> web.Response:
    """A synchronous answer."""
    body = {"type": "sync", "status": "Success", "status_code": 200, "metadata": metadata}
    return web.json_response(body, headers={"ETag": etag} if etag else {})


def failure(status: int, message: str) -> web.Response:
    body = {"type": "error", "error": message, "error_code": status, "metadata": None}
    return web.json_response(body, status=status)


def operation(identifier: str = "op1", **fields: Any) -> dict[str, Any]:
    """An operation's state, finished with success unless told otherwise."""
    return {
        "id": identifier,
        "class": "task",
        "description": "Working",
        "status": "Success",
        "status_code": 200,
        "metadata": None,
        "resources": {},
        "may_cancel": False,
        "err": "",
        "created_at": "2026-01-02T03:04:05Z",
        **fields,
    }


def background(state: dict[str, Any]) -> web.Response:
    """The answer that an operation has begun."""
    path = f"/1.0/operations/{state['id']}"
    body = {"type": "async", "status_code": 100, "operation": path, "metadata": state}
    return web.json_response(body, status=202, headers={"Location": path})


class FakeServer:
    """Runs while the `with` block does."""

    def __init__(self, socket_path: Path, tls: ssl.SSLContext | None = None) -> None:
        """With `tls` it is at `https_address` too."""
        self.socket_path = socket_path
        self.https_address = ""
        self._tls = tls
        self.asked: list[Asked] = []
        self._handlers: dict[tuple[str, str], Handler] = {}
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def on(self, method: str, path: str, handler: Handler) -> None:
        """Answer in a way of the test's own."""
        self._handlers[method, path] = handler

    def say(self, path: str, metadata: Any, *, method: str = "GET", etag: str = "") -> None:
        """Answer with metadata."""

        async def handler(request: web.Request) -> web.Response:
            return envelope(metadata, etag=etag)

        self.on(method, path, handler)

    def fail(self, path: str, status: int, message: str, *, method: str = "GET") -> None:
        async def handler(request: web.Request) -> web.Response:
            return failure(status, message)

        self.on(method, path, handler)

    def work(self, method: str, path: str, **fields: Any) -> None:
        """Answer with an operation, whose end is there at once."""
        state = operation(f"op{len(self._handlers)}", **fields)

        async def handler(request: web.Request) -> web.Response:
            return background({**state, "status": "Running", "status_code": 103, "err": ""})

        self.on(method, path, handler)
        self.say(f"/1.0/operations/{state['id']}/wait", state)

    def requests(self, method: str = "", path: str = "") -> list[Asked]:
        """What was asked, of one method and path if they are given."""
        return [each for each in self.asked if method in ("", each.method) and path in ("", each.path)]

    def sent(self, method: str, path: str) -> Any:
        """The document of the only request of that kind."""
        (only,) = self.requests(method, path)
        return only.document

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        handler = self._handlers.get((request.method, request.path))
        upgrade = "Upgrade" in request.headers
        body = b"" if upgrade else await request.read()
        # A path in a query must arrive quoted once; aiohttp has unquoted it here.
        asked = Asked(request.method, request.path, dict(request.query), _lower(request.headers), body)
        self.asked.append(asked)
        return failure(404, "not found") if handler is None else await handler(request)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", self._dispatch)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(self.socket_path)).start()
        if self._tls is not None:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls)
            await site.start()
            self.https_address = f"127.0.0.1:{runner.addresses[-1][1]}"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
