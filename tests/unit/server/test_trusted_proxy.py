# SPDX-License-Identifier: Apache-2.0
"""core.https_trusted_proxy: clients behind a proxy are known by their own addresses, and nobody else can pretend."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.server.conftest import Client
from tests.unit.server.network_house import Network, network_of
from tests.unit.server.pki_house import Holder, make

HEADER = b"PROXY TCP4 198.51.100.7 203.0.113.1 4711 8443\r\n"


@pytest.fixture
async def network(client: Client, tmp_path: Path) -> AsyncIterator[Network]:
    (tmp_path / "clients").mkdir()
    async with network_of(client, tmp_path / "clients") as found:
        yield found


async def ask(network: Network, header: bytes, holder: Holder) -> bytes:
    """The answer to a client that sends a header, in two pieces, before its handshake."""
    host, _, port = network.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(header[:9])
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.write(header[9:])
    context = await asyncio.to_thread(holder.context, network.directory)
    with contextlib.closing(writer):
        await asyncio.wait_for(writer.start_tls(context), 10)
        writer.write(b"PATCH /1.0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        return await asyncio.wait_for(reader.read(), 10)


async def address_in_event(network: Network, header: bytes, holder: Holder) -> str:
    """What the lifecycle event of a request says about who sent it."""
    with network.client.daemon.events.subscribe(["lifecycle"]) as subscription:
        answer = await ask(network, header, holder)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        event = await asyncio.wait_for(anext(aiter(subscription)), 10)
    return str(event.metadata["requestor"]["address"])


async def test_the_clients_address_counts(network: Network) -> None:
    holder = make()
    await network.trust(holder)
    await network.set("core.https_trusted_proxy", "127.0.0.1, 2001:db8::9")
    assert await address_in_event(network, HEADER, holder) == "198.51.100.7"
    # Without a header it is the proxy's own, as in LXD.
    assert await address_in_event(network, b"", holder) == "127.0.0.1"


@pytest.mark.parametrize("header", [HEADER, b"PROXY TCP4 nobody 203.0.113.1 4711 8443\r\n"])
async def test_nobody_else_can_tell_one(network: Network, header: bytes) -> None:
    """Not listed: the header is no handshake. Listed, but no header: the connection ends."""
    holder = make()
    await network.trust(holder)
    if header != HEADER:
        await network.set("core.https_trusted_proxy", "127.0.0.1")
    with pytest.raises(OSError):
        await ask(network, header, holder)


async def test_strangers_behind_a_proxy_are_counted_by_their_own_addresses(network: Network) -> None:
    await network.set("core.https_trusted_proxy", "127.0.0.1")
    host, _, port = network.address.rpartition(":")
    opened = []
    for number in range(80):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(HEADER.replace(b"100.7", b"100.%d" % number))
        opened.append(writer)
    async with asyncio.timeout(10):
        while network.client.daemon.connections.strangers < 80:
            await asyncio.sleep(0.01)
    for writer in opened:
        writer.close()


@pytest.mark.parametrize("value", ["127.0.0.1:80", "proxy.example", "10.0.0.0/8"])
async def test_wrong_values(network: Network, value: str) -> None:
    answer = await network.set("core.https_trusted_proxy", value)
    assert answer.status == 400
    assert "expected an IP address" in answer.error
