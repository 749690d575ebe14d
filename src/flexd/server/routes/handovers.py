# SPDX-License-Identifier: Apache-2.0
"""`/1.0/handovers/TOKEN`: the target of a live migration asks whether an instance is its own.

Not of LXD's API. Who knows the token may ask; the target of a migration is no client here."""

from aiohttp import web

from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint

_TOKEN_IS_ENOUGH = frozenset({"POST"})


async def ask(call: Call) -> web.Response:
    """A "no" is kept: after it, the instance is not handed over any more."""
    return responses.sync({"handed_over": await call.services.handovers.ask(call.param("token"))})


ENDPOINTS = (Endpoint("/1.0/handovers/{token}", {"POST": ask}, allow_untrusted=_TOKEN_IS_ENOUGH),)
