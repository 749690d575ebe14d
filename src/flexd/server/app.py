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
from functools import partial
from importlib.metadata import version

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from flexd.api.units import is_true
from flexd.operations.context import current_requestor
from flexd.operations.contract import Requestor
from flexd.server import access, responses, routes
from flexd.server.browsers import browser_headers
from flexd.server.call import Call
from flexd.server.config import ServerConfig
from flexd.server.connections import Connections
from flexd.server.endpoint import Endpoint, Handler
from flexd.server.network_keys import METRICS_AUTHENTICATION
from flexd.server.peers import Peers
from flexd.server.services import Services
from flexd.server.transport import tls_of
from flexd.server.websocket import OpenSockets

log = logging.getLogger(__name__)

# A JSON body; files and images are streamed and have no limit here. cloud-init data can be large, an instance is not.
_MAX_BODY_BYTES = 16 * 1024 * 1024
# Filters and file paths make long request lines (a path alone may have 4096 bytes, percent-encoded three times that).
_MAX_LINE_BYTES = 32 * 1024
_SERVER = f"flexd/{version('flexd')}"
# Requests under way may finish for this long after a stop; then they are cancelled.
_SHUTDOWN_S = 5.0
# Who still sends a body after it was refused has this long to notice.
_LINGER_S = 1.0

# The answer of the current request, once its headers are out.
_started: ContextVar[web.StreamResponse | None] = ContextVar("started", default=None)
_OPEN_SOCKETS = web.AppKey("open_sockets", OpenSockets)
_CONNECTIONS = web.AppKey("connections", Connections)


class _Brief(logging.Filter):
    """What is no HTTP is its sender's affair: a line for those who debug, and not a page in the log for each."""

    def filter(self, record: logging.LogRecord) -> bool:
        failure = record.exc_info[1] if record.exc_info else None
        if isinstance(failure, HttpProcessingError):
            log.debug("a request that is no HTTP: %.200s", failure)
            return False
        return True


_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(_Brief())


def endpoints() -> list[Endpoint]:
    """Every `ENDPOINTS` of `routes/*.py`."""
    modules = (importlib.import_module(f"{routes.__name__}.{m.name}") for m in pkgutil.iter_modules(routes.__path__))
    return [endpoint for module in modules for endpoint in getattr(module, "ENDPOINTS", ())]


_ENDPOINTS = endpoints()


def build_app(services: Services) -> web.Application:
    peers = Peers(services.certificates, services.connections)
    app = web.Application(middlewares=[_middleware], client_max_size=_MAX_BODY_BYTES)
    app[_OPEN_SOCKETS] = OpenSockets()
    app[_CONNECTIONS] = services.connections
    app.on_response_prepare.append(_remember_started)
    app.on_response_prepare.append(partial(_tell_browsers, services.config))
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
        bound = _bind(endpoint, path, method, handler, services, peers)
        resource.add_route(method, bound)
        if method == hdrs.METH_GET and hdrs.METH_HEAD not in endpoint.handlers:
            resource.add_route(hdrs.METH_HEAD, bound)


def _bind(
    endpoint: Endpoint, path: str, method: str, handler: Handler, services: Services, peers: Peers
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    for_strangers = method in endpoint.allow_untrusted

    async def handle(request: web.Request) -> web.StreamResponse:
        caller = await peers.caller(request)
        for_all = path == access.METRICS and not is_true(services.config.get(METRICS_AUTHENTICATION))
        access.check(caller, path, method, for_strangers=for_strangers, metrics_for_all=for_all)
        current_requestor.set(Requestor(caller.username, caller.protocol, caller.address))
        call = Call(request, services, caller, request.app[_OPEN_SOCKETS])
        named, everywhere = bool(call.query("project")), call.flag("all-projects")
        access.check_project(caller, path, method, call.project, named=named, all_projects=everywhere)
        call.check_project()
        feature = access.feature_of(path, request.match_info.get("type", ""))
        if feature is not None:
            access.check_owner(caller, method, feature, call.owner(feature))
        return await handler(call)

    return handle


@web.middleware
async def _middleware(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Tells the connection's keeper that it is busy."""
    connection = tls_of(request)
    if connection is None:
        return await _answer(request, handler)
    connections = request.app[_CONNECTIONS]
    connections.begin_request(connection)
    if connections.is_stranger(connection):
        # Requests that come in one piece are answered in one turn of the loop otherwise, hundreds of them.
        await asyncio.sleep(0)
    try:
        response = await _answer(request, handler)
    finally:
        connections.end_request(connection)
    if connections.is_doomed(connection):
        response.force_close()
    return response


async def _answer(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """A request id, the log line, and every exception turned into an envelope."""
    request_id = secrets.token_hex(6)
    started = time.monotonic()
    _started.set(None)
    try:
        response = web.Response() if request.method == hdrs.METH_OPTIONS else await handler(request)
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


async def _tell_browsers(config: ServerConfig, request: web.Request, response: web.StreamResponse) -> None:
    if hdrs.ORIGIN in request.headers:
        response.headers.update(browser_headers(config))


async def _close_sockets(app: web.Application) -> None:
    await app[_OPEN_SOCKETS].close_all()


class Server:
    """Serves the API on sockets that listen already, and on the network."""

    def __init__(self, services: Services) -> None:
        self._listeners = services.listeners
        self._config = services.config
        self._runner = web.AppRunner(
            build_app(services),
            handle_signals=False,
            access_log=None,
            logger=_http_log,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            shutdown_timeout=_SHUTDOWN_S,
            lingering_time=_LINGER_S,
        )

    async def start(self, listeners: Sequence[socket.socket]) -> None:
        await self._runner.setup()
        protocols = self._runner.server
        assert protocols is not None, "setup() made it"
        plain = [listener for listener in listeners if listener.family == socket.AF_UNIX]
        await asyncio.gather(*(web.SockSite(self._runner, listener).start() for listener in plain))
        await self._listeners.start(protocols, self._config.stored())
        for listener in listeners:
            if listener not in plain:
                await self._listeners.adopt(listener)

    async def stop(self) -> None:
        """No new connections; requests under way may finish; websockets are told that the server goes away."""
        await self._listeners.close()
        await self._runner.cleanup()
