# SPDX-License-Identifier: Apache-2.0
"""PUT and PATCH of an object that is changed at once: If-Match against what is now, then all of it, or some of it."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web
from msgspec import Struct

from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Handler

T = TypeVar("T", bound=Struct)


def editing(
    kind: type[T], current: Callable[[Call], T], update: Callable[[Call, T], Awaitable[None]]
) -> dict[str, Handler]:
    """The handlers of both. `current`: what PUT may change, as it is; NotFound comes from there."""

    async def replace(call: Call) -> web.Response:
        call.check_etag(current(call))
        await update(call, await call.body(kind))
        return responses.empty()

    async def patch(call: Call) -> web.Response:
        found = current(call)
        call.check_etag(found)
        await update(call, await call.patched(found))
        return responses.empty()

    return {"PUT": replace, "PATCH": patch}
