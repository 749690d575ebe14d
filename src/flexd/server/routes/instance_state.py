# SPDX-License-Identifier: Apache-2.0
"""`/1.0/instances/NAME/state`: figures, start, stop, restart, freeze, unfreeze."""

from aiohttp import web

from flexd.api.instance_state import InstanceStatePut
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint
from flexd.server.instance_path import instance_name


async def show_state(call: Call) -> web.Response:
    return responses.sync(await call.services.states.state(call.project, instance_name(call)))


async def change_state(call: Call) -> web.Response:
    put = await call.body(InstanceStatePut)
    operation = await call.services.lifecycle.change_state(call.project, instance_name(call), put)
    return responses.background(operation.render())


ENDPOINTS = (Endpoint("/1.0/instances/{name}/state", {"GET": show_state, "PUT": change_state}),)
