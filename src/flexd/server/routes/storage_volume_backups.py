# SPDX-License-Identifier: Apache-2.0
"""`/1.0/storage-pools/POOL/volumes/TYPE/NAME/backups` and their export (extension: custom_volume_backup)."""

from urllib.parse import quote

from aiohttp import web

from flexd.api.storage_volume_backup import StoragePoolVolumeBackupPost, StoragePoolVolumeBackupsPost
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint
from flexd.server.listing import object_url
from flexd.server.streaming import send_path
from flexd.server.volume_path import volume_where

_URL = "/1.0/storage-pools/{pool}/volumes/{type}/{name}/backups"


async def list_backups(call: Call) -> web.Response:
    backups, where = call.services.volume_backups, volume_where(call)
    if call.recursion:
        return responses.sync(backups.show_all(where))
    pool, kind, project, name = where
    folder = f"/1.0/storage-pools/{quote(pool, safe='')}/volumes/{kind}/{quote(name, safe='')}/backups"
    return responses.sync([object_url(folder, backup, project) for backup in backups.names(where)])


async def create_backup(call: Call) -> web.Response:
    post = await call.body(StoragePoolVolumeBackupsPost)
    operation = await call.services.volume_backups.create(volume_where(call), post)
    return responses.background(operation.render())


async def show_backup(call: Call) -> web.Response:
    return responses.sync(call.services.volume_backups.show(volume_where(call), call.param("backup")))


async def rename_backup(call: Call) -> web.Response:
    post = await call.body(StoragePoolVolumeBackupPost)
    operation = call.services.volume_backups.rename(volume_where(call), call.param("backup"), post)
    return responses.background(operation.render())


async def delete_backup(call: Call) -> web.Response:
    operation = call.services.volume_backups.delete(volume_where(call), call.param("backup"))
    return responses.background(operation.render())


async def export_backup(call: Call) -> web.StreamResponse:
    backup = call.param("backup")
    path = call.services.volume_backups.file(volume_where(call), backup)
    return await send_path(call.request, path, f"{call.param('name')}-{backup}.backup")


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_backups, "POST": create_backup}),
    Endpoint(f"{_URL}/{{backup}}", {"GET": show_backup, "POST": rename_backup, "DELETE": delete_backup}),
    Endpoint(f"{_URL}/{{backup}}/export", {"GET": export_backup}),
)
