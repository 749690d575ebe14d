# SPDX-License-Identifier: Apache-2.0
"""`/1.0/instances/NAME/exec` and `/console`; the websockets are those of their operations."""

from aiohttp import web

from flexd.api.instance_console import InstanceConsolePost
from flexd.api.instance_exec import InstanceExecPost
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint
from flexd.server.instance_path import instance_name


async def run_command(call: Call) -> web.Response:
    post = await call.body(InstanceExecPost)
    operation = await call.services.exec.exec(call.project, instance_name(call), post)
    return responses.background(operation.render())


async def attach_console(call: Call) -> web.Response:
    post = await call.optional_body(InstanceConsolePost)
    operation = await call.services.console.attach(call.project, instance_name(call), post)
    return responses.background(operation.render())


async def show_console_log(call: Call) -> web.Response:
    body = await call.services.console.log(call.project, instance_name(call))
    return web.Response(body=body, content_type="application/octet-stream")


async def clear_console_log(call: Call) -> web.Response:
    await call.services.console.clear_log(call.project, instance_name(call))
    return responses.empty()


ENDPOINTS = (
    Endpoint("/1.0/instances/{name}/exec", {"POST": run_command}),
    Endpoint(
        "/1.0/instances/{name}/console",
        {"GET": show_console_log, "POST": attach_console, "DELETE": clear_console_log},
    ),
)
