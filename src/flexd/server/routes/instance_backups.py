# SPDX-License-Identifier: Apache-2.0
"""`/1.0/instances/NAME/backups` and their export."""

from aiohttp import web

from flexd.api.instance_backup import InstanceBackupPost, InstanceBackupsPost
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint
from flexd.server.instance_path import collection_url, instance_name
from flexd.server.streaming import send_path


async def list_backups(call: Call) -> web.Response:
    backups, name = call.services.backups, instance_name(call)
    if call.recursion:
        return responses.sync(backups.show_all(call.project, name))
    base = f"{collection_url(call)}/{name}/backups"
    return responses.sync([f"{base}/{backup}" for backup in backups.names(call.project, name)])


async def create_backup(call: Call) -> web.Response:
    post = await call.body(InstanceBackupsPost)
    operation = await call.services.backups.create(call.project, instance_name(call), post)
    return responses.background(operation.render())


async def show_backup(call: Call) -> web.Response:
    return responses.sync(call.services.backups.show(call.project, instance_name(call), call.param("backup")))


async def rename_backup(call: Call) -> web.Response:
    post = await call.body(InstanceBackupPost)
    operation = call.services.backups.rename(call.project, instance_name(call), call.param("backup"), post)
    return responses.background(operation.render())


async def delete_backup(call: Call) -> web.Response:
    operation = call.services.backups.delete(call.project, instance_name(call), call.param("backup"))
    return responses.background(operation.render())


async def export_backup(call: Call) -> web.StreamResponse:
    name, backup = instance_name(call), call.param("backup")
    path = call.services.backups.file(call.project, name, backup)
    return await send_path(call.request, path, f"{name}-{backup}.backup")


_BACKUPS = "/1.0/instances/{name}/backups"

ENDPOINTS = (
    Endpoint(_BACKUPS, {"GET": list_backups, "POST": create_backup}),
    Endpoint(f"{_BACKUPS}/{{backup}}", {"GET": show_backup, "POST": rename_backup, "DELETE": delete_backup}),
    Endpoint(f"{_BACKUPS}/{{backup}}/export", {"GET": export_backup}),
)
