# SPDX-License-Identifier: Apache-2.0
"""`/1.0/warnings`: nothing is recorded as a warning; what the host lacks is in `GET /1.0` and the log."""

from aiohttp import web

from flexd.api.errors import NotFound
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint

_URL = "/1.0/warnings"


async def list_warnings(_call: Call) -> web.Response:
    return responses.sync([])


async def no_such(_call: Call) -> web.Response:
    raise NotFound("Warning not found")


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_warnings}),
    Endpoint(_URL + "/{uuid}", {"GET": no_such, "PUT": no_such, "PATCH": no_such, "DELETE": no_such}),
)
