# SPDX-License-Identifier: Apache-2.0
"""The aiohttp application: one middleware around every request, and the server that runs it."""

import asyncio
import importlib
import logging
import pkgutil
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from importlib.metadata import version

from aiohttp import hdrs, web

from flexd.api.errors import Forbidden
from flexd.operations.context import current_requestor
from flexd.operations.contract import Requestor
from flexd.server import responses, routes
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint, Handler
from flexd.server.peers import Peers
from flexd.server.services import Services
from flexd.server.websocket import OpenSockets

log = logging.getLogger(__name__)

# A JSON body; files and images are streamed and have no limit here. cloud-init data can be large, an instance is not.
_MAX_BODY_BYTES = 16 * 1024 * 1024
# Filters and file paths make long request lines (a path alone may have 4096 bytes, percent-encoded three times that).
_MAX_LINE_BYTES = 32 * 1024
_SERVER = f"flexd/{version('flexd')}"
# Requests under way may finish for this long after a stop; then they are cancelled.
_SHUTDOWN_S = 5.0

# The answer of the current request, once its headers are out.
_started: ContextVar[web.StreamResponse | None] = ContextVar("started", default=None)
_OPEN_SOCKETS = web.AppKey("open_sockets", OpenSockets)


def endpoints() -> list[Endpoint]:
    """Every `ENDPOINTS` of `routes/*.py`."""
    modules = (importlib.import_module(f"{routes.__name__}.{m.name}") for m in pkgutil.iter_modules(routes.__path__))
    return [endpoint for module in modules for endpoint in getattr(module, "ENDPOINTS", ())]


_ENDPOINTS = endpoints()


def build_app(services: Services) -> web.Application:
    peers = Peers()
    app = web.Application(middlewares=[_middleware], client_max_size=_MAX_BODY_BYTES)
    app[_OPEN_SOCKETS] = OpenSockets()
    app.on_response_prepare.append(_remember_started)
    app.on_shutdown.append(_close_sockets)
    for endpoint in sorted(_ENDPOINTS, key=_variable_last):
        for path in endpoint.paths():
            _add(app.router, path, endpoint, services, peers)
    return app


def _variable_last(endpoint: Endpoint) -> tuple[int, str]:
    """aiohttp takes the first path that fits, so `/images/aliases` comes before `/images/{fingerprint}`."""
    return (endpoint.path.count("{"), endpoint.path)


def _add(router: web.UrlDispatcher, path: str, endpoint: Endpoint, services: Services, peers: Peers) -> None:
    resource = router.add_resource(path)
    for method, handler in endpoint.handlers.items():
        bound = _bind(handler, method in endpoint.allow_untrusted, services, peers)
        resource.add_route(method, bound)
        if method == hdrs.METH_GET and hdrs.METH_HEAD not in endpoint.handlers:
            resource.add_route(hdrs.METH_HEAD, bound)


def _bind(
    handler: Handler, allow_untrusted: bool, services: Services, peers: Peers
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        caller = await peers.caller(request)
        if not caller.trusted and not allow_untrusted:
            raise Forbidden("not authorized")
        current_requestor.set(Requestor(caller.username, caller.protocol, caller.address))
        call = Call(request, services, caller, request.app[_OPEN_SOCKETS])
        call.check_project()
        return await handler(call)

    return handle


@web.middleware
async def _middleware(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """A request id, the log line, and every exception turned into an envelope."""
    request_id = secrets.token_hex(6)
    started = time.monotonic()
    _started.set(None)
    if request.method == hdrs.METH_OPTIONS:
        return web.Response()
    try:
        response = await handler(request)
    except Exception as failure:  # noqa: BLE001 - the border of a request: whatever it raised becomes its answer
        response = _failed(request, failure, request_id)
    if not response.prepared:
        response.headers["X-Request-Id"] = request_id
        response.headers[hdrs.SERVER] = _SERVER
    took_ms = (time.monotonic() - started) * 1000
    log.debug("request %s: %s %s -> %d in %.1f ms", request_id, request.method, request.path, response.status, took_ms)
    return response


def _failed(request: web.Request, failure: Exception, request_id: str) -> web.StreamResponse:
    started = _started.get()
    if started is not None:
        # The headers are out: the only way left to say that the rest is missing is to break the connection.
        log.warning("request %s broke off: %s", request_id, failure, exc_info=failure)
        if request.transport is not None:
            request.transport.abort()
        return started
    response = responses.error_from(failure, request_id)
    if (request.content_length or 0) > _MAX_BODY_BYTES or request.headers.get(hdrs.TRANSFER_ENCODING):
        response.force_close()  # what is left of a refused upload is not read
    return response


async def _remember_started(_request: web.Request, response: web.StreamResponse) -> None:
    _started.set(response)


async def _close_sockets(app: web.Application) -> None:
    await app[_OPEN_SOCKETS].close_all()


class Server:
    """Serves the API on sockets that listen already."""

    def __init__(self, services: Services) -> None:
        self._runner = web.AppRunner(
            build_app(services),
            handle_signals=False,
            access_log=None,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            shutdown_timeout=_SHUTDOWN_S,
        )

    async def start(self, listeners: Sequence[socket.socket]) -> None:
        await self._runner.setup()
        await asyncio.gather(*(web.SockSite(self._runner, listener).start() for listener in listeners))

    async def stop(self) -> None:
        """No new connections; requests under way may finish; websockets are told that the server goes away."""
        await self._runner.cleanup()
