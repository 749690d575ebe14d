# SPDX-License-Identifier: Apache-2.0
"""`/1.0/projects`."""

from aiohttp import web

from flexd.api.errors import Forbidden
from flexd.api.project import ProjectPost, ProjectPut, ProjectsPost
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import narrow
from flexd.server.endpoint import Endpoint
from flexd.server.listing import object_url

_URL = "/1.0/projects"


def _name(call: Call) -> str:
    name = call.param("name")
    if not call.caller.may_use(name):
        raise Forbidden("not authorized")
    return name


async def list_projects(call: Call) -> web.Response:
    """Whatever project the request names."""
    service = call.services.project_service
    names = [name for name in service.names() if call.caller.may_use(name)]
    if not call.recursion and not call.filter.clauses:
        return responses.sync([object_url(_URL, name) for name in names])
    found = call.filter.apply([service.show(name) for name in names])
    return responses.sync(found if call.recursion else [object_url(_URL, project.name) for project in found])


async def create_project(call: Call) -> web.Response:
    post = await call.body(ProjectsPost)
    await call.services.project_service.create(post)
    return responses.created(object_url(_URL, post.name))


async def show_project(call: Call) -> web.Response:
    project = call.services.project_service.show(_name(call))
    return responses.sync(project, editable=narrow(project, ProjectPut))


def _editable(call: Call) -> ProjectPut:
    return narrow(call.services.project_service.show(_name(call)), ProjectPut)


async def replace_project(call: Call) -> web.Response:
    call.check_etag(_editable(call))
    await call.services.project_service.update(_name(call), await call.body(ProjectPut))
    return responses.empty()


async def patch_project(call: Call) -> web.Response:
    current = _editable(call)
    call.check_etag(current)
    await call.services.project_service.update(_name(call), await call.patched(current))
    return responses.empty()


async def rename_project(call: Call) -> web.Response:
    post = await call.body(ProjectPost)
    return responses.background(call.services.project_service.rename(_name(call), post).render())


async def delete_project(call: Call) -> web.Response:
    await call.services.project_service.delete(_name(call))
    return responses.empty()


async def show_state(call: Call) -> web.Response:
    """What it is limited in and uses (extension: project_usage)."""
    return responses.sync(call.services.project_service.state(_name(call)))


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_projects, "POST": create_project}),
    Endpoint(
        _URL + "/{name}",
        {
            "GET": show_project,
            "PUT": replace_project,
            "PATCH": patch_project,
            "POST": rename_project,
            "DELETE": delete_project,
        },
    ),
    Endpoint(_URL + "/{name}/state", {"GET": show_state}),
)
