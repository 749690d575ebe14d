# SPDX-License-Identifier: Apache-2.0
"""The daemon's addresses: changed live, all or nothing, tried again."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from flexd.host.fake import FakeHost
from flexd.server.addresses import Address
from flexd.server.listeners import Place, wanted_places
from tests.unit.server.conftest import Client
from tests.unit.server.network_house import Network, free_address, network_of
from tests.unit.server.pki_house import make


@pytest.fixture
async def network(client: Client, tmp_path: Path) -> AsyncIterator[Network]:
    (tmp_path / "clients").mkdir()
    async with network_of(client, tmp_path / "clients") as found:
        yield found


async def answers(network: Network, address: str) -> bool:
    remote = await network.remote(None, address)
    try:
        return (await remote.call("GET", "/")).status == 200
    except OSError:
        return False


async def addresses(network: Network) -> list[str]:
    found: list[str] = (await network.client.call("GET", "/1.0")).metadata["environment"]["addresses"]
    return found


@contextlib.contextmanager
def taken() -> Iterator[str]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield f"127.0.0.1:{other.getsockname()[1]}"


async def test_an_address_moves_and_who_is_connected_stays(network: Network) -> None:
    holder, new = make(), free_address()
    await network.trust(holder)
    remote = await network.remote(holder)
    assert await remote.auth() == "trusted"
    assert (await remote.call("PATCH", "/1.0", {"config": {"core.https_address": new}})).status == 200
    assert await remote.auth() == "trusted"
    assert not await answers(network, network.address)
    assert await answers(network, new)
    assert await addresses(network) == [new]
    await network.set("core.https_address", "")
    assert not await answers(network, new)
    assert await addresses(network) == []


async def test_several_addresses_and_families(network: Network) -> None:
    six = free_address("::1")
    assert (await network.set("core.https_address", f"{network.address},{six}")).status == 200
    assert await answers(network, network.address)
    assert await answers(network, six)
    assert await addresses(network) == [network.address, six]


async def test_a_wildcard_takes_the_place_of_an_address(network: Network) -> None:
    """The new one contains the old one's port, which is free only once the old one is closed."""
    port = network.address.rpartition(":")[2]
    for text in (f":{port}", f"0.0.0.0:{port}", f"[::]:{port}", network.address):
        assert (await network.set("core.https_address", text)).status == 200, text
        assert await answers(network, network.address)


async def test_a_wildcard_is_told_as_the_addresses_of_the_host(network: Network) -> None:
    host = network.client.host
    assert isinstance(host, FakeHost)
    await host.links.create_bridge("flexbr0")
    await host.links.set_addresses("flexbr0", ["198.18.5.1/24", "fd42:5::1/64"])
    port = network.address.rpartition(":")[2]
    await network.set("core.https_address", f":{port}")
    found = await addresses(network)
    assert f"198.18.5.1:{port}" in found
    assert f"[fd42:5::1]:{port}" in found
    assert f"127.0.0.1:{port}" not in found


async def test_what_cannot_be_opened_is_refused_and_nothing_changes(network: Network) -> None:
    with taken() as other:
        answer = await network.set("core.https_address", f"{free_address()},{other}")
    assert answer.status == 400
    assert answer.error == f'Cannot listen on network HTTPS socket "{other}": Address already in use'
    assert (await network.client.call("GET", "/1.0")).metadata["config"]["core.https_address"] == network.address
    assert await answers(network, network.address)
    assert await addresses(network) == [network.address]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("core.https_address", "a b", "invalid address"),
        ("core.https_address", ",", "expected an address"),
        ("core.metrics_address", "10.0.0.1:0", "the port must be a number from 1 to 65535"),
        ("core.https_allowed_origin", "a\r\nX-Evil: 1", "it goes into a header"),
        ("core.remote_token_expiry", "soon", "invalid expiry"),
    ],
)
async def test_wrong_values(client: Client, name: str, value: str, error: str) -> None:
    answer = await client.call("PATCH", "/1.0", {"config": {name: value}})
    assert answer.status == 400
    assert f"config.{name}: " in answer.error
    assert error in answer.error


async def test_an_address_that_is_not_there_yet_is_tried_again(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    """After a reboot the daemon may be there before its interface."""
    listeners = network.client.daemon.listeners
    with taken() as other:
        place = Place(Address("127.0.0.1", int(other.rpartition(":")[2])))
        listeners._wanted.append(place)
        await listeners.check()
        assert f'Cannot listen on network HTTPS socket "{other}"' in caplog.text
    await listeners.check()
    assert await answers(network, other)


def test_where_metrics_and_all_are_served() -> None:
    config = {"core.https_address": "10.0.0.1,10.0.0.2:9100", "core.metrics_address": "10.0.0.2,10.0.0.3"}
    assert wanted_places(config) == [
        Place(Address("10.0.0.1", 8443)),
        Place(Address("10.0.0.2", 9100)),
        Place(Address("10.0.0.3", 9100), metrics_only=True),
    ]
    assert wanted_places({}) == []


async def test_a_socket_of_systemds(network: Network) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    await network.client.daemon.listeners.adopt(listener)
    port = listener.getsockname()[1]
    assert await answers(network, f"127.0.0.1:{port}")
    assert f"127.0.0.1:{port}" in await addresses(network)


async def test_changes_at_the_same_time_come_one_after_the_other(network: Network) -> None:
    wanted = [free_address() for _ in range(4)]
    results = await asyncio.gather(*(network.set("core.https_address", each) for each in wanted))
    assert {result.status for result in results} <= {200, 409}
    stored = (await network.client.call("GET", "/1.0")).metadata["config"]["core.https_address"]
    assert await addresses(network) == [stored]
    assert await answers(network, stored)
