# SPDX-License-Identifier: Apache-2.0
"""The listening socket of the guest API: every connection is identified before it may say anything.

One socket for all instances, in a directory that is bound into each of them: a restarted daemon makes a new socket
there, and containers that run see it.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from flexd.api.errors import FlexdError
from flexd.instances.guest import Guest, GuestInstance
from flexd.server.guest.routes import ROUTES, SOCKETS, Handler, error
from flexd.server.websocket import OpenSockets

log = logging.getLogger(__name__)

SOCKET_NAME = "sock"
_BACKLOG = 128
# Connections of one instance at a time; more than any guest's tools hold, and too few to use up the daemon's files.
_MOST_OF_ONE = 32
# Connections being identified or refused at a time; more wait in the kernel's queue.
_MOST_UNKNOWN = 64
# A peer that is refused may finish its request, so that it reads the answer instead of a broken pipe.
_REFUSAL_S = 2.0
_MAX_BODY_BYTES = 64 * 1024


class GuestServer:
    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._asking: dict[RequestHandler, GuestInstance] = {}
        # A handler that waits for events ends with its client.
        self._runner = web.AppRunner(
            self._app(), handle_signals=False, access_log=None, shutdown_timeout=1.0, handler_cancellation=True
        )
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._unknown: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_MOST_UNKNOWN)

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[_errors], client_max_size=_MAX_BODY_BYTES)
        app[SOCKETS] = OpenSockets()
        app.on_shutdown.append(_close_sockets)
        for method, path, handler in ROUTES:
            app.router.add_route(method, path, self._bind(handler))
        return app

    def _bind(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await handler(request, self._guest, self._asking[request.protocol])

        return handle

    async def start(self, directory: Path) -> None:
        """Listen at `directory/sock`, replacing the socket of a daemon before."""
        await self._runner.setup()
        self._listener = await asyncio.to_thread(_listen, directory / SOCKET_NAME)
        self._accepting = asyncio.create_task(self._accept(self._listener), name="guest API")

    async def stop(self) -> None:
        """No new connections, and those that are open end."""
        if self._accepting is not None:
            self._accepting.cancel()
        for task in self._unknown:
            task.cancel()
        await asyncio.gather(*self._unknown, *([self._accepting] if self._accepting else []), return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()

    def disconnect(self, project: str, name: str) -> None:
        """Close what an instance has open: a container cannot be moved live with a connection to its host."""
        for handler in self._open(project, name):
            handler.force_close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as failure:
                self._slots.release()
                # Out of descriptors (EMFILE): others will be closed meanwhile.
                log.warning("the guest API cannot accept a connection: %s", failure)
                await asyncio.sleep(1)
                continue
            except BaseException:
                self._slots.release()
                raise
            task = asyncio.create_task(self._admit(connection))
            self._unknown.add(task)
            task.add_done_callback(self._settled)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._unknown.discard(task)
        self._slots.release()
        if not task.cancelled() and task.exception() is not None:
            log.error("a connection to the guest API failed", exc_info=task.exception())

    async def _admit(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            asking = await self._guest.identify(connection)
            if asking is None:
                await _refuse(connection, HTTPStatus.FORBIDDEN, "not authorized")
            elif not asking.is_root:
                await _refuse(connection, HTTPStatus.UNAUTHORIZED, "Access denied for non-root user")
            elif len(self._open(asking.project, asking.name)) >= _MOST_OF_ONE:
                await _refuse(connection, HTTPStatus.TOO_MANY_REQUESTS, "too many connections")
            else:
                await self._serve(connection, asking)
                return
        except BaseException:
            connection.close()
            raise
        connection.close()

    async def _serve(self, connection: socket.socket, asking: GuestInstance) -> None:
        server = self._runner.server
        if server is None:
            connection.close()
            return
        handler = server()
        self._asking[handler] = asking
        await asyncio.get_running_loop().connect_accepted_socket(lambda: handler, connection)

    def _open(self, project: str, name: str) -> list[RequestHandler]:
        """An instance's connections; forgets those that were closed."""
        live = self._runner.server.connections if self._runner.server is not None else []
        self._asking = {handler: self._asking[handler] for handler in live if handler in self._asking}
        return [handler for handler, asking in self._asking.items() if (asking.project, asking.name) == (project, name)]


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except FlexdError as failure:
        return error(failure.status, str(failure))
    except web.HTTPException as failure:
        return error(failure.status, failure.reason.lower())
    except Exception:  # the border of a request: the guest hears nothing of our insides
        log.exception("a request of the guest API failed: %s %s", request.method, request.path)
        return error(HTTPStatus.INTERNAL_SERVER_ERROR, "internal server error")


async def _close_sockets(app: web.Application) -> None:
    await app[SOCKETS].close_all()


async def _refuse(connection: socket.socket, status: HTTPStatus, why: str) -> None:
    loop = asyncio.get_running_loop()
    body = f"{why}\n"
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_REFUSAL_S):
            await loop.sock_recv(connection, _MAX_BODY_BYTES)
            await loop.sock_sendall(connection, (head + body).encode())


def _listen(path: Path) -> socket.socket:
    """Blocking. Anyone may connect: ids in containers are no ids of ours, and who they are is asked of the kernel."""
    new = path.with_name(path.name + "~")
    new.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # However long the path is: a unix socket's has 107 bytes at most.
        listener.bind(f"/proc/self/fd/{directory}/{new.name}")
        new.chmod(0o666)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        new.replace(path)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener
