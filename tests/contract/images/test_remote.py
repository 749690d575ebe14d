# SPDX-License-Identifier: Apache-2.0
"""Images over HTTP, from a server of the test's own."""

import hashlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import MultipartWriter, web
from aiohttp.test_utils import TestServer, unused_port

from flexd.api.image import ImageAlias, ImagesPost, ImagesPostSource
from tests.contract.images.house import Failed, House, ended
from tests.unit.images.archives import metadata_member, rootfs_members, tar, unified

IMAGE = unified()
FINGERPRINT = hashlib.sha256(IMAGE).hexdigest()
METADATA, ROOTFS = tar([metadata_member()]), tar(rootfs_members(""))
SPLIT = hashlib.sha256(METADATA + ROOTFS).hexdigest()


async def image(request: web.Request) -> web.Response:
    return web.Response(body=IMAGE, content_type="application/octet-stream")


async def named(request: web.Request) -> web.Response:
    """As LXD's `url` sources answer: where the image is, and its hash."""
    headers = {"LXD-Image-URL": str(request.url.with_path("/image.tar")), "LXD-Image-Hash": FINGERPRINT}
    return web.Response(headers=headers)


async def wrong_hash(request: web.Request) -> web.Response:
    headers = {"LXD-Image-URL": str(request.url.with_path("/image.tar")), "LXD-Image-Hash": "0" * 64}
    return web.Response(headers=headers)


async def no_hash(request: web.Request) -> web.Response:
    return web.Response(headers={"LXD-Image-URL": "http://192.0.2.1/"})


async def short(request: web.Request) -> web.StreamResponse:
    """Breaks off in the middle."""
    response = web.StreamResponse(headers={"Content-Length": str(len(IMAGE))})
    await response.prepare(request)
    if request.method == "GET":
        await response.write(IMAGE[:1000])
        assert request.transport is not None
        request.transport.abort()
    return response


async def show(request: web.Request) -> web.Response:
    if request.query.get("secret") != "s":
        return web.json_response({"type": "error", "error": "not found"}, status=404)
    return web.json_response({"metadata": {"fingerprint": SPLIT, "filename": "meta.tar"}})


async def alias(request: web.Request) -> web.Response:
    return web.json_response({"metadata": {"name": request.match_info["name"], "target": SPLIT}})


async def export(request: web.Request) -> web.Response:
    with MultipartWriter("form-data") as body:
        for name, data in (("metadata", METADATA), ("rootfs", ROOTFS)):
            part = body.append(data, {"Content-Type": "application/octet-stream"})  # type: ignore[arg-type]
            part.set_content_disposition("form-data", name=name, filename=f"{name}.tar")
        return web.Response(body=body)


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    app = web.Application()
    app.router.add_get("/image.tar", image)
    app.router.add_get("/named", named)
    app.router.add_get("/wrong", wrong_hash)
    app.router.add_get("/nohash", no_hash)
    app.router.add_get("/short", short)
    app.router.add_get("/1.0/images/aliases/{name}", alias)
    app.router.add_get(f"/1.0/images/{SPLIT}", show)
    app.router.add_get(f"/1.0/images/{SPLIT}/export", export)
    async with TestServer(app) as running:
        yield running


async def fetch(house: House, source: ImagesPostSource, **fields: object) -> str:
    post = ImagesPost(source=source, **fields)  # type: ignore[arg-type]
    result = await ended(await house.images.create_from_source("default", post))
    fingerprint: str = result["fingerprint"]
    return fingerprint


async def test_link_to_a_file(house: House, server: TestServer) -> None:
    source = ImagesPostSource(type="url", url=str(server.make_url("/image.tar")))
    assert await fetch(house, source, aliases=[ImageAlias(name="tiny")], public=True) == FINGERPRINT
    shown = house.images.show("default", FINGERPRINT)
    assert (shown.filename, shown.public, shown.aliases[0].name) == ("image.tar", True, "tiny")


async def test_url_that_names_an_image(house: House, server: TestServer) -> None:
    assert await fetch(house, ImagesPostSource(type="url", url=str(server.make_url("/named")))) == FINGERPRINT


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/wrong", "fingerprints don't match"),
        ("/nohash", "Missing LXD-Image-Hash header"),
        ("/short", "Failed downloading image from"),
        ("/absent", "the server answered 404"),
    ],
)
async def test_bad_urls_leave_nothing(house: House, server: TestServer, path: str, fault: str) -> None:
    with pytest.raises(Failed, match=fault):
        await fetch(house, ImagesPostSource(type="url", url=str(server.make_url(path))))
    assert house.files() == []


async def test_nobody_there(house: House) -> None:
    with pytest.raises(Failed, match="Failed downloading image from"):
        await fetch(house, ImagesPostSource(type="url", url=f"http://127.0.0.1:{unused_port()}/x"))


async def test_from_another_server(house: House, server: TestServer) -> None:
    source = ImagesPostSource(
        type="image", mode="pull", protocol="lxd", server=str(server.make_url("/")), alias="a/b", secret="s"
    )
    assert await fetch(house, source) == SPLIT
    shown = house.images.show("default", SPLIT)
    assert shown.filename == "meta.tar"
    assert shown.update_source is None  # a secret opens once: there is nowhere to look for newer versions


async def test_from_another_server_without_its_secret(house: House, server: TestServer) -> None:
    source = ImagesPostSource(type="image", server=str(server.make_url("/")), fingerprint=SPLIT)
    with pytest.raises(Failed, match="Image not found on server"):
        await fetch(house, source)
    assert house.files() == []
