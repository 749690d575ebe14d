# SPDX-License-Identifier: Apache-2.0
"""`/1.0/instances/NAME/snapshots`."""

from aiohttp import web

from flexd.api.instance_snapshot import (
    InstanceSnapshotPost,
    InstanceSnapshotPut,
    InstanceSnapshotsPost,
)
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import narrow
from flexd.server.endpoint import Endpoint
from flexd.server.instance_path import collection_url, instance_name
from flexd.server.listing import list_response, object_url


async def list_snapshots(call: Call) -> web.Response:
    name, snapshots = instance_name(call), call.services.snapshots
    url = object_url(collection_url(call), name) + "/snapshots"
    return list_response(
        call, url, lambda project: snapshots.names(project, name), lambda project: snapshots.show_all(project, name)
    )


async def create_snapshot(call: Call) -> web.Response:
    post = await call.body(InstanceSnapshotsPost)
    operation = await call.services.snapshots.create(call.project, instance_name(call), post)
    return responses.background(operation.render())


async def show_snapshot(call: Call) -> web.Response:
    shown = call.services.snapshots.show(call.project, instance_name(call), call.param("snapshot"))
    return responses.sync(shown, editable=narrow(shown, InstanceSnapshotPut))


def _editable(call: Call) -> InstanceSnapshotPut:
    shown = call.services.snapshots.show(call.project, instance_name(call), call.param("snapshot"))
    return narrow(shown, InstanceSnapshotPut)


async def _update(call: Call, put: InstanceSnapshotPut) -> web.Response:
    name, snapshot = instance_name(call), call.param("snapshot")
    operation = await call.services.snapshots.update(call.project, name, snapshot, put)
    return responses.background(operation.render())


async def replace_snapshot(call: Call) -> web.Response:
    call.check_etag(_editable(call))
    return await _update(call, await call.body(InstanceSnapshotPut))


async def patch_snapshot(call: Call) -> web.Response:
    current = _editable(call)
    call.check_etag(current)
    return await _update(call, await call.patched(current))


async def rename_snapshot(call: Call) -> web.Response:
    post = await call.body(InstanceSnapshotPost)
    name, snapshot, services = instance_name(call), call.param("snapshot"), call.services
    if post.migration:
        operation = services.migration_source.start_snapshot(call.project, name, snapshot, post)
    else:
        operation = await services.snapshots.rename(call.project, name, snapshot, post)
    return responses.background(operation.render())


async def delete_snapshot(call: Call) -> web.Response:
    operation = await call.services.snapshots.delete(call.project, instance_name(call), call.param("snapshot"))
    return responses.background(operation.render())


ENDPOINTS = (
    Endpoint("/1.0/instances/{name}/snapshots", {"GET": list_snapshots, "POST": create_snapshot}),
    Endpoint(
        "/1.0/instances/{name}/snapshots/{snapshot}",
        {
            "GET": show_snapshot,
            "PUT": replace_snapshot,
            "PATCH": patch_snapshot,
            "POST": rename_snapshot,
            "DELETE": delete_snapshot,
        },
    ),
)
