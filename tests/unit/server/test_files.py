# SPDX-License-Identifier: Apache-2.0
"""`/files` and `/sftp`."""

import asyncio
import os
import socket
from pathlib import Path

import pytest
from aiohttp import web
from blockbuster import BlockBuster

from flexd.server import upgrade
from tests.unit.server.conftest import EMPTY, Client

FILES = "/1.0/instances/c1/files?path="


async def test_a_file_is_written_with_owner_and_mode_and_read_back(busy: Client) -> None:
    answer = await busy.call("POST", FILES + "/root/a", b"hello", X_LXD_uid="5", X_LXD_gid="6", X_LXD_mode="0640")
    assert answer.body == EMPTY
    read = await busy.call("GET", FILES + "/root/a")
    assert read.body == b"hello"
    assert read.headers["Content-Type"] == "application/octet-stream"
    assert read.headers["Content-Disposition"] == "inline;filename=a"
    for family in ("LXD", "Incus"):
        shown = {name: read.headers[f"X-{family}-{name}"] for name in ("uid", "gid", "mode", "type")}
        assert shown == {"uid": "5", "gid": "6", "mode": "0640", "type": "file"}
        assert read.headers[f"X-{family}-modified"].endswith(" +0000 UTC")


async def test_headers_of_incus_are_read_too(busy: Client) -> None:
    await busy.call("POST", FILES + "/root/a", b"x", X_Incus_mode="0600")
    assert (await busy.call("HEAD", FILES + "/root/a")).headers["X-LXD-mode"] == "0600"


async def test_append_overwrite_and_what_is_neither(busy: Client) -> None:
    await busy.call("POST", FILES + "/root/a", b"one", X_LXD_mode="0640")
    await busy.call("POST", FILES + "/root/a", b" two", X_LXD_write="append")
    assert (await busy.call("GET", FILES + "/root/a")).body == b"one two"
    await busy.call("POST", FILES + "/root/a", b"x", X_LXD_write="overwrite", X_LXD_mode="0600")
    read = await busy.call("GET", FILES + "/root/a")
    assert (read.body, read.headers["X-LXD-mode"]) == (b"x", "0640")
    wrong = await busy.call("POST", FILES + "/root/a", b"x", X_LXD_write="bogus", X_LXD_uid="abc", X_LXD_type="zz")
    assert wrong.status == 400
    for words in ("Bad file write mode: bogus", "Bad file type: zz", "X-LXD-uid"):
        assert words in wrong.error


async def test_directories_and_links(busy: Client) -> None:
    for _ in range(2):
        answer = await busy.call("POST", FILES + "/root/d", X_LXD_type="directory")
        assert answer.status == 200
    listed = await busy.call("GET", FILES + "/root/d")
    assert (listed.metadata, listed.headers["X-LXD-type"], listed.headers["X-LXD-mode"]) == ([], "directory", "0750")
    for _ in range(2):
        answer = await busy.call("POST", FILES + "/root/l", b"/etc/hostname", X_LXD_type="symlink")
        assert answer.status == 200
    assert (await busy.call("POST", FILES + "/root/l", b"/other", X_LXD_type="symlink")).status == 409
    link = await busy.call("GET", FILES + "/root/l")
    assert (link.body, link.headers["X-LXD-type"]) == (b"/etc/hostname", "symlink")
    assert sorted((await busy.call("GET", FILES + "/root")).metadata) == ["d", "l"]
    assert (await busy.call("DELETE", FILES + "/root/d")).status == 200
    assert (await busy.call("GET", FILES + "/root")).metadata == ["l"]


async def test_head_says_whose_a_file_is(busy: Client) -> None:
    answer = await busy.call("HEAD", FILES + "/etc/hostname")
    assert (answer.status, answer.body, answer.headers["X-LXD-type"]) == (200, b"", "file")
    assert (await busy.call("HEAD", FILES + "/nope")).status == 404


async def test_what_cannot_be_done(busy: Client) -> None:
    assert (await busy.call("GET", "/1.0/instances/c1/files")).error == "Missing path argument"
    assert (await busy.call("GET", FILES + "/nope")).status == 404
    assert (await busy.call("DELETE", FILES + "/nope")).status == 404
    assert (await busy.call("POST", FILES + "/no/dir/x", b"x")).status == 404
    assert (await busy.call("GET", "/1.0/instances/c9/files?path=/")).error == "Instance not found"


@pytest.mark.parametrize(
    ("sent", "status", "body", "shown"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=8-", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("bytes=0-", 200, b"0123456789", None),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
        ("nonsense", 200, b"0123456789", None),
    ],
)
async def test_ranges(busy: Client, sent: str, status: int, body: bytes, shown: str | None) -> None:
    await busy.call("POST", FILES + "/root/a", b"0123456789")
    answer = await busy.call("GET", FILES + "/root/a", Range=sent)
    assert (answer.status, answer.body, answer.headers.get("Content-Range")) == (status, body, shown)


async def test_a_range_outside_of_the_file(busy: Client) -> None:
    answer = await busy.call("GET", FILES + "/etc/hostname", Range="bytes=100-")
    assert answer.status == 416


async def test_a_big_file_goes_through_in_pieces(busy: Client) -> None:
    content = os.urandom(3 * 1024 * 1024 + 1)
    await busy.call("POST", FILES + "/root/big", content)
    assert (await busy.call("GET", FILES + "/root/big")).body == content


async def test_sftp_needs_the_upgrade(busy: Client) -> None:
    answer = await busy.call("GET", "/1.0/instances/c1/sftp")
    assert (answer.status, answer.error) == (400, "Missing or invalid upgrade header")


async def test_an_upgraded_connection_carries_bytes_both_ways(tmp_path: Path, blockbuster: BlockBuster) -> None:
    inner, far = socket.socketpair()
    far.setblocking(False)

    async def handle(request: web.Request) -> web.StreamResponse:
        return await upgrade.bridge(request, "sftp", inner.detach())

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, tmp_path / "s").start()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: sftp\r\nConnection: Upgrade\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head == b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: sftp\r\nConnection: Upgrade\r\n\r\n"
    loop = asyncio.get_running_loop()
    writer.write(b"ping")
    assert await loop.sock_recv(far, 10) == b"ping"
    await loop.sock_sendall(far, b"pong" * 100_000)
    assert await reader.readexactly(400_000) == b"pong" * 100_000
    writer.close()
    assert await loop.sock_recv(far, 10) == b""
    far.close()
    await runner.cleanup()
