# SPDX-License-Identifier: Apache-2.0
"""Images of a simplestreams server: what is fetched, checked, taken up again, refused and kept."""

import asyncio
import gzip
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from flexd.api.errors import BadRequest, FlexdError, NotFound
from flexd.api.image import ImageAliasesPost, ImagePut, ImagesPost, ImagesPostSource
from flexd.images.simplestreams import _Server
from flexd.images.transfer import DownloadFailed, Unreachable
from flexd.operations.journal import ignore_progress
from tests.contract.images.conftest import needs_root
from tests.contract.images.house import Failed, House, ended
from tests.contract.images.tree import Tree, breaking, ranged, redirect_to_itself, serving, stalling

ROOT = "images/tiny/amd64/20260101_06:00/root.tar.xz"
LEADING = b'{"index": {"a": {"datatype": "image-downloads", "path": "%s", "products": ["a"]}}}'
INDEX, PRODUCTS = "streams/v1/index.json", "streams/v1/images.json"


@pytest.fixture
async def tree() -> AsyncIterator[Tree]:
    async with serving() as made:
        made.fingerprint = made.add("20260101_06:00")
        yield made


def source(tree: Tree, name: str = "tiny/1") -> ImagesPostSource:
    return ImagesPostSource(type="image", mode="pull", server=tree.url, protocol="simplestreams", alias=name)


async def copy(house: House, tree: Tree, name: str = "tiny/1", **fields: Any) -> str:
    post = ImagesPost(source=source(tree, name), **fields)
    fingerprint: str = (await ended(await house.images.create_from_source("default", post)))["fingerprint"]
    return fingerprint


async def cache(house: House, tree: Tree, name: str = "tiny/1", project: str = "default") -> str:
    fetch = await house.images.remote(source(tree, name), "x86_64")
    return (await house.images.cache(project, fetch, ignore_progress)).fingerprint


def outdate(house: House) -> None:
    """Let every index that is remembered be asked for again."""
    servers: dict[str, _Server] = house.images._sources._streams._servers
    for server in servers.values():
        server.checked_at -= 3600


async def test_copy(house: House, tree: Tree) -> None:
    assert await copy(house, tree, auto_update=True, public=True) == tree.fingerprint
    image = house.images.show("default", tree.fingerprint)
    assert (image.architecture, image.filename, image.public, image.auto_update) == (
        "x86_64",
        "lxd.tar.xz",
        True,
        True,
    )
    assert image.properties["serial"] == "20260101_06:00"
    assert image.properties["description"] == "Tiny 1 amd64 (20260101_06:00)"
    assert image.update_source is not None
    assert (image.update_source.server, image.update_source.alias, image.update_source.protocol) == (
        tree.url,
        "tiny/1",
        "simplestreams",
    )
    assert len(house.files()) == 3


async def test_copied_twice_is_one_image(house: House, tree: Tree) -> None:
    await copy(house, tree)
    assert await copy(house, tree, public=True) == tree.fingerprint
    assert house.images.show("default", tree.fingerprint).public
    assert len(tree.asked(ROOT)) == 1


async def test_by_fingerprint_of_an_older_version(house: House, tree: Tree) -> None:
    tree.add("20260202_06:00")
    post = ImagesPost(source=source(tree, ""))
    assert post.source is not None
    post.source.fingerprint = tree.fingerprint[:12]
    result = await ended(await house.images.create_from_source("default", post))
    assert result["fingerprint"] == tree.fingerprint
    assert house.images.show("default", tree.fingerprint).update_source is None


async def test_other_architecture_by_name_or_setting(house: House, tree: Tree) -> None:
    arm = tree.add("20260101_06:00", arch="arm64")
    assert await copy(house, tree, "tiny/1/arm64") == arm
    await ended(await house.images.delete("default", arm))
    house.settings["images.default_architecture"] = "aarch64"
    assert await copy(house, tree) == arm


async def test_many_at_once_download_once(house: House, tree: Tree) -> None:
    found = await asyncio.gather(*(cache(house, tree) for _ in range(6)), copy(house, tree))
    assert set(found) == {tree.fingerprint}
    assert len(tree.asked(ROOT)) == 1


async def test_another_project_takes_the_files_that_are_here(house: House, tree: Tree) -> None:
    await cache(house, tree)
    assert await cache(house, tree, project="other") == tree.fingerprint
    assert len(tree.asked(ROOT)) == 1
    await ended(await house.images.delete("default", tree.fingerprint))
    assert house.images.show("other", tree.fingerprint).cached
    assert len(house.files()) == 3


async def test_cached_image_serves_without_the_server(house: House, tree: Tree) -> None:
    await cache(house, tree)
    image = house.images.show("default", tree.fingerprint)
    assert (image.cached, image.auto_update) == (True, True)
    used_at = image.last_used_at
    await tree.server.close()
    outdate(house)
    assert await cache(house, tree) == tree.fingerprint
    house.settings["images.auto_update_interval"] = "0"  # not kept up to date: the server is asked first
    assert await cache(house, tree) == tree.fingerprint
    assert house.images.show("default", tree.fingerprint).last_used_at > used_at
    with pytest.raises(Unreachable):
        await cache(house, tree, "other/1")


async def test_index_is_asked_for_once_and_then_only_if_changed(house: House, tree: Tree) -> None:
    house.settings["images.auto_update_cached"] = "false"
    await cache(house, tree)
    await cache(house, tree)
    assert len(tree.asked(PRODUCTS)) == 1
    outdate(house)
    await cache(house, tree)
    assert "If-None-Match" in tree.asked(PRODUCTS)[1].headers
    newer = tree.add("20260303_06:00")
    assert await cache(house, tree) == tree.fingerprint
    outdate(house)
    assert await cache(house, tree) == newer


async def test_refresh_replaces_and_keeps_names_and_settings(house: House, tree: Tree) -> None:
    await copy(house, tree, auto_update=True)
    put = ImagePut(auto_update=True, public=True, profiles=["default", "small"])
    await house.images.update("default", tree.fingerprint, put)
    await house.images.create_alias("default", ImageAliasesPost(name="mine", target=tree.fingerprint))
    assert (await ended(house.images.refresh("default", tree.fingerprint)))["refreshed"] is False
    newer = tree.add("20260202_06:00")
    outdate(house)
    assert (await ended(house.images.refresh("default", tree.fingerprint)))["refreshed"] is True
    assert house.images.fingerprints("default") == [newer]
    image = house.images.show("default", newer)
    assert (image.public, image.profiles, [a.name for a in image.aliases]) == (True, ["default", "small"], ["mine"])
    assert house.unlinked == [tree.fingerprint]
    assert len(house.files()) == 3


# --- what breaks ---


@pytest.mark.parametrize("ranges", [True, False])
async def test_broken_download_goes_on(house: House, tree: Tree, ranges: bool) -> None:
    data = tree.files[ROOT]
    tree.overrides[ROOT] = breaking(data, after=len(data) // 2, ranges=ranges, times=2)
    assert await copy(house, tree) == tree.fingerprint
    asked = tree.asked(ROOT)
    assert len(asked) >= 2
    assert all(request.headers["Range"].startswith("bytes=") for request in asked[1:])


async def test_server_that_dies_every_time_is_given_up(house: House, tree: Tree) -> None:
    tree.overrides[ROOT] = breaking(tree.files[ROOT], after=10, ranges=False)
    with pytest.raises(Failed, match=r"Failed downloading image from .*root.tar.xz.*10 of \d+ bytes came"):
        await copy(house, tree)
    assert house.files() == []


async def test_server_that_falls_silent_is_given_up(house: House, tree: Tree) -> None:
    tree.overrides[ROOT] = stalling(tree.files[ROOT], after=100)
    with pytest.raises(Failed, match=r"the server fell silent \(\d+ of \d+ bytes came\)"):
        await copy(house, tree)
    assert house.files() == []


async def test_cancelled_download_leaves_nothing(house: House, tree: Tree) -> None:
    asked = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    tree.overrides[ROOT] = hang
    operation = await house.images.create_from_source("default", ImagesPost(source=source(tree)))
    await asked.wait()
    await operation.cancel()
    await operation.wait()
    assert operation.status == "Cancelled"
    assert house.files() == []


async def test_after_a_failure_it_can_be_fetched(house: House, tree: Tree) -> None:
    tree.overrides[ROOT] = breaking(b"x", after=0)
    with pytest.raises(Failed):
        await copy(house, tree)
    tree.overrides.clear()
    assert await copy(house, tree) == tree.fingerprint


async def _wrong_hash(tree: Tree) -> None:
    tree.files[ROOT] = bytes(reversed(tree.files[ROOT]))


async def _wrong_metadata_hash(tree: Tree) -> None:
    tree.item("lxd.tar.xz")["sha256"] = "0" * 64


async def _larger(tree: Tree) -> None:
    tree.files[ROOT] += b"x"


async def _smaller(tree: Tree) -> None:
    tree.files[ROOT] = tree.files[ROOT][:-512]


async def _larger_without_length(tree: Tree) -> None:
    data = tree.files[ROOT]

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(data + bytes(1 << 20))
        return response

    tree.overrides[ROOT] = answer


async def _gone(tree: Tree) -> None:
    del tree.files[ROOT]


async def _forbidden(tree: Tree) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        raise web.HTTPForbidden

    tree.overrides[ROOT] = answer


async def _circle(tree: Tree) -> None:
    tree.overrides[ROOT] = redirect_to_itself


async def _wrong_range(tree: Tree) -> None:
    data, first = tree.files[ROOT], breaking(tree.files[ROOT], after=100, times=1)

    async def answer(request: web.Request) -> web.StreamResponse:
        if "Range" not in request.headers:
            return await first(request)
        return web.Response(status=206, body=data, headers={"Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}"})

    tree.overrides[ROOT] = answer


async def _changing(tree: Tree) -> None:
    data, first = tree.files[ROOT], breaking(tree.files[ROOT], after=100, times=1)

    async def answer(request: web.Request) -> web.StreamResponse:
        if "Range" not in request.headers:
            return await first(request)
        return web.Response(body=data, headers={"ETag": '"another"'})

    tree.overrides[ROOT] = answer


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_wrong_hash, r"root.tar.xz\": the SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}"),
        (_wrong_metadata_hash, r"lxd.tar.xz\": the SHA-256 is [0-9a-f]{64}, expected 0{64}"),
        (_larger, r"expected (\d+) bytes, the server has \d+"),
        (_smaller, r"expected (\d+) bytes, the server has \d+"),
        (_larger_without_length, r"expected (\d+) bytes, the server has more than \1"),
        (_gone, "the server answered 404 Not Found"),
        (_forbidden, "the server answered 403 Forbidden"),
        (_circle, "more than 10 redirections"),
        (_wrong_range, "asked for bytes from 100, the server sends others"),
        (_changing, "the file changed on the server while it was downloaded"),
    ],
)
async def test_bad_files_are_refused_and_removed(house: House, tree: Tree, spoil: Any, fault: str) -> None:
    await spoil(tree)
    tree.publish()
    with pytest.raises(Failed, match=fault):
        await copy(house, tree)
    assert house.files() == []
    assert house.images.fingerprints("default") == []


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        (INDEX, b"", "Invalid simplestreams server"),
        (INDEX, b"<html>", "Invalid simplestreams server"),
        (INDEX, b"[" * 200_000, "Invalid simplestreams server"),
        (
            INDEX,
            b'{"index": {"a": {"datatype": "image-downloads", "path": "../../x", "products": ["a"]}}}',
            "leads out",
        ),
        (INDEX, b'{"index": {"a": {"datatype": "image-downloads", "path": "//e/x", "products": ["a"]}}}', "leads out"),
        (INDEX, b'{"index": []}', "Invalid simplestreams server"),
        (PRODUCTS, b'{"products": {"a": ' + b"[" * 100_000, "Invalid simplestreams server"),
        (PRODUCTS, b'{"products": {"a": 7, "b": {"versions": 3}, "c": null}}', "not found on server"),
        (PRODUCTS, bytes(65 << 20), "the document has more than 67108864 bytes"),
    ],
)
async def test_hostile_documents(house: House, tree: Tree, path: str, text: bytes, fault: str) -> None:
    tree.files[path] = text
    with pytest.raises(Failed, match=fault):
        await copy(house, tree)
    assert house.files() == []


async def test_document_that_grows_when_unpacked(house: House, tree: Tree) -> None:
    bomb = gzip.compress(bytes(80 << 20))

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    tree.overrides[INDEX] = answer
    with pytest.raises(Failed, match="more than 67108864 bytes"):
        await copy(house, tree)


async def test_transient_error_is_asked_again(house: House, tree: Tree) -> None:
    answers = [503, 500]

    async def answer(request: web.Request) -> web.StreamResponse:
        if answers:
            return web.Response(status=answers.pop())
        return ranged(request, tree.files[INDEX])

    tree.overrides[INDEX] = answer
    assert await copy(house, tree) == tree.fingerprint


async def test_unknown_name(house: House, tree: Tree) -> None:
    with pytest.raises(NotFound, match='Image "plan/9" for x86_64 not found on server'):
        await cache(house, tree, "plan/9")


@pytest.mark.parametrize("url", ["http://images.example", "ftp://images.example", "images.example"])
async def test_servers_that_cannot_be_trusted(house: House, url: str) -> None:
    post = ImagesPostSource(type="image", server=url, protocol="simplestreams", alias="a")
    with pytest.raises(BadRequest, match="Invalid image source URL"):
        await (await house.images.remote(post)).locate()


# --- signatures ---


@pytest.fixture
def keyring(tmp_path: Path) -> Any:
    """A key of the test's own; returns (keyring, sign)."""
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)

    def gpg(*argv: str, stdin: bytes = b"") -> bytes:
        command = [
            "gpg",
            "--homedir",
            str(home),
            "--batch",
            "--quiet",
            "--passphrase",
            "",
            "--pinentry-mode",
            "loopback",
        ]
        return subprocess.run([*command, *argv], input=stdin, capture_output=True, check=True).stdout

    gpg("--quick-generate-key", "images@test.example", "ed25519", "sign", "never")
    file = Path("/var/tmp") / f"fxj-keyring-{tmp_path.name}.gpg"
    file.write_bytes(gpg("--export"))
    yield file, lambda text: gpg("--clearsign", stdin=text)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
    file.unlink()


@needs_root
async def test_signed_index(house: House, tree: Tree, keyring: Any) -> None:
    file, sign = keyring
    house.settings["images.simplestreams_keyrings"] = f"127.0.0.1={file}"
    with pytest.raises(Failed, match=r"index.sjson\": the server answered 404"):
        await copy(house, tree)
    for path in (INDEX, PRODUCTS):
        signed = await asyncio.to_thread(sign, tree.files.pop(path))
        tree.files[path.replace(".json", ".sjson")] = signed
    assert await copy(house, tree) == tree.fingerprint


@needs_root
async def test_index_signed_by_nobody_known(house: House, tree: Tree, keyring: Any) -> None:
    file, sign = keyring
    house.settings["images.simplestreams_keyrings"] = str(file)
    signed = await asyncio.to_thread(sign, tree.files[INDEX])
    for text in (signed.replace(b"index:1.0", b"index:9.9"), tree.files[INDEX]):
        tree.files[INDEX.replace(".json", ".sjson")] = text
        with pytest.raises(Failed, match="its signature is not good"):
            await copy(house, tree)
    house.settings["images.simplestreams_keyrings"] = "/usr/share/keyrings/none.gpg"
    with pytest.raises(Failed, match=r"the keyring /usr/share/keyrings/none.gpg does not exist"):
        await copy(house, tree)


# --- proxies ---


async def test_downloads_through_a_proxy(house: House, tree: Tree) -> None:
    async with serving() as proxy:
        proxy.files = {}

        async def forward(request: web.Request) -> web.StreamResponse:
            return ranged(request, tree.files[request.url.path.lstrip("/")])

        for path in tree.files:
            proxy.overrides[path] = forward
        house.settings["core.proxy_http"] = proxy.url
        assert await copy(house, tree) == tree.fingerprint
        assert tree.requests == []
        assert len(proxy.requests) == 4
        await ended(await house.images.delete("default", tree.fingerprint))
        house.settings["core.proxy_ignore_hosts"] = "localhost, 127.0.0.0/8"
        assert await copy(house, tree) == tree.fingerprint
        assert len(tree.asked(ROOT)) == 1


def test_failures_are_errors_of_ours() -> None:
    assert issubclass(Unreachable, DownloadFailed)
    assert issubclass(DownloadFailed, FlexdError)
