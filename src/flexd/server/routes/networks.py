# SPDX-License-Identifier: Apache-2.0
"""`/1.0/networks`: managed ones, and the host's own interfaces (read only)."""

from aiohttp import web

from flexd.api.network import Network, NetworkPost, NetworkPut, NetworksPost
from flexd.network.contract import NetworkNotFound
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import narrow
from flexd.server.endpoint import Endpoint
from flexd.server.listing import list_response, object_url

_URL = "/1.0/networks"


async def _editable(call: Call) -> NetworkPut:
    return narrow(await _network(call), NetworkPut)


async def list_networks(call: Call) -> web.Response:
    found = {owner: await call.services.networks.show_all(owner) for owner in call.owners("networks")}
    if call.caller.restricted:
        found = {owner: [each for each in networks if _visible(call, each)] for owner, networks in found.items()}
    return list_response(
        call, _URL, lambda p: [network.name for network in found[p]], lambda p: found[p], feature="networks"
    )


def _visible(call: Call, network: Network) -> bool:
    """A restricted certificate sees the networks that its project may use, and not the host's interfaces."""
    listed = call.services.projects.rules(call.project).listed("networks.access")
    return network.managed and (listed is None or network.name in listed)


async def _network(call: Call) -> Network:
    """The one in the path, if the request's project uses it."""
    network = await call.services.networks.show(call.project, call.param("name"))
    if call.caller.restricted and not _visible(call, network):
        raise NetworkNotFound
    return network


async def create_network(call: Call) -> web.Response:
    post = await call.body(NetworksPost)
    await call.services.networks.create(post, call.project)
    return responses.created(object_url(_URL, post.name, call.owner("networks")))


async def show_network(call: Call) -> web.Response:
    network = await _network(call)
    return responses.sync(call.shown(network), editable=narrow(network, NetworkPut))


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
    await _network(call)
    await call.services.networks.rename(call.param("name"), post)
    return responses.created(object_url(_URL, post.name, call.owner("networks")))


async def delete_network(call: Call) -> web.Response:
    await _network(call)
    await call.services.networks.delete(call.param("name"))
    return responses.empty()


async def show_state(call: Call) -> web.Response:
    return responses.sync(await call.services.networks.state((await _network(call)).name))


async def list_leases(call: Call) -> web.Response:
    """Of the project's instances; whoever may see all, of every project's, and of whatever else is there."""
    leases = await call.services.networks.leases((await _network(call)).name)
    if call.caller.restricted:
        known = call.services.ports.hwaddrs(call.project, call.param("name"))
        leases = [lease for lease in leases if lease.hwaddr in known]
    return responses.sync(leases)


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
