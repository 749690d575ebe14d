# SPDX-License-Identifier: Apache-2.0
"""`/1.0/images`: the store, uploads and export."""

import secrets
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.multipart import BodyPartReader

from flexd.api.errors import BadRequest, TooLarge
from flexd.api.image import ImageExportPost, ImagePut, ImagesPost
from flexd.images.incoming import UploadPart, parse_upload_headers
from flexd.instances.publish import KINDS
from flexd.operations.operations import Operation
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.decode import decode, narrow
from flexd.server.endpoint import Endpoint
from flexd.server.listing import list_response
from flexd.server.streaming import PIECE_BYTES, FilePart, send_parts, send_path

_URL = "/1.0/images"
_PUBLIC = frozenset({"GET"})  # of public images, and by secret


def _editable(call: Call) -> ImagePut:
    return narrow(call.services.images.show(call.owner("images"), call.param("fingerprint")), ImagePut)


def _check_readable(call: Call) -> None:
    """Those who are not trusted see public images, and with a secret of `POST images/FP/secret` one that is not."""
    if not call.caller.trusted:
        call.services.images.check_readable(call.owner("images"), call.param("fingerprint"), call.query("secret"))


async def list_images(call: Call) -> web.Response:
    images, public_only = call.services.images, not call.caller.trusted
    names = partial(images.fingerprints, public_only=public_only)
    return list_response(
        call, _URL, names, partial(images.show_all, public_only=public_only), key="fingerprint", feature="images"
    )


async def create_image(call: Call) -> web.Response:
    """JSON says where to get the image; anything else is the image, in two parts if it is a split one."""
    if not call.caller.trusted:
        return await _accept_push(call)
    if call.request.content_type.startswith("multipart/"):
        operation = await _upload_parts(call)
    else:
        operation = await _upload_or_fetch(call)
    return responses.background(operation.render())


async def _accept_push(call: Call) -> web.Response:
    """An image from a server that is not trusted but has a push token's secret, which also lets it wait."""
    headers = parse_upload_headers(call.request.headers)
    multipart = call.request.content_type.startswith("multipart/")
    body = _parts(call.request) if multipart else call.request.content.iter_any()
    body = _once_let_in(call, body)
    operation, secret = await call.services.images.create_from_push(
        call.owner("images"), body, headers, multipart=multipart
    )
    operation.allow_wait(secret)
    return responses.background(operation.render())


async def _once_let_in(call: Call, body: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Nothing of it is asked for before the secret was found right."""
    call.exempt()
    async for piece in body:
        yield piece


async def _upload_parts(call: Call) -> Operation:
    headers = parse_upload_headers(call.request.headers)
    return await call.services.images.create_from_upload(
        call.owner("images"), _parts(call.request), headers, multipart=True
    )


async def _upload_or_fetch(call: Call) -> Operation:
    """Told apart by the first byte: not every client sends a Content-Type (pylxd, Ansible), and no archive starts with
    a brace."""
    images = call.services.images
    first = await call.request.content.readany()
    if not first:
        raise BadRequest("Invalid image: the request has no body")
    if first.lstrip()[:1] == b"{":
        post = decode(await _rest(call.request, first), ImagesPost)
        if post.source is not None and post.source.type in KINDS:
            source = post.source.project or call.project
            call.check_allowed(source)
            return await call.services.publishing.publish(source, call.owner("images"), post)
        _check_server(call, post)
        return await images.create_from_source(call.owner("images"), post)
    headers = parse_upload_headers(call.request.headers)
    return await images.create_from_upload(call.owner("images"), _chunks(call.request, first), headers, multipart=False)


def _check_server(call: Call, post: ImagesPost) -> None:
    """`restricted.images.servers`."""
    for url in (post.source.server, post.source.url) if post.source is not None else ():
        if url:
            call.services.projects.check_image_server(call.project, urlsplit(url).hostname or url)


async def _rest(request: web.Request, first: bytes) -> bytes:
    pieces = [first]
    total = len(first)
    async for piece in request.content.iter_any():
        pieces.append(piece)
        total += len(piece)
        if total > request.client_max_size:
            raise TooLarge(f"Invalid request: its JSON body has more than {request.client_max_size} bytes")
    return b"".join(pieces)


async def _chunks(request: web.Request, first: bytes) -> AsyncIterator[bytes]:
    yield first
    async for piece in request.content.iter_any():
        yield piece


async def _parts(request: web.Request) -> AsyncIterator[UploadPart]:
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader):
            raise BadRequest("Invalid multipart image: nested parts")
        yield UploadPart(part.name or "", part.filename or "", _part_chunks(part))


async def _part_chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while piece := await part.read_chunk(PIECE_BYTES):
        yield bytes(piece)


async def show_image(call: Call) -> web.Response:
    _check_readable(call)
    image = call.services.images.show(call.owner("images"), call.param("fingerprint"))
    return responses.sync(image, editable=narrow(image, ImagePut))


async def replace_image(call: Call) -> web.Response:
    call.check_etag(_editable(call))
    await call.services.images.update(call.owner("images"), call.param("fingerprint"), await call.body(ImagePut))
    return responses.empty()


async def patch_image(call: Call) -> web.Response:
    current = _editable(call)
    call.check_etag(current)
    await call.services.images.update(call.owner("images"), call.param("fingerprint"), await call.patched(current))
    return responses.empty()


async def delete_image(call: Call) -> web.Response:
    operation = await call.services.images.delete(call.owner("images"), call.param("fingerprint"))
    return responses.background(operation.render())


async def export_image(call: Call) -> web.StreamResponse:
    """The file as it came in; a split image as multipart/form-data."""
    _check_readable(call)
    images = call.services.images
    files = await images.export_files(call.owner("images"), call.param("fingerprint"))
    if files.rootfs is None:
        response = await send_path(call.request, files.metadata, files.metadata_name)
    else:
        parts = [
            FilePart("metadata", files.metadata_name, files.metadata),
            FilePart("rootfs", files.rootfs_name, files.rootfs),
        ]
        response = await send_parts(call.request, parts, boundary=secrets.token_hex(16))
    if call.request.method == "GET" and _reached_the_end(response):
        images.was_exported(call.query("secret"))
    return response


def _reached_the_end(response: web.StreamResponse) -> bool:
    """Not if it was a range in the middle: a download that broke off asks for the rest with the same secret."""
    sent, _, total = response.headers.get("Content-Range", "bytes 0-0/1").removeprefix("bytes ").partition("/")
    return int(sent.partition("-")[2]) + 1 == int(total)


async def push_image(call: Call) -> web.Response:
    """Send it to the server that gave out the secret (`lxc image copy --mode push`)."""
    post = await call.body(ImageExportPost)
    operation = await call.services.images.push(call.owner("images"), call.param("fingerprint"), post)
    return responses.background(operation.render())


async def refresh_image(call: Call) -> web.Response:
    return responses.background(call.services.images.refresh(call.owner("images"), call.param("fingerprint")).render())


async def create_secret(call: Call) -> web.Response:
    return responses.background(
        call.services.images.issue_secret(call.owner("images"), call.param("fingerprint")).render()
    )


ENDPOINTS = (
    Endpoint(_URL, {"GET": list_images, "POST": create_image}, allow_untrusted=frozenset({"GET", "POST"})),
    Endpoint(
        _URL + "/{fingerprint}",
        {"GET": show_image, "PUT": replace_image, "PATCH": patch_image, "DELETE": delete_image},
        allow_untrusted=_PUBLIC,
    ),
    Endpoint(_URL + "/{fingerprint}/export", {"GET": export_image, "POST": push_image}, allow_untrusted=_PUBLIC),
    Endpoint(_URL + "/{fingerprint}/refresh", {"POST": refresh_image}),
    Endpoint(_URL + "/{fingerprint}/secret", {"POST": create_secret}),
)
