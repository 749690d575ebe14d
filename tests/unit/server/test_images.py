# SPDX-License-Identifier: Apache-2.0
"""Images over HTTP: upload, edit, aliases with slashes, export."""

import hashlib
import io

import aiohttp
from aiohttp.multipart import BodyPartReader, MultipartReader

from tests.unit.server.conftest import METADATA, URL, Client, tar_of, tiny_image


async def upload(client: Client) -> str:
    operation = await client.done(
        "POST", "/1.0/images", tiny_image(), X_LXD_filename="tiny.tar", X_LXD_properties="a=b", X_LXD_public="1"
    )
    fingerprint: str = operation["metadata"]["fingerprint"]
    return fingerprint


async def test_a_unified_image(client: Client) -> None:
    fingerprint = await upload(client)
    assert fingerprint == hashlib.sha256(tiny_image()).hexdigest()
    assert (await client.call("GET", "/1.0/images")).metadata == [f"/1.0/images/{fingerprint}"]
    shown = (await client.call("GET", f"/1.0/images/{fingerprint[:8]}")).metadata
    assert (shown["filename"], shown["public"], shown["properties"]["a"]) == ("tiny.tar", True, "b")
    exported = await client.call("GET", f"/1.0/images/{fingerprint}/export")
    assert exported.body == tiny_image()
    assert "filename=" in exported.headers["Content-Disposition"]
    head = await client.call("HEAD", f"/1.0/images/{fingerprint}/export")
    assert (head.body, head.headers["Content-Length"]) == (b"", str(len(tiny_image())))
    part = await client.call("GET", f"/1.0/images/{fingerprint}/export", Range="bytes=0-9")
    assert (part.status, part.body) == (206, tiny_image()[:10])


async def test_a_split_image_comes_and_goes_in_two_parts(client: Client) -> None:
    metadata, rootfs = tar_of({"metadata.yaml": METADATA}), tar_of({"sbin/init": b"#!"})
    form = aiohttp.FormData()
    form.add_field("metadata", io.BytesIO(metadata), filename="meta.tar", content_type="application/octet-stream")
    form.add_field("rootfs", io.BytesIO(rootfs), filename="root.tar", content_type="application/octet-stream")
    async with client.session.post(URL + "/1.0/images", data=form) as response:
        assert response.status == 202
        operation = (await response.json())["operation"]
    ended = (await client.call("GET", f"{operation}/wait?timeout=20")).metadata
    fingerprint = ended["metadata"]["fingerprint"]
    assert fingerprint == hashlib.sha256(metadata + rootfs).hexdigest()
    async with client.session.get(f"{URL}/1.0/images/{fingerprint}/export") as response:
        parts = {}
        async for part in MultipartReader.from_response(response):
            assert isinstance(part, BodyPartReader)
            parts[part.name] = bytes(await part.read())
    assert parts == {"metadata": metadata, "rootfs": rootfs}


async def test_edit_filter_and_delete(client: Client) -> None:
    fingerprint = await upload(client)
    url = f"/1.0/images/{fingerprint}"
    etag = (await client.call("GET", url)).headers["ETag"]
    answer = await client.call("PATCH", url, {"properties": {"c": "d"}, "public": False}, If_Match=etag)
    assert answer.status == 200
    shown = (await client.call("GET", url)).metadata
    assert (shown["public"], shown["properties"]["a"], shown["properties"]["c"]) == (False, "b", "d")
    assert (await client.call("PUT", url, {}, If_Match=etag)).status == 412
    for query, count in (("properties.c+eq+d", 1), ("properties.c+eq+x", 0), ("public+eq+false", 1)):
        assert len((await client.call("GET", f"/1.0/images?filter={query}")).metadata) == count
    await client.done("DELETE", url)
    assert (await client.call("GET", url)).error == "Image not found"


async def test_aliases_with_slashes(client: Client) -> None:
    fingerprint = await upload(client)
    made = await client.call("POST", "/1.0/images/aliases", {"name": "debian/12", "target": fingerprint})
    assert (made.status, made.headers["Location"]) == (201, "/1.0/images/aliases/debian%2F12")
    for path in ("debian/12", "debian%2F12"):
        shown = await client.call("GET", f"/1.0/images/aliases/{path}")
        assert (shown.metadata["name"], shown.metadata["target"]) == ("debian/12", fingerprint)
    await client.call("PATCH", "/1.0/images/aliases/debian%2F12", {"description": "x"})
    moved = await client.call("POST", "/1.0/images/aliases/debian%2F12", {"name": "d12"})
    assert moved.status == 201
    listed = (await client.call("GET", "/1.0/images/aliases?recursion=1")).metadata
    assert [(alias["name"], alias["description"]) for alias in listed] == [("d12", "x")]
    assert (await client.call("DELETE", "/1.0/images/aliases/d12")).status == 200
    assert (await client.call("GET", "/1.0/images/aliases")).metadata == []


async def test_bodies_that_are_no_image(client: Client) -> None:
    assert (await client.call("POST", "/1.0/images")).status == 400
    wrong = await client.call("POST", "/1.0/images", {"public": "yes", "source": {"type": 1}})
    assert (wrong.status, wrong.error) == (
        400,
        "public: expected bool, got str; source.type: expected str, got int",
    )
    assert (await client.call("POST", "/1.0/images", {"source": {"type": "bogus"}})).status == 400
