# SPDX-License-Identifier: Apache-2.0
"""`/1.0/storage-pools/POOL/volumes/TYPE/NAME/snapshots`."""

from urllib.parse import quote

from aiohttp import web

from flexd.api.storage_volume import StorageVolumeSnapshotPost, StorageVolumeSnapshotPut, StorageVolumeSnapshotsPost
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import narrow
from flexd.server.endpoint import Endpoint
from flexd.server.listing import object_url
from flexd.server.volume_path import volume_where

_URL = "/1.0/storage-pools/{pool}/volumes/{type}/{name}/snapshots"


def _editable(call: Call) -> StorageVolumeSnapshotPut:
    return narrow(
        call.services.volume_snapshots.show(volume_where(call), call.param("snapshot")), StorageVolumeSnapshotPut
    )


async def list_snapshots(call: Call) -> web.Response:
    found = call.filter.apply(call.services.volume_snapshots.show_all(volume_where(call)))
    if call.recursion:
        return responses.sync(found)
    pool, kind, project, name = volume_where(call)
    folder = f"/1.0/storage-pools/{quote(pool, safe='')}/volumes/{kind}/{quote(name, safe='')}/snapshots"
    return responses.sync([object_url(folder, snapshot.name.partition("/")[2], project) for snapshot in found])


async def create_snapshot(call: Call) -> web.Response:
    post = await call.body(StorageVolumeSnapshotsPost)
    operation = await call.services.volume_snapshots.create(volume_where(call), post)
    return responses.background(operation.render())


async def show_snapshot(call: Call) -> web.Response:
    shown = call.services.volume_snapshots.show(volume_where(call), call.param("snapshot"))
    return responses.sync(shown, editable=narrow(shown, StorageVolumeSnapshotPut))


async def replace_snapshot(call: Call) -> web.Response:
    call.check_etag(_editable(call))
    put = await call.body(StorageVolumeSnapshotPut)
    await call.services.volume_snapshots.update(volume_where(call), call.param("snapshot"), put)
    return responses.empty()


async def patch_snapshot(call: Call) -> web.Response:
    current = _editable(call)
    call.check_etag(current)
    put = await call.patched(current)
    await call.services.volume_snapshots.update(volume_where(call), call.param("snapshot"), put)
    return responses.empty()


async def rename_snapshot(call: Call) -> web.Response:
    post = await call.body(StorageVolumeSnapshotPost)
    operation = await call.services.volume_snapshots.rename(volume_where(call), call.param("snapshot"), post)
    return responses.background(operation.render())


async def delete_snapshot(call: Call) -> web.Response:
    operation = await call.services.volume_snapshots.delete(volume_where(call), call.param("snapshot"))
    return responses.background(operation.render())


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_snapshots, "POST": create_snapshot}),
    Endpoint(
        _URL + "/{snapshot}",
        {
            "GET": show_snapshot,
            "PUT": replace_snapshot,
            "PATCH": patch_snapshot,
            "POST": rename_snapshot,
            "DELETE": delete_snapshot,
        },
    ),
)
