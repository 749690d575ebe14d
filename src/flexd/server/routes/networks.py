# SPDX-License-Identifier: Apache-2.0
"""`/1.0/networks`: managed ones, and the host's own interfaces (read only)."""

from aiohttp import web

from flexd.api.network import NetworkPost, NetworkPut, NetworksPost
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import narrow
from flexd.server.endpoint import Endpoint
from flexd.server.listing import list_response, object_url

_URL = "/1.0/networks"


async def _editable(call: Call) -> NetworkPut:
    return narrow(await call.services.networks.show(call.project, call.param("name")), NetworkPut)


async def list_networks(call: Call) -> web.Response:
    found = {project: await call.services.networks.show_all(project) for project in call.projects}
    return list_response(call, _URL, lambda p: [network.name for network in found[p]], lambda p: found[p])


async def create_network(call: Call) -> web.Response:
    post = await call.body(NetworksPost)
    await call.services.networks.create(post)
    return responses.created(object_url(_URL, post.name, call.project))


async def show_network(call: Call) -> web.Response:
    network = await call.services.networks.show(call.project, call.param("name"))
    return responses.sync(network, editable=narrow(network, NetworkPut))


async def replace_network(call: Call) -> web.Response:
    call.check_etag(await _editable(call))
    await call.services.networks.update(call.param("name"), await call.body(NetworkPut))
    return responses.empty()


async def patch_network(call: Call) -> web.Response:
    current = await _editable(call)
    call.check_etag(current)
    await call.services.networks.update(call.param("name"), await call.patched(current))
    return responses.empty()


async def rename_network(call: Call) -> web.Response:
    post = await call.body(NetworkPost)
    await call.services.networks.rename(call.param("name"), post)
    return responses.created(object_url(_URL, post.name, call.project))


async def delete_network(call: Call) -> web.Response:
    await call.services.networks.delete(call.param("name"))
    return responses.empty()


async def show_state(call: Call) -> web.Response:
    return responses.sync(await call.services.networks.state(call.param("name")))


async def list_leases(call: Call) -> web.Response:
    return responses.sync(await call.services.networks.leases(call.param("name")))


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_networks, "POST": create_network}),
    Endpoint(
        _URL + "/{name}",
        {
            "GET": show_network,
            "PUT": replace_network,
            "PATCH": patch_network,
            "POST": rename_network,
            "DELETE": delete_network,
        },
    ),
    Endpoint(_URL + "/{name}/state", {"GET": show_state}),
    Endpoint(_URL + "/{name}/leases", {"GET": list_leases}),
)
