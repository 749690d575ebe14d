# SPDX-License-Identifier: Apache-2.0
"""`/1.0/images/aliases`; names may contain slashes, percent-encoded or not."""

from aiohttp import web

from flexd.api.image import ImageAliasesEntryPost, ImageAliasesEntryPut, ImageAliasesPost
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import narrow
from flexd.server.editing import editing
from flexd.server.endpoint import Endpoint
from flexd.server.listing import list_response, object_url

_URL = "/1.0/images/aliases"


def _editable(call: Call) -> ImageAliasesEntryPut:
    return narrow(call.services.images.show_alias(call.owner("images"), call.param("name")), ImageAliasesEntryPut)


async def list_aliases(call: Call) -> web.Response:
    images = call.services.images
    return list_response(call, _URL, images.alias_names, images.aliases, feature="images")


async def create_alias(call: Call) -> web.Response:
    post = await call.body(ImageAliasesPost)
    await call.services.images.create_alias(call.owner("images"), post)
    return responses.created(object_url(_URL, post.name, call.owner("images")))


async def show_alias(call: Call) -> web.Response:
    """To those who are not trusted: only names of public images."""
    name, public_only = call.param("name"), not call.caller.trusted
    alias = call.services.images.show_alias(call.owner("images"), name, public_only=public_only)
    return responses.sync(alias, editable=narrow(alias, ImageAliasesEntryPut))


async def _update(call: Call, put: ImageAliasesEntryPut) -> None:
    await call.services.images.update_alias(call.owner("images"), call.param("name"), put)


async def rename_alias(call: Call) -> web.Response:
    post = await call.body(ImageAliasesEntryPost)
    await call.services.images.rename_alias(call.owner("images"), call.param("name"), post)
    return responses.created(object_url(_URL, post.name, call.owner("images")))


async def delete_alias(call: Call) -> web.Response:
    await call.services.images.delete_alias(call.owner("images"), call.param("name"))
    return responses.empty()


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_aliases, "POST": create_alias}),
    Endpoint(
        _URL + "/{name:.+}",
        {
            "GET": show_alias,
            **editing(ImageAliasesEntryPut, _editable, _update),
            "POST": rename_alias,
            "DELETE": delete_alias,
        },
        allow_untrusted=frozenset({"GET"}),
    ),
)
