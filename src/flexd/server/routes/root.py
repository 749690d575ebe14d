# SPDX-License-Identifier: Apache-2.0
"""`/`: the API versions."""

from aiohttp import web

from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint


async def show_versions(_call: Call) -> web.Response:
    return responses.sync(["/1.0"])


ENDPOINTS = (Endpoint("/", {"GET": show_versions}, allow_untrusted=frozenset({"GET"})),)
