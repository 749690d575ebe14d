# SPDX-License-Identifier: Apache-2.0
"""A simplestreams server of the test's own on loopback, as honest or as hostile as a test wants it."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.unit.images.archives import METADATA, metadata_member, rootfs_members, tar

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def sha256(*data: bytes) -> str:
    return hashlib.sha256(b"".join(data)).hexdigest()


def halves(serial: str) -> tuple[bytes, bytes]:
    """A split image that differs from those of other serials."""
    return tar([metadata_member(METADATA + f"# {serial}\n".encode())]), tar(rootfs_members(""))


def item(kind: str, path: str, data: bytes, **more: str) -> dict[str, Any]:
    return {"ftype": kind, "path": path, "sha256": sha256(data), "size": len(data), **more}


class Tree:
    """`files` by path; `overrides` answer in their place; `requests` is what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.overrides: dict[str, Handler] = {}
        self.requests: list[web.Request] = []
        self.products: dict[str, Any] = {}
        self.fingerprint = ""
        self.url = ""
        self.server = TestServer(self._app())

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        return app

    def asked(self, path: str) -> list[web.Request]:
        return [request for request in self.requests if request.path.lstrip("/") == path]

    def add(self, serial: str, *, arch: str = "amd64", alias: str = "tiny/1") -> str:
        """One more version of tiny/1; returns its fingerprint."""
        metadata, rootfs = halves(f"{serial} {arch}")
        base = f"images/tiny/{arch}/{serial}"
        self.files |= {f"{base}/lxd.tar.xz": metadata, f"{base}/root.tar.xz": rootfs}
        fingerprint = sha256(metadata, rootfs)
        product = self.products.setdefault(
            f"tiny:1:{arch}:default",
            {"aliases": alias, "arch": arch, "os": "Tiny", "release": "1", "variant": "default", "versions": {}},
        )
        product["versions"][serial] = {
            "items": {
                "lxd.tar.xz": item("lxd.tar.xz", f"{base}/lxd.tar.xz", metadata, combined_rootxz_sha256=fingerprint),
                "root.tar.xz": item("root.tar.xz", f"{base}/root.tar.xz", rootfs),
            }
        }
        self.publish()
        return fingerprint

    def publish(self) -> None:
        """Write the documents anew."""
        listed = {
            "datatype": "image-downloads",
            "path": "streams/v1/images.json",
            "format": "products:1.0",
            "products": list(self.products),
        }
        index = {"format": "index:1.0", "index": {"images": listed}}
        document = {"content_id": "images", "format": "products:1.0", "products": self.products}
        self.files["streams/v1/index.json"] = json.dumps(index).encode()
        self.files["streams/v1/images.json"] = json.dumps(document).encode()

    def item(self, kind: str) -> dict[str, Any]:
        """That file's entry in the newest version of the first product; `publish` after changing it."""
        product = next(iter(self.products.values()))
        found: dict[str, Any] = product["versions"][max(product["versions"])]["items"][kind]
        return found

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        path = request.match_info["path"]
        if path in self.overrides:
            return await self.overrides[path](request)
        if path not in self.files:
            raise web.HTTPNotFound
        return ranged(request, self.files[path])


def ranged(request: web.Request, data: bytes) -> web.Response:
    """What a web server answers: validators and ranges."""
    etag = f'"{sha256(data)[:16]}"'
    if request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers={"ETag": etag})
    start = request.http_range.start or 0
    if not start:
        return web.Response(body=data, headers={"ETag": etag})
    headers = {"ETag": etag, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
    return web.Response(status=206, body=data[start:], headers=headers)


def breaking(data: bytes, *, after: int, ranges: bool = True, times: int = 1_000_000) -> Handler:
    """Breaks the connection off `after` bytes each of the first `times` times."""
    left = times

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal left
        if left == 0:
            return ranged(request, data) if ranges else web.Response(body=data)
        left -= 1
        whole = ranged(request, data) if ranges else web.Response(body=data)
        assert isinstance(whole.body, bytes)
        response = web.StreamResponse(status=whole.status, headers=whole.headers)
        response.content_length = len(whole.body)
        await response.prepare(request)
        await response.write(whole.body[:after])
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


def stalling(data: bytes, *, after: int) -> Handler:
    """Sends some bytes and then nothing, with the connection open."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(data)
        await response.prepare(request)
        await response.write(data[:after])
        await asyncio.Event().wait()
        return response

    return answer


async def redirect_to_itself(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound(request.path_qs)


@asynccontextmanager
async def serving() -> AsyncIterator[Tree]:
    tree = Tree()
    async with tree.server:
        tree.url = str(tree.server.make_url("")).rstrip("/")
        yield tree
