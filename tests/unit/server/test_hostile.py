# SPDX-License-Identifier: Apache-2.0
"""Clients that mean harm: the daemon says no, or ends the connection, and goes on. docs/limits.md has the numbers."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from flexd.server import call
from tests.unit.server.conftest import Client
from tests.unit.server.network_house import Network, ended, network_of
from tests.unit.server.pki_house import make


@pytest.fixture
async def network(client: Client, tmp_path: Path) -> AsyncIterator[Network]:
    (tmp_path / "clients").mkdir()
    async with network_of(client, tmp_path / "clients") as found:
        yield found
        # Whatever was done to it, it answers.
        assert (await client.call("GET", "/1.0")).status == 200
        assert await (await found.remote()).auth() == "untrusted"


async def say(network: Network, data: bytes) -> bytes:
    """Send it on a connection of its own, and return what came back before the server ended it."""
    reader, writer = await network.raw()
    answer = asyncio.create_task(ended(reader))
    try:
        for start in range(0, len(data), 1 << 16):
            writer.write(data[start : start + (1 << 16)])
            await writer.drain()
    except ConnectionError:
        pass
    try:
        return await answer
    finally:
        writer.close()


async def test_a_header_that_does_not_end(network: Network) -> None:
    answer = await say(network, b"GET /1.0 HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * (4 << 20))
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))


async def test_headers_without_end(network: Network) -> None:
    answer = await say(network, b"GET /1.0 HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 200_000)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))


async def test_a_path_without_end(network: Network) -> None:
    answer = await say(network, b"GET /" + b"a" * (4 << 20))
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\0" * 1000 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n bad: fold\r\nno colon\r\n\r\n",
        b"POST /1.0/certificates HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_request(network: Network, request_bytes: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answer = await say(network, request_bytes)
    assert b" 400 " in answer.partition(b"\r\n")[0], answer[:100]
    # Nobody fills the log that way.
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_a_stranger_that_pipelines(network: Network) -> None:
    answer = await say(network, (b"GET / HTTP/1.1\r\nHost: x\r\nX-Pad: " + b"a" * 4000 + b"\r\n\r\n") * 1000)
    assert answer.count(b"HTTP/1.1 200") < 300
    assert len(network.client.daemon.connections) == 0


async def test_the_body_of_a_stranger(network: Network) -> None:
    head = b"POST /1.0/certificates HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n"
    assert b" 201 " not in await say(network, head + b" " * 8_000_000)


async def test_a_body_that_comes_slowly(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "_STRANGERS_BODY_S", 0.05)
    answer = await say(
        network, b"POST /1.0/certificates HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{"
    )
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"it arrives too slowly" in answer


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "])
async def test_a_slow_loris(network: Network, said: bytes) -> None:
    connections = network.client.daemon.connections
    reader, writer = await network.raw()
    writer.write(said)
    await writer.drain()
    while len(connections) == 0 or connections.strangers == 0:
        await asyncio.sleep(0)
    connections.sweep()
    assert len(connections) == 1
    connections._clock = lambda: time.monotonic() + 31
    connections.sweep()
    assert await ended(reader) == b""
    writer.close()


async def test_a_handshake_that_does_not_end(network: Network) -> None:
    connections = network.client.daemon.connections
    host, _, port = network.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"\x16\x03\x01\x40\x00\x01")  # the beginning of a hello of 16 KiB
    while len(connections) == 0:
        await asyncio.sleep(0)
    connections._clock = lambda: time.monotonic() + 11
    connections.sweep()
    assert await ended(reader) == b""
    writer.close()


async def test_many_connections_of_one_address(network: Network) -> None:
    holder = make()
    await network.trust(holder)
    opened = [await network.raw() for _ in range(100)]
    connections = network.client.daemon.connections
    assert connections.strangers <= 64
    trusted = await network.remote(holder)
    assert await trusted.auth() == "trusted"
    for _reader, writer in opened:
        writer.close()


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"config":' + b'{"a":' * 200_000, b"1" * 100_000, b'"\xff"'])
async def test_json_that_is_hard_to_read(network: Network, body: bytes) -> None:
    """Also from those who are trusted."""
    answer = await network.client.call("PUT", "/1.0", body)
    assert answer.status == 400
    assert "Invalid" in answer.error


async def test_deep_json_is_named(network: Network) -> None:
    answer = await network.client.call("PUT", "/1.0", b'{"config":' + b"[" * 100_000)
    assert answer.error == "Invalid JSON in the request's body: it is nested too deeply"


async def test_a_body_beyond_the_limit(network: Network) -> None:
    holder = make()
    await network.trust(holder)
    remote = await network.remote(holder)
    body = io.BytesIO(json.dumps({"config": {"user.x": "y" * (17 << 20)}}).encode())
    async with remote.session.put(f"{remote.url}/1.0", data=body) as answer:
        assert answer.status == 413


async def test_a_message_beyond_the_limit(network: Network) -> None:
    holder = make()
    await network.trust(holder)
    remote = await network.remote(holder)
    events = await remote.session.ws_connect(f"{remote.url}/1.0/events")
    await events.send_bytes(b"x" * (5 << 20))
    message = await asyncio.wait_for(events.receive(), 20)
    assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)


async def test_a_client_that_asks_and_vanishes(network: Network) -> None:
    for _ in range(50):
        _reader, writer = await network.raw()
        writer.write(b"GET /1.0 HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.transport.abort()
    connections = network.client.daemon.connections
    while len(connections):
        await asyncio.sleep(0)
