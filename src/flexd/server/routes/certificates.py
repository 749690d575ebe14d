# SPDX-License-Identifier: Apache-2.0
"""`/1.0/certificates`: none are trusted, as the daemon listens on its unix socket only."""

from aiohttp import web

from flexd.api.errors import NotFound, NotSupported
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint

_URL = "/1.0/certificates"


async def list_certificates(_call: Call) -> web.Response:
    return responses.sync([])


async def refuse(_call: Call) -> web.Response:
    raise NotSupported("Failed adding a certificate: this server listens on its unix socket only")


async def no_such(_call: Call) -> web.Response:
    raise NotFound("Certificate not found")


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_certificates, "POST": refuse}),
    Endpoint(_URL + "/{fingerprint}", {"GET": no_such, "PUT": no_such, "PATCH": no_such, "DELETE": no_such}),
)
