# SPDX-License-Identifier: Apache-2.0
"""`/1.0`, resources and the description of configuration keys."""

from typing import Any

import msgspec
from aiohttp import web

from flexd.api.extensions import API_EXTENSIONS
from flexd.api.keys import Key
from flexd.api.server import Server, ServerPut, ServerUntrusted
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint

_STATUS = "stable"
_VERSION = "1.0"
_AUTH_METHODS = ("tls",)


def _editable(call: Call) -> ServerPut:
    return ServerPut(config=dict(call.services.config.show()))


async def show_server(call: Call) -> web.Response:
    if not call.caller.trusted:
        return responses.sync(_public())
    services = call.services
    editable = _editable(call)
    environment = services.environment.show(
        call.project,
        services.pools.show_all(),
        addresses=await services.listeners.reachable(),
        certificate=services.identity.certificate,
        certificate_fingerprint=services.identity.fingerprint,
        criu=await services.host.criu.facts(),
    )
    config = editable.config if call.caller.is_admin else {}
    server = Server(**msgspec.structs.asdict(_public()), config=config, environment=environment)
    server.auth = "trusted"
    return responses.sync(server, editable=editable)


def _public() -> ServerUntrusted:
    """What anybody may know."""
    return ServerUntrusted(
        api_extensions=list(API_EXTENSIONS),
        api_status=_STATUS,
        api_version=_VERSION,
        auth="untrusted",
        auth_methods=list(_AUTH_METHODS),
    )


async def replace_config(call: Call) -> web.Response:
    call.check_etag(_editable(call))
    put = await call.body(ServerPut)
    await call.services.config.update(put.config)
    return responses.empty()


async def patch_config(call: Call) -> web.Response:
    current = _editable(call)
    call.check_etag(current)
    put = await call.patched(current)
    await call.services.config.update(put.config)
    return responses.empty()


async def show_resources(call: Call) -> web.Response:
    return responses.sync(await call.services.host.machine.resources())


async def show_configuration(call: Call) -> web.Response:
    """Every configuration key by entity and group, in the shape of LXD's (extension: metadata_configuration)."""
    configs = {entity: _groups(rows) for entity, rows in sorted(call.services.configuration.items())}
    return responses.sync({"configs": configs, "entities": {}})


def _groups(rows: Any) -> dict[str, Any]:
    groups: dict[str, Any] = {}
    for row in rows:
        group = row.name.split(".", 1)[0] if "." in row.name else "miscellaneous"
        groups.setdefault(group, {"keys": []})["keys"].append({row.name: _describe(row)})
    return groups


def _describe(row: Key) -> dict[str, str]:
    return {
        "defaultdesc": row.default,
        "liveupdate": "yes" if row.live else "no",
        "longdesc": f"One of {', '.join(row.choices)}." if row.choices else "",
        "required": "yes" if row.required else "no",
        "shortdesc": row.description,
        "type": row.kind,
    }


ENDPOINTS = (
    Endpoint(
        "/1.0",
        {"GET": show_server, "PUT": replace_config, "PATCH": patch_config},
        allow_untrusted=frozenset({"GET"}),
    ),
    Endpoint("/1.0/resources", {"GET": show_resources}),
    Endpoint("/1.0/metadata/configuration", {"GET": show_configuration}),
)
