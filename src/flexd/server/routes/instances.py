# SPDX-License-Identifier: Apache-2.0
"""`/1.0/instances`, and its older names `/1.0/containers` and `/1.0/virtual-machines`."""

from typing import TypeVar

from aiohttp import web

from flexd.api.instance import (
    Instance,
    InstanceFull,
    InstancePost,
    InstancePut,
    InstanceRebuildPost,
    InstancesPost,
    InstancesPut,
)
from flexd.instances.backup_import import parse_overrides
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import narrow
from flexd.server.endpoint import Endpoint
from flexd.server.instance_path import collection_url, instance_name, wanted_type
from flexd.server.listing import list_response

T = TypeVar("T", Instance, InstanceFull)

_FULL = 2  # recursion: with state, snapshots and backups


def _of_type(call: Call, found: list[T]) -> list[T]:
    wanted = wanted_type(call)
    return [instance for instance in found if instance.type == wanted] if wanted else found


async def list_instances(call: Call) -> web.Response:
    instances = call.services.instances
    if call.recursion >= _FULL:
        full = [i for project in call.projects for i in await call.services.states.full(project)]
        return responses.sync(call.filter.apply(_of_type(call, full)))
    url = collection_url(call)
    if wanted_type(call):
        return list_response(
            call,
            url,
            lambda project: [i.name for i in _of_type(call, instances.show_all(project))],
            lambda project: _of_type(call, instances.show_all(project)),
        )
    return list_response(call, url, instances.names, instances.show_all)


def _check_target(call: Call) -> None:
    if call.query("target"):
        call.services.projects.check_target(call.project, call.query("target"))


async def create_instance(call: Call) -> web.Response:
    _check_target(call)
    if call.request.headers.get("Content-Type") == "application/octet-stream":
        given = {name: call.header(name) or "" for name in ("name", "pool", "devices", "config")}
        body = call.request.content.iter_any()
        imported = await call.services.backup_import.create(call.project, body, parse_overrides(given))
        return responses.background(imported.render())
    post = await call.body(InstancesPost)
    if post.source.project and post.source.type == "copy":
        call.check_allowed(post.source.project)
    operation = await call.services.instances.create(call.project, post)
    return responses.background(operation.render())


async def change_states(call: Call) -> web.Response:
    put = await call.body(InstancesPut)
    operation = await call.services.lifecycle.change_states(call.project, put.state)
    return responses.background(operation.render())


async def show_instance(call: Call) -> web.Response:
    name = instance_name(call)
    instance = call.services.instances.show(call.project, name)
    editable = narrow(instance, InstancePut)
    if call.recursion:
        return responses.sync(await call.services.states.show_full(call.project, name), editable=editable)
    return responses.sync(instance, editable=editable)


def _editable(call: Call) -> InstancePut:
    return narrow(call.services.instances.show(call.project, instance_name(call)), InstancePut)


async def replace_instance(call: Call) -> web.Response:
    call.check_etag(_editable(call))
    put = await call.body(InstancePut)
    operation = await call.services.instances.update(call.project, instance_name(call), put)
    return responses.background(operation.render())


async def patch_instance(call: Call) -> web.Response:
    current = _editable(call)
    call.check_etag(current)
    await call.services.instances.patch(call.project, instance_name(call), await call.patched(current))
    return responses.empty()


async def rename_instance(call: Call) -> web.Response:
    post = await call.body(InstancePost)
    _check_target(call)
    if post.project:
        call.check_allowed(post.project)
    name, services = instance_name(call), call.services
    if post.migration and not (post.pool or post.project):
        operation = services.migration_source.start(call.project, name, post)
    else:
        operation = await services.instances.rename(call.project, name, post)
    return responses.background(operation.render())


async def rebuild_instance(call: Call) -> web.Response:
    post = await call.body(InstanceRebuildPost)
    operation = await call.services.rebuild.rebuild(call.project, instance_name(call), post)
    return responses.background(operation.render())


async def delete_instance(call: Call) -> web.Response:
    operation = await call.services.instances.delete(call.project, instance_name(call))
    return responses.background(operation.render())


ENDPOINTS = (
    Endpoint("/1.0/instances", {"GET": list_instances, "POST": create_instance, "PUT": change_states}),
    Endpoint(
        "/1.0/instances/{name}",
        {
            "GET": show_instance,
            "PUT": replace_instance,
            "PATCH": patch_instance,
            "POST": rename_instance,
            "DELETE": delete_instance,
        },
    ),
    Endpoint("/1.0/instances/{name}/rebuild", {"POST": rebuild_instance}),
)
