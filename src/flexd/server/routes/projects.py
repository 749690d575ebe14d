# SPDX-License-Identifier: Apache-2.0
"""`/1.0/projects`: the default project, which cannot be changed."""

from aiohttp import web

from flexd.api.errors import Forbidden, NotFound, NotSupported
from flexd.api.project import ProjectPut, ProjectState, ProjectStateResource
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import narrow
from flexd.server.endpoint import Endpoint
from flexd.server.listing import list_response, object_url
from flexd.server.projects import PROJECTS, show_project

_URL = "/1.0/projects"
_UNLIMITED = -1


def _name(call: Call) -> str:
    name = call.param("name")
    if not call.caller.may_use(name):
        raise Forbidden("not authorized")
    if name not in PROJECTS:
        raise NotFound("Project not found")
    return name


def _used_by(call: Call, project: str) -> list[str]:
    services = call.services
    collections = {
        "/1.0/instances": services.instances.names(project),
        "/1.0/profiles": services.profiles.names(project),
        "/1.0/images": services.images.fingerprints(project),
        "/1.0/networks": services.networks.names(project),
    }
    return [object_url(url, name, project) for url, names in collections.items() for name in names]


async def list_projects(call: Call) -> web.Response:
    names = [name for name in PROJECTS if call.caller.may_use(name)]
    return list_response(
        call,
        _URL,
        lambda _project: names,
        lambda _project: [show_project(name, _used_by(call, name)) for name in names],
    )


async def show_one(call: Call) -> web.Response:
    name = _name(call)
    project = show_project(name, _used_by(call, name))
    return responses.sync(project, editable=narrow(project, ProjectPut))


async def show_state(call: Call) -> web.Response:
    """Usage of what is counted; nothing is limited in the default project."""
    name = _name(call)
    usage = {
        "containers": len(call.services.instances.names(name)),
        "instances": len(call.services.instances.names(name)),
        "networks": len(call.services.networks.names(name)),
        "virtual-machines": 0,
    }
    resources = {kind: ProjectStateResource(Limit=_UNLIMITED, Usage=count) for kind, count in usage.items()}
    return responses.sync(ProjectState(resources=resources))


async def refuse(_call: Call) -> web.Response:
    raise NotSupported('This server has one project, "default", which cannot be changed')


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_projects, "POST": refuse}),
    Endpoint(_URL + "/{name}", {"GET": show_one, "PUT": refuse, "PATCH": refuse, "POST": refuse, "DELETE": refuse}),
    Endpoint(_URL + "/{name}/state", {"GET": show_state}),
)
