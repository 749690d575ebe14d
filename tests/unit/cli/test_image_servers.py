# SPDX-License-Identifier: Apache-2.0
"""Images of other servers: lists, launches, copies by pull, push and relay, and a tree of our own."""

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from aiohttp import web

from flexd.api.simplestreams import find_image, parse_index, parse_products
from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import FINGERPRINT, image
from tests.unit.client.fake_server import FakeServer, failure
from tests.unit.images.archives import METADATA, metadata_member, rootfs_members, tar, unified

ONE = f"/1.0/images/{FINGERPRINT}"
META, ROOT = tar([metadata_member()]), tar(rootfs_members(""))
SPLIT = hashlib.sha256(META + ROOT).hexdigest()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory, and where a web server serves it."""
    directory = tmp_path / "site"
    directory.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield directory, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def files(tmp_path: Path) -> str:
    """A split image, as `--file` takes it."""
    (tmp_path / "meta.tar").write_bytes(META)
    (tmp_path / "root.tar").write_bytes(ROOT)
    return f"{tmp_path}/meta.tar,{tmp_path}/root.tar"


@pytest.fixture
def mine(run: Run, site: tuple[Path, str], files: str) -> str:
    """The remote `mine:`, which has the split image."""
    assert run("image", "tree", str(site[0]), "--file", files).status == 0
    assert run("remote", "add", "mine", site[1], "--protocol", "simplestreams").status == 0
    return site[1]


def test_list_and_info_of_an_image_server(run: Run, mine: str) -> None:
    listed = run("image", "list", "mine:", "os=tiny", "-f", "csv", "-c", "lFad")
    assert listed.out == f"tiny/1 (1 more),{SPLIT},x86_64,Tiny 1 amd64 (20240101_0524)\n"
    assert run("image", "list", "mine:nothing", "-f", "csv").out == ""
    assert f"Fingerprint: {SPLIT}" in run("image", "info", "mine:tiny/1").out
    assert f"Fingerprint: {SPLIT}" in run("image", "info", f"mine:{SPLIT[:8]}").out
    assert run("image", "alias", "list", "mine:", "-f", "csv").out == (
        f"tiny/1,{SPLIT[:12]},CONTAINER,\ntiny/1/amd64,{SPLIT[:12]},CONTAINER,\n"
    )
    assert 'Image "plan9" not found on http://' in run("image", "info", "mine:plan9").err


def test_server_that_is_none(run: Run, site: tuple[Path, str]) -> None:
    run("remote", "add", "mine", site[1], "--protocol", "simplestreams")
    assert "Failed reading http://127.0.0.1" in run("image", "list", "mine:").err
    (site[0] / "streams/v1").mkdir(parents=True)
    (site[0] / "streams/v1/index.json").write_text("[")
    assert "Invalid simplestreams server" in run("image", "list", "mine:").err


def test_launch_by_name_and_by_fingerprint(run: Run, server: FakeServer) -> None:
    server.work("POST", "/1.0/instances")
    common = {"type": "image", "mode": "pull", "protocol": "simplestreams"}
    for word, named in (("24.04", {"alias": "24.04"}), ("0123456789abcdef", {"fingerprint": "0123456789abcdef"})):
        assert run("init", f"ubuntu:{word}", "c1").status == 0
        expected = {**common, "server": "https://cloud-images.ubuntu.com/releases", **named}
        assert server.requests("POST", "/1.0/instances")[-1].document["source"] == expected


def test_debian_is_built_if_it_is_missing(run: Run, server: FakeServer) -> None:
    server.on("GET", "/1.0/images/aliases/debian/12/cloud", _missing)
    server.work("POST", "/1.0/images", metadata={"fingerprint": FINGERPRINT})
    server.work("POST", "/1.0/instances")
    result = run("init", "debian:12/cloud", "c1")
    assert "Building debian/12/cloud" in result.out
    assert server.sent("POST", "/1.0/images")["source"] == {"type": "build", "name": "debian/12/cloud"}
    assert server.sent("POST", "/1.0/instances")["source"] == {"type": "image", "fingerprint": FINGERPRINT}


async def _missing(_request: web.Request) -> web.Response:
    return failure(404, "Image alias not found")


def test_debian_that_is_there_is_used(run: Run, server: FakeServer) -> None:
    server.say("/1.0/images/aliases/debian/12", {"name": "debian/12", "target": FINGERPRINT, "description": ""})
    server.work("POST", "/1.0/instances")
    assert run("init", "debian:12", "c1").status == 0
    assert server.requests("POST", "/1.0/images") == []
    assert "no list: its images are built" in run("image", "list", "debian:").err
    assert "Nothing to copy" in run("image", "copy", "debian:12", "local:").err


def test_copy_from_an_image_server(run: Run, server: FakeServer, mine: str) -> None:
    server.work("POST", "/1.0/images", metadata={"fingerprint": SPLIT})
    for name in ("tiny/1", "tiny/1/amd64"):
        server.on("GET", f"/1.0/images/aliases/{name}", _missing)
    server.say("/1.0/images/aliases", {}, method="POST")
    assert run("image", "copy", "mine:tiny/1", "local:", "--copy-aliases", "--auto-update", "--public").status == 0
    body = server.sent("POST", "/1.0/images")
    assert body["source"] == {
        "type": "image",
        "mode": "pull",
        "server": mine,
        "protocol": "simplestreams",
        "alias": "tiny/1",
    }
    assert (body["public"], body["auto_update"]) == (True, True)
    named = [post.document for post in server.requests("POST", "/1.0/images/aliases")]
    assert named == [{"name": n, "description": "", "target": SPLIT} for n in ("tiny/1", "tiny/1/amd64")]
    assert "needs a daemon as the source" in run("image", "copy", "mine:tiny/1", "local:", "--mode", "push").err


@pytest.fixture
def two(run: Run, server: FakeServer) -> None:
    """`other:` is the same server by another name: both sides in one."""
    run("remote", "add", "other", f"unix://{server.socket_path}")
    server.say("/1.0/images/aliases/debian/12", {"name": "debian/12", "target": FINGERPRINT, "description": ""})
    server.say(ONE, image())
    server.work("POST", "/1.0/images", metadata={"secret": "s", "fingerprint": FINGERPRINT})
    server.work("POST", f"{ONE}/export")
    server.work("POST", f"{ONE}/secret", metadata={"secret": "t"})
    environment = {"addresses": ["198.18.70.1:8443"], "certificate": "PEM"}
    server.say("/1.0", {"api_extensions": [], "auth": "trusted", "environment": environment})


@pytest.mark.usefixtures("two")
def test_copy_by_pull(run: Run, server: FakeServer) -> None:
    assert run("image", "copy", "debian/12", "other:").err == ""
    assert server.sent("POST", "/1.0/images")["source"] == {
        "type": "image",
        "mode": "pull",
        "protocol": "lxd",
        "server": "https://198.18.70.1:8443",
        "certificate": "PEM",
        "fingerprint": FINGERPRINT,
        "project": "default",
        "secret": "t",
    }


@pytest.mark.usefixtures("two")
def test_copy_by_push(run: Run, server: FakeServer) -> None:
    assert run("image", "copy", "debian/12", "other:", "--mode", "push", "--public").err == ""
    asked = server.sent("POST", "/1.0/images")
    assert asked["source"] == {"type": "image", "mode": "push", "fingerprint": FINGERPRINT}
    assert asked["public"] is True
    assert server.sent("POST", f"{ONE}/export") == {
        "target": "https://198.18.70.1:8443",
        "certificate": "PEM",
        "secret": "s",
        "project": "",
    }


@pytest.mark.usefixtures("two")
def test_copy_by_relay(run: Run, server: FakeServer) -> None:
    data = bytes(300_000)

    async def send(_request: web.Request) -> web.Response:
        return web.Response(body=data, content_type="application/octet-stream")

    server.on("GET", f"{ONE}/export", send)
    assert run("image", "copy", "debian/12", "other:", "--mode", "relay").err == ""
    (post,) = server.requests("POST", "/1.0/images")
    assert post.body == data
    assert post.headers["x-lxd-fingerprint"] == FINGERPRINT
    assert post.headers["content-length"] == "300000"


# --- the tree ---


def test_tree_of_files(run: Run, tmp_path: Path, files: str) -> None:
    (tmp_path / "whole.tar").write_bytes(unified(metadata=METADATA.replace(b"20240101_0524", b"20240202_0524")))
    directory = tmp_path / "tree"
    result = run("image", "tree", str(directory), "--file", files, "--file", f"{tmp_path}/whole.tar")
    assert (result.status, result.err) == (0, "")
    assert parse_index((directory / "streams/v1/index.json").read_bytes(), "x") == ["streams/v1/images.json"]
    images = parse_products((directory / "streams/v1/images.json").read_bytes(), "x")
    split = find_image(images, SPLIT, "x86_64")
    assert split is not None
    assert split.rootfs is not None
    assert [(directory / file.path).read_bytes() for file in (split.metadata, split.rootfs)] == [META, ROOT]
    newest = find_image(images, "tiny/1", "x86_64")
    assert newest is not None
    assert newest.rootfs is None
    assert newest.image.fingerprint == hashlib.sha256((tmp_path / "whole.tar").read_bytes()).hexdigest()
    assert sorted(path.name for path in directory.rglob("*.*") if path.is_file()) == [
        "images.json",
        "index.json",
        "lxd.tar.xz",
        "lxd_combined.tar.gz",
        "root.tar.xz",
    ]


def test_tree_keeps_so_many_versions(run: Run, tmp_path: Path) -> None:
    directory = tmp_path / "tree"
    for month in range(1, 5):
        file = tmp_path / f"{month}.tar"
        file.write_bytes(unified(metadata=METADATA.replace(b"20240101", b"20240%d01" % month)))
        assert run("image", "tree", str(directory), "--file", str(file), "--keep", "2").status == 0
    document = json.loads((directory / "streams/v1/images.json").read_bytes())
    product = document["products"]["tiny:1:amd64:default"]
    assert sorted(product["versions"]) == ["20240301_0524", "20240401_0524"]
    assert sorted(path.name for path in (directory / "images/tiny/1/amd64/default").iterdir()) == [
        "20240301_0524",
        "20240401_0524",
    ]
    assert "there already" in run("image", "tree", str(directory), "--file", f"{tmp_path}/4.tar").out


def test_tree_of_a_server(run: Run, server: FakeServer, tmp_path: Path) -> None:
    server.say("/1.0/images", [image()])
    assert "No public images" in run("image", "tree", str(tmp_path / "t")).err
    public = image() | {"public": True, "fingerprint": SPLIT}
    server.say("/1.0/images", [public])

    async def send(_request: web.Request) -> web.Response:
        parts = b"".join(
            b'--x\r\nContent-Disposition: form-data; name="%s"; filename="../../%s"\r\n\r\n%s\r\n' % (name, name, data)
            for name, data in ((b"metadata", META), (b"rootfs", ROOT))
        )
        return web.Response(body=parts + b"--x--\r\n", headers={"Content-Type": "multipart/form-data; boundary=x"})

    server.on("GET", f"/1.0/images/{SPLIT}/export", send)
    assert run("image", "tree", str(tmp_path / "t")).err == ""
    images = parse_products((tmp_path / "t/streams/v1/images.json").read_bytes(), "x")
    found = find_image(images, "debian/12", "x86_64")
    assert found is not None
    assert found.image.fingerprint == SPLIT


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--file", "/nowhere"], "Failed reading /nowhere"),
        (["--file", "a,b,c"], "--file takes one file"),
        (["--keep", "0"], "--keep must be 1 or more"),
        (["nope:"], 'The remote "nope" doesn\'t exist'),
    ],
)
def test_trees_that_cannot_be(run: Run, tmp_path: Path, words: list[str], fault: str) -> None:
    assert fault in run("image", "tree", str(tmp_path / "t"), *words).err
