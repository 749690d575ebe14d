# SPDX-License-Identifier: Apache-2.0
"""image: list, build, import, export, aliases, properties."""

from email import message_from_bytes
from email.policy import HTTP
from pathlib import Path

import pytest
from aiohttp import MultipartWriter, web

from flexd.cli.image_export import destination, split_parts
from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import FINGERPRINT, image
from tests.unit.client.fake_server import FakeServer

ONE = f"/1.0/images/{FINGERPRINT}"
IMPORTED = {"fingerprint": FINGERPRINT}


@pytest.fixture(autouse=True)
def images(server: FakeServer) -> None:
    server.say("/1.0/images", [image()])
    server.say("/1.0/images/aliases/debian/12", {"name": "debian/12", "target": FINGERPRINT, "description": "d"})
    server.say(ONE, image(), etag="tag")
    server.work("POST", "/1.0/images", metadata=IMPORTED)
    server.say("/1.0/images/aliases", {}, method="POST")


def test_list(run: Run) -> None:
    assert run("image", "list", "-f", "csv").out == (
        'bookworm (1 more),f8f64ae348c5,no,Debian 12,x86_64,CONTAINER,3.00MiB,"Nov 23, 2026 at 6:05pm (UTC)"\n'
    )
    assert run("image", "list", "-f", "csv", "-c", "LF").out == f'"debian/12\nbookworm",{FINGERPRINT}\n'


@pytest.mark.parametrize(
    ("words", "found"),
    [(["os=debian"], 1), (["os=alpine"], 0), (["book"], 1), (["f8f6"], 1), (["nope"], 0), (["type=container"], 1)],
)
def test_filters(run: Run, words: list[str], found: int) -> None:
    assert len(run("image", "list", *words, "-f", "csv").out.splitlines()) == found


def test_info_and_show(run: Run) -> None:
    lines = run("image", "info", "debian/12").out.splitlines()
    assert f"Fingerprint: {FINGERPRINT}" in lines
    assert "    Expires: never" in lines
    assert "    - bookworm" in lines
    assert run("image", "show", "debian/12").out.splitlines()[0] == "auto_update: false"


def test_build_names_the_image_after_what_was_built(run: Run, server: FakeServer) -> None:
    result = run("image", "build", "debian/13")
    assert result.status == 0
    assert f"Image built with fingerprint: {FINGERPRINT}" in result.out
    body = server.sent("POST", "/1.0/images")
    assert body["source"] == {"type": "build", "name": "debian/13"}
    assert body["aliases"] == [{"name": "debian/13", "description": ""}]


def test_a_second_build_takes_the_name_over(run: Run, server: FakeServer) -> None:
    newer = "0" * 64
    server.work("POST", "/1.0/images", metadata={"fingerprint": newer})
    server.say("/1.0/images/aliases/debian/12", {}, method="PUT")
    assert run("image", "build", "debian/12").status == 0
    assert server.sent("POST", "/1.0/images")["aliases"] == []
    assert server.sent("PUT", "/1.0/images/aliases/debian/12") == {"description": "d", "target": newer}


def test_a_variant_and_names_of_ones_own(run: Run, server: FakeServer) -> None:
    assert run("image", "build", "debian/13", "--variant", "minimal", "--alias", "tiny").status == 0
    body = server.sent("POST", "/1.0/images")
    assert body["source"]["name"] == "debian/13/minimal"
    assert [each["name"] for each in body["aliases"]] == ["tiny"]


def test_import_of_one_file(run: Run, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "i.tar.xz").write_bytes(b"image")
    result = run("image", "import", str(tmp_path / "i.tar.xz"), "os=x y", "--alias", "a", "--public")
    assert result.out == f"Image imported with fingerprint: {FINGERPRINT}\n"
    (post,) = server.requests("POST", "/1.0/images")
    assert post.body == b"image"
    assert post.headers["x-lxd-properties"] == "os=x%20y"
    assert (post.headers["x-lxd-public"], post.headers["x-lxd-filename"]) == ("true", "i.tar.xz")
    assert server.sent("POST", "/1.0/images/aliases") == {"name": "a", "description": "", "target": FINGERPRINT}


def test_import_of_two_files(run: Run, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "meta.tar").write_bytes(b"meta")
    (tmp_path / "root.squashfs").write_bytes(b"r" * 500_000)
    assert run("image", "import", str(tmp_path / "meta.tar"), str(tmp_path / "root.squashfs")).status == 0
    (post,) = server.requests("POST", "/1.0/images")
    head = f"Content-Type: {post.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + post.body, policy=HTTP).iter_parts()  # type: ignore[attr-defined]
    files = [(part.get_param("name", header="content-disposition"), part.get_payload(decode=True)) for part in parts]
    assert files == [("metadata", b"meta"), ("rootfs", b"r" * 500_000)]
    assert int(post.headers["content-length"]) == len(post.body)


def test_import_of_a_url(run: Run, server: FakeServer) -> None:
    assert run("image", "import", "https://images.example/x", "local:", "os=x").status == 0
    body = server.sent("POST", "/1.0/images")
    assert body["source"] == {"type": "url", "mode": "pull", "url": "https://images.example/x"}
    assert body["properties"] == {"os": "x"}


def test_import_of_nothing(run: Run, tmp_path: Path) -> None:
    assert "Failed opening" in run("image", "import", str(tmp_path / "none")).err
    assert "not expected" in run("image", "import", "a", "b", "c").err


def test_export_of_one_file(run: Run, server: FakeServer, tmp_path: Path) -> None:
    async def send(request: web.Request) -> web.Response:
        name = f"{FINGERPRINT}.tar.xz"
        return web.Response(body=b"image", headers={"Content-Disposition": f"inline;filename={name}"})

    server.on("GET", f"{ONE}/export", send)
    assert run("image", "export", "debian/12", str(tmp_path)).status == 0
    assert (tmp_path / f"{FINGERPRINT}.tar.xz").read_bytes() == b"image"
    assert run("image", "export", "debian/12", str(tmp_path / "mine")).status == 0
    assert (tmp_path / "mine.tar.xz").read_bytes() == b"image"


def test_export_of_two_files(run: Run, server: FakeServer, tmp_path: Path) -> None:
    async def send(request: web.Request) -> web.StreamResponse:
        with MultipartWriter("form-data") as writer:
            for name, file_name, content in (
                ("metadata", "m.tar.xz", b"meta"),
                ("rootfs", "m.root.squashfs", b"\r\n" * 99_999),
            ):
                part = writer.append(content)
                part.set_content_disposition("form-data", name=name, filename=file_name)
        response = web.StreamResponse(headers={"Content-Type": writer.content_type})
        await response.prepare(request)
        await writer.write(response)  # type: ignore[arg-type]
        return response

    server.on("GET", f"{ONE}/export", send)
    assert run("image", "export", "debian/12", str(tmp_path / "x")).status == 0
    assert (tmp_path / "x.tar.xz").read_bytes() == b"meta"
    assert (tmp_path / "x.root.squashfs").read_bytes() == b"\r\n" * 99_999


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_parts_are_found_wherever_the_pieces_are_cut(size: int) -> None:
    body = (
        b'--B\r\nContent-Disposition: form-data; name="a"; filename="a.tar"\r\n\r\none\r\n--b\r\n'
        b"\r\n--B\r\nContent-Disposition: form-data; filename=b\r\n\r\n\r\n--B--\r\n"
    )
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    assert [(name, b"".join(part)) for name, part in split_parts(pieces, "B")] == [
        ("a.tar", b"one\r\n--b\r\n"),
        ("b", b""),
    ]


@pytest.mark.parametrize(
    ("target", "name", "suffix", "expected"),
    [
        ("", "../../etc/passwd", "", "./passwd"),
        ("out", "abc.tar.gz", "", "out.tar.gz"),
        ("out", "abc.squashfs", ".root", "out.root.squashfs"),
        ("out", "abc.root.squashfs", ".root", "out.root.squashfs"),
        ("out.tar.gz", "abc.tar.gz", "", "out.tar.gz"),
        ("-", "abc", "", "-"),
    ],
)
def test_where_an_export_goes(target: str, name: str, suffix: str, expected: str) -> None:
    assert destination(target, name, suffix) == expected


def test_properties(run: Run, server: FakeServer) -> None:
    server.say(ONE, {}, method="PUT")
    assert run("image", "get-property", "debian/12", "os").out == "debian\n"
    assert run("image", "set-property", "debian/12", "os", "ubuntu").status == 0
    (put,) = server.requests("PUT", ONE)
    assert put.document["properties"]["os"] == "ubuntu"
    assert put.headers["if-match"] == "tag"
    assert run("image", "unset-property", "debian/12", "os").status == 0
    assert "not currently set" in run("image", "unset-property", "debian/12", "none").err


def test_delete_and_refresh(run: Run, server: FakeServer) -> None:
    server.work("DELETE", ONE)
    server.work("POST", f"{ONE}/refresh", metadata={"refreshed": False})
    assert run("image", "refresh", "debian/12").out == "Image already up to date.\n"
    assert run("image", "delete", "debian/12").status == 0


def test_aliases(run: Run, server: FakeServer) -> None:
    alias = {"name": "a", "target": FINGERPRINT, "type": "container", "description": "d"}
    server.say("/1.0/images/aliases", [alias])
    server.say("/1.0/images/aliases/a", {}, method="POST")
    server.say("/1.0/images/aliases/a", {}, method="DELETE")
    assert run("image", "alias", "list", "-f", "csv").out == "a,f8f64ae348c5,CONTAINER,d\n"
    assert run("image", "alias", "list", "-f", "csv", "zzz").out == ""
    assert run("image", "alias", "create", "b", "debian/12").status == 0
    assert run("image", "alias", "rename", "a", "c").status == 0
    assert server.sent("POST", "/1.0/images/aliases/a") == {"name": "c"}
    assert run("image", "alias", "delete", "a").status == 0


def test_copy_to_a_server_that_cannot_reach_this_one(run: Run, server: FakeServer) -> None:
    server.say("/1.0", {"environment": {"addresses": []}})
    assert "core.https_address" in run("image", "copy", "debian/12", "local:").err


def test_copy_hands_over_a_secret(run: Run, server: FakeServer) -> None:
    server.say("/1.0", {"environment": {"addresses": ["198.18.0.1:8443"], "certificate": "PEM"}})
    server.work("POST", f"{ONE}/secret", metadata={"secret": "s3"})

    async def secret(request: web.Request) -> web.Response:
        from tests.unit.client.fake_server import background, operation

        return background(operation("t", status_code=103, metadata={"secret": "s3"}))

    server.on("POST", f"{ONE}/secret", secret)
    assert run("image", "copy", "debian/12", "local:", "--alias", "again").status == 0
    source = server.sent("POST", "/1.0/images")["source"]
    assert (source["server"], source["secret"], source["mode"]) == ("https://198.18.0.1:8443", "s3", "pull")
