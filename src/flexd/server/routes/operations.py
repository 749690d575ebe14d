# SPDX-License-Identifier: Apache-2.0
"""`/1.0/operations`: list, show, cancel, wait, connect a websocket."""

import asyncio
from typing import Any

from aiohttp import web

from flexd.api.errors import BadRequest, Forbidden
from flexd.operations.operations import Operation
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint
from flexd.server.websocket import WebSocketChannel

_SECRET_IS_ENOUGH = frozenset({"GET"})  # a migration's other daemon knows the secret, and is not trusted here


def _operation(call: Call) -> Operation:
    operation = call.services.operations.get(call.param("id"))
    if not _visible(call, operation):
        raise Forbidden("not authorized")
    return operation


def _visible(call: Call, operation: Operation) -> bool:
    """A restricted certificate sees those of its projects, and no tokens: they hold the secrets of others."""
    caller = call.caller
    return caller.is_admin or not caller.trusted or (caller.may_use(operation.project) and operation.kind != "token")


async def list_operations(call: Call) -> web.Response:
    """Grouped by status in lower case, as LXD shows them."""
    grouped: dict[str, list[Any]] = {}
    for project in call.projects:
        for operation in call.services.operations.list(project):
            if not _visible(call, operation):
                continue
            shown = operation.render() if call.recursion else f"/1.0/operations/{operation.id}"
            grouped.setdefault(operation.status.lower(), []).append(shown)
    return responses.sync(grouped)


async def show_operation(call: Call) -> web.Response:
    return responses.sync(_operation(call).render())


async def cancel_operation(call: Call) -> web.Response:
    await _operation(call).cancel()
    return responses.empty()


async def wait_for_operation(call: Call) -> web.Response:
    """The operation as it is when it ends, or after `timeout` seconds (-1: no limit)."""
    if not call.caller.trusted and not call.query("secret"):
        raise Forbidden("not authorized")
    operation = _operation(call)
    if not call.caller.trusted and not operation.may_wait(call.query("secret")):
        raise Forbidden("not authorized")
    await operation.wait(call.number("timeout", -1))
    return responses.sync(operation.render())


async def connect_websocket(call: Call) -> web.StreamResponse:
    """Give one of the operation's websockets to it; the connection lasts until either side closes it."""
    secret = call.query("secret")
    if not secret:
        raise BadRequest("missing secret")
    operation = _operation(call)
    channel = WebSocketChannel(call.request, call.sockets)
    operation.connect(secret, channel)
    call.exempt()  # another server that is not trusted and migrates here
    await channel.open()
    waits = [asyncio.create_task(channel.pump()), asyncio.create_task(operation.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    await channel.close()
    return channel.response


ENDPOINTS = (
    Endpoint("/1.0/operations", {"GET": list_operations}),
    Endpoint("/1.0/operations/{id}", {"GET": show_operation, "DELETE": cancel_operation}),
    Endpoint("/1.0/operations/{id}/wait", {"GET": wait_for_operation}, allow_untrusted=_SECRET_IS_ENOUGH),
    Endpoint("/1.0/operations/{id}/websocket", {"GET": connect_websocket}, allow_untrusted=_SECRET_IS_ENOUGH),
)
