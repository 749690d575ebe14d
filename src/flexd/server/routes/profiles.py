# SPDX-License-Identifier: Apache-2.0
"""`/1.0/profiles`."""

from aiohttp import web

from flexd.api.profile import ProfilePost, ProfilePut, ProfilesPost
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import narrow
from flexd.server.editing import editing
from flexd.server.endpoint import Endpoint
from flexd.server.listing import list_response, object_url

_URL = "/1.0/profiles"


def _editable(call: Call) -> ProfilePut:
    return narrow(call.services.profiles.show(call.owner("profiles"), call.param("name")), ProfilePut)


async def list_profiles(call: Call) -> web.Response:
    profiles = call.services.profiles
    return list_response(call, _URL, profiles.names, profiles.show_all, feature="profiles")


async def create_profile(call: Call) -> web.Response:
    post = await call.body(ProfilesPost)
    await call.services.profiles.create(call.owner("profiles"), post)
    return responses.created(object_url(_URL, post.name, call.owner("profiles")))


async def show_profile(call: Call) -> web.Response:
    profile = call.services.profiles.show(call.owner("profiles"), call.param("name"))
    return responses.sync(call.shown(profile), editable=narrow(profile, ProfilePut))


async def _update(call: Call, put: ProfilePut) -> None:
    await call.services.profiles.update(call.owner("profiles"), call.param("name"), put)


async def rename_profile(call: Call) -> web.Response:
    post = await call.body(ProfilePost)
    await call.services.profiles.rename(call.owner("profiles"), call.param("name"), post)
    return responses.created(object_url(_URL, post.name, call.owner("profiles")))


async def delete_profile(call: Call) -> web.Response:
    await call.services.profiles.delete(call.owner("profiles"), call.param("name"))
    return responses.empty()


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_profiles, "POST": create_profile}),
    Endpoint(
        _URL + "/{name}",
        {
            "GET": show_profile,
            **editing(ProfilePut, _editable, _update),
            "POST": rename_profile,
            "DELETE": delete_profile,
        },
    ),
)
