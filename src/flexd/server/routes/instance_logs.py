# SPDX-License-Identifier: Apache-2.0
"""`/1.0/instances/NAME/logs`: liblxc's log and configuration, and recorded output of exec."""

from aiohttp import web

from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint
from flexd.server.instance_path import collection_url, instance_name
from flexd.server.listing import object_url
from flexd.server.streaming import send_path


async def list_logs(call: Call) -> web.Response:
    name = instance_name(call)
    files = await call.services.logs.names(call.project, name)
    url = object_url(collection_url(call), name) + "/logs"
    return responses.sync([object_url(url, file, call.project) for file in files])


async def show_log(call: Call) -> web.StreamResponse:
    file = call.param("file")
    path = await call.services.logs.path(call.project, instance_name(call), file)
    return await send_path(call.request, path, file)


async def delete_log(call: Call) -> web.Response:
    await call.services.logs.delete(call.project, instance_name(call), call.param("file"))
    return responses.empty()


ENDPOINTS = (
    Endpoint("/1.0/instances/{name}/logs", {"GET": list_logs}),
    Endpoint("/1.0/instances/{name}/logs/{file}", {"GET": show_log, "DELETE": delete_log}),
)
