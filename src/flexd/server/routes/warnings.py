# SPDX-License-Identifier: Apache-2.0
"""`/1.0/warnings`."""

from aiohttp import web

from flexd.api.warning import WarningPut
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import narrow
from flexd.server.endpoint import Endpoint
from flexd.server.listing import list_response

_URL = "/1.0/warnings"


async def list_warnings(call: Call) -> web.Response:
    """All, or those about a project that is named: what is about the server is about none, as in LXD."""
    wanted = call.query("project")
    shown = [each for each in call.services.warnings.show_all() if wanted in ("", each.project)]
    return list_response(
        call, _URL, lambda _p: [each.uuid for each in shown], lambda _p: shown, key="uuid", of_server=True
    )


def _editable(call: Call) -> WarningPut:
    return narrow(call.services.warnings.show(call.param("uuid")), WarningPut)


async def show_warning(call: Call) -> web.Response:
    return responses.sync(call.services.warnings.show(call.param("uuid")), editable=_editable(call))


async def replace_warning(call: Call) -> web.Response:
    call.check_etag(_editable(call))
    await call.services.warnings.update(call.param("uuid"), await call.body(WarningPut))
    return responses.empty()


async def patch_warning(call: Call) -> web.Response:
    current = _editable(call)
    call.check_etag(current)
    await call.services.warnings.update(call.param("uuid"), await call.patched(current))
    return responses.empty()


async def delete_warning(call: Call) -> web.Response:
    await call.services.warnings.delete(call.param("uuid"))
    return responses.empty()


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_warnings}),
    Endpoint(
        _URL + "/{uuid}",
        {"GET": show_warning, "PUT": replace_warning, "PATCH": patch_warning, "DELETE": delete_warning},
    ),
)
