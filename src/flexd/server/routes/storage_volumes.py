# SPDX-License-Identifier: Apache-2.0
"""`/1.0/storage-pools/POOL/volumes`."""

from typing import Any
from urllib.parse import quote

import msgspec
from aiohttp import web

from flexd.api.errors import BadRequest
from flexd.api.storage_volume import StorageVolume, StorageVolumePost, StorageVolumePut, StorageVolumesPost
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import narrow
from flexd.server.endpoint import Endpoint
from flexd.server.listing import object_url
from flexd.server.volume_path import volume_where

_URL = "/1.0/storage-pools/{pool}/volumes"


def _url(call: Call, kind: str, name: str, project: str) -> str:
    """Of a volume, or of a snapshot, which lists call `VOLUME/SNAPSHOT`."""
    pool, (volume, _, snapshot) = quote(call.param("pool"), safe=""), name.partition("/")
    folder = f"/1.0/storage-pools/{pool}/volumes/{kind}"
    if snapshot:
        return object_url(f"{folder}/{quote(volume, safe='')}/snapshots", snapshot, project)
    return object_url(folder, volume, project)


def _editable(call: Call) -> StorageVolumePut:
    return narrow(call.services.volumes.show(*volume_where(call)), StorageVolumePut)


async def list_volumes(call: Call) -> web.Response:
    """Of all types, or of the one in the path."""
    kind = call.request.match_info.get("type")
    everything: dict[tuple[str, str, str], StorageVolume] = {}
    for project in call.projects:  # several may use the same custom volumes
        volumes = call.filter.apply(call.services.volumes.show_all(call.param("pool"), project, kind))
        everything |= {(volume.type, volume.project, volume.name): volume for volume in volumes}
    found = [call.shown(volume) for volume in everything.values()]
    if call.recursion:
        return responses.sync(found)
    return responses.sync([_url(call, volume.type, volume.name, volume.project) for volume in found])


async def create_volume(call: Call) -> web.Response:
    """LXD answers 200 and an empty object here, not 201; 202 to a copy. What is not JSON is a volume's content."""
    kind = call.request.match_info.get("type")
    if call.request.content_type == "application/octet-stream":
        return await _import_volume(call, kind or "custom")
    post = await call.body(StorageVolumesPost)
    if kind is not None:
        post = msgspec.structs.replace(post, type=kind)
    source = post.source.project or call.project
    call.check_allowed(source)
    source = call.services.projects.owner(source, "storage.volumes")
    post = msgspec.structs.replace(post, source=msgspec.structs.replace(post.source, project=source))
    service: Any = call.services.volume_migration if post.source.type == "migration" else call.services.volumes
    operation = await service.create(call.param("pool"), call.owner("storage.volumes"), post)
    return responses.empty() if operation is None else responses.background(operation.render())


async def _import_volume(call: Call, kind: str) -> web.Response:
    """`X-LXD-name` and `X-LXD-type` say what the body is: an ISO image (extension: custom_volume_iso) or a backup."""
    name, content = call.header("name") or "", call.header("type") or "backup"
    if kind != "custom" or content not in ("iso", "backup"):
        raise BadRequest(f'Failed importing storage volume "{name}": content of type "{content}" is not supported')
    body = call.request.content.iter_any()
    make = call.services.volumes.import_iso if content == "iso" else call.services.volume_import.create
    operation = await make(call.param("pool"), call.owner("storage.volumes"), name, body)
    return responses.background(operation.render())


async def show_volume(call: Call) -> web.Response:
    volume = call.services.volumes.show(*volume_where(call))
    return responses.sync(call.shown(volume), editable=narrow(volume, StorageVolumePut))


async def replace_volume(call: Call) -> web.Response:
    call.check_etag(_editable(call))
    put = await call.body(StorageVolumePut)
    if put.restore:
        await call.services.volume_snapshots.restore(volume_where(call), put.restore)
    else:
        await call.services.volumes.update(*volume_where(call), put)
    return responses.empty()


async def patch_volume(call: Call) -> web.Response:
    current = _editable(call)
    call.check_etag(current)
    await call.services.volumes.update(*volume_where(call), await call.patched(current))
    return responses.empty()


async def rename_volume(call: Call) -> web.Response:
    post = await call.body(StorageVolumePost)
    if post.project:
        call.check_allowed(post.project)
        target = call.services.projects.owner(post.project, "storage.volumes")
        post = msgspec.structs.replace(post, project=target)
    if post.migration:
        sent = call.services.volume_migration.start(*volume_where(call), post)
        return responses.background(sent.render())
    operation = await call.services.volumes.rename(*volume_where(call), post)
    if operation is not None:
        return responses.background(operation.render())
    return responses.created(_url(call, call.param("type"), post.name, volume_where(call)[2]))


async def delete_volume(call: Call) -> web.Response:
    await call.services.volumes.delete(*volume_where(call))
    return responses.empty()


async def show_state(call: Call) -> web.Response:
    return responses.sync(await call.services.volumes.state(*volume_where(call)))


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_volumes, "POST": create_volume}),
    Endpoint(_URL + "/{type}", {"GET": list_volumes, "POST": create_volume}),
    Endpoint(
        _URL + "/{type}/{name}",
        {
            "GET": show_volume,
            "PUT": replace_volume,
            "PATCH": patch_volume,
            "POST": rename_volume,
            "DELETE": delete_volume,
        },
    ),
    Endpoint(_URL + "/{type}/{name}/state", {"GET": show_state}),
)
