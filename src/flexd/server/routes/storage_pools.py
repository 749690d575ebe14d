# SPDX-License-Identifier: Apache-2.0
"""`/1.0/storage-pools`."""

import msgspec
from aiohttp import web

from flexd.api.storage_pool import StoragePool, StoragePoolPut, StoragePoolsPost
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import narrow
from flexd.server.editing import editing
from flexd.server.endpoint import Endpoint
from flexd.server.listing import list_response, object_url

_URL = "/1.0/storage-pools"


def _editable(call: Call) -> StoragePoolPut:
    return narrow(call.services.pools.show(call.param("pool")), StoragePoolPut)


def _shown(call: Call, pool: StoragePool) -> StoragePool:
    """Where a pool lies on the host is not for certificates that are restricted to projects, as in LXD."""
    return pool if call.caller.is_admin else call.shown(msgspec.structs.replace(pool, config={}))


async def list_pools(call: Call) -> web.Response:
    pools = call.services.pools
    return list_response(
        call,
        _URL,
        lambda _project: pools.names(),
        lambda _project: [_shown(call, pool) for pool in pools.show_all()],
        of_server=True,
    )


async def create_pool(call: Call) -> web.Response:
    post = await call.body(StoragePoolsPost)
    await call.services.pools.create(post)
    return responses.created(object_url(_URL, post.name))


async def show_pool(call: Call) -> web.Response:
    pool = _shown(call, call.services.pools.show(call.param("pool")))
    return responses.sync(pool, editable=narrow(pool, StoragePoolPut))


async def _update(call: Call, put: StoragePoolPut) -> None:
    await call.services.pools.update(call.param("pool"), put)


async def delete_pool(call: Call) -> web.Response:
    await call.services.pools.delete(call.param("pool"))
    return responses.empty()


async def show_resources(call: Call) -> web.Response:
    return responses.sync(await call.services.pools.resources(call.param("pool")))


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_pools, "POST": create_pool}),
    Endpoint(
        _URL + "/{pool}", {"GET": show_pool, **editing(StoragePoolPut, _editable, _update), "DELETE": delete_pool}
    ),
    Endpoint(_URL + "/{pool}/resources", {"GET": show_resources}),
)
