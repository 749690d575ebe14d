# SPDX-License-Identifier: Apache-2.0
"""`/1.0/instances/NAME/metadata` and its templates: what the instance keeps of its image."""

from aiohttp import web

from flexd.api.errors import BadRequest
from flexd.api.image import ImageMetadata
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint
from flexd.server.instance_path import instance_name


async def show_metadata(call: Call) -> web.Response:
    metadata = call.services.metadata.show(call.project, instance_name(call))
    return responses.sync(metadata, editable=metadata)


async def replace_metadata(call: Call) -> web.Response:
    name = instance_name(call)
    if call.request.headers.get("If-Match"):
        call.check_etag(call.services.metadata.show(call.project, name))
    await call.services.metadata.update(call.project, name, await call.body(ImageMetadata))
    return responses.empty()


async def patch_metadata(call: Call) -> web.Response:
    name = instance_name(call)
    current = call.services.metadata.show(call.project, name)
    call.check_etag(current)
    await call.services.metadata.update(call.project, name, await call.patched(current))
    return responses.empty()


def _path(call: Call) -> str:
    path = call.query("path")
    if not path:
        raise BadRequest("missing path argument")
    return path


async def show_templates(call: Call) -> web.Response:
    """All names, or with `path=` the text of one."""
    metadata, name, path = call.services.metadata, instance_name(call), call.query("path")
    if not path:
        return responses.sync(metadata.templates(call.project, name))
    text = metadata.template(call.project, name, path)
    headers = {"Content-Disposition": f"inline;filename={path}"}
    return web.Response(body=text.encode(), content_type="application/octet-stream", headers=headers)


async def write_template(call: Call) -> web.Response:
    text = await call.request.read()
    await call.services.metadata.write_template(call.project, instance_name(call), _path(call), text)
    return responses.empty()


async def delete_template(call: Call) -> web.Response:
    await call.services.metadata.delete_template(call.project, instance_name(call), _path(call))
    return responses.empty()


_METADATA = "/1.0/instances/{name}/metadata"

ENDPOINTS = (
    Endpoint(_METADATA, {"GET": show_metadata, "PUT": replace_metadata, "PATCH": patch_metadata}),
    Endpoint(f"{_METADATA}/templates", {"GET": show_templates, "POST": write_template, "DELETE": delete_template}),
)
