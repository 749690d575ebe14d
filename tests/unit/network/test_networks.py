# SPDX-License-Identifier: Apache-2.0
"""The service: what is shown, what is refused and in which words, events, warnings."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, InvalidInput
from flexd.api.network import Network, NetworkPost, NetworkPut, NetworksPost
from flexd.host.contract import Completed, HostError, Link, LinkAddress, Route
from flexd.host.fake.host import FakeHost
from flexd.network.contract import Attachment, NetworkNotFound, Port
from flexd.network.dnsmasq_process import DnsmasqFailed
from flexd.network.networks import Networks
from flexd.operations.events import Events
from tests.contract.network.house import MemoryMirror, daemon, fake_host

NAME = "fxnbr0"
CONFIG = {"ipv4.address": "198.18.5.1/24", "ipv6.address": "none"}


@pytest.fixture
async def host() -> AsyncIterator[FakeHost]:
    host = fake_host()
    host.links.add(Link("eth0", 90, hwaddr="02:00:00:00:00:01", mtu=1500, up=True))
    yield host
    await host.close()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def mirror() -> MemoryMirror:
    return MemoryMirror()


@pytest.fixture
async def networks(host: FakeHost, events: Events, mirror: MemoryMirror, tmp_path: Path) -> AsyncIterator[Networks]:
    async with daemon(host, mirror, tmp_path, events) as networks:
        yield networks


async def test_created_shown_and_listed(networks: Networks) -> None:
    await networks.create(NetworksPost(name=NAME, config=CONFIG, description="mine"))
    networks.set_used_by(lambda name: [f"/1.0/instances/{name}-b", f"/1.0/instances/{name}-a"])
    assert await networks.show("default", NAME) == Network(
        config=CONFIG,
        description="mine",
        locations=["none"],
        managed=True,
        name=NAME,
        project="default",
        status="Created",
        type="bridge",
        used_by=[f"/1.0/instances/{NAME}-a", f"/1.0/instances/{NAME}-b"],
    )
    assert networks.names("default") == [NAME]
    assert await networks.all_names("default") == ["eth0", NAME, "lo"]
    assert [network.type for network in await networks.show_all("default")] == ["physical", "bridge", "loopback"]
    assert networks.attachment(NAME) == Attachment(NAME, 1500)


async def test_events(networks: Networks, events: Events) -> None:
    with events.subscribe(["lifecycle"]) as stream:
        await networks.create(NetworksPost(name=NAME, config=CONFIG))
        await networks.update(NAME, NetworkPut(config=CONFIG, description="x"))
        await networks.rename(NAME, NetworkPost(name="fxnbr1"))
        await networks.delete("fxnbr1")
        seen = [(await anext(stream)).metadata for _ in range(4)]
    assert seen == [
        {"action": "network-created", "source": f"/1.0/networks/{NAME}"},
        {"action": "network-updated", "source": f"/1.0/networks/{NAME}"},
        {"action": "network-renamed", "source": "/1.0/networks/fxnbr1", "context": {"old_name": NAME}},
        {"action": "network-deleted", "source": "/1.0/networks/fxnbr1"},
    ]


@pytest.mark.parametrize(
    ("post", "wrong"),
    [
        (NetworksPost(), "No name provided"),
        (NetworksPost(name="x"), "too short"),
        (NetworksPost(name="a/b"), "invalid characters"),
        (NetworksPost(name="ab", type="ovn"), 'Unsupported network type "ovn"'),
        (NetworksPost(name="eth0"), 'Network interface "eth0" already exists'),
        (NetworksPost(name=NAME), "The network already exists"),
        (NetworksPost(name="ab", config={"ipv4.address": "x", "nope": "y"}), "ipv4.address.*config.nope"),
        (
            NetworksPost(name="ab", config={"ipv4.address": "198.18.5.9/24"}),
            f'overlaps 198.18.5.0/24 of network "{NAME}"',
        ),
        (NetworksPost(name="ab", config={"ipv4.dhcp.ranges": "198.18.9.1-198.18.9.2"}), "not within the subnet"),
    ],
)
async def test_what_is_refused_changes_nothing(
    networks: Networks, host: FakeHost, post: NetworksPost, wrong: str
) -> None:
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    calls = len(host.calls)
    with pytest.raises(BadRequest, match=wrong):
        await networks.create(post)
    assert [call.method for call in host.calls[calls:]] == []


@pytest.mark.parametrize("name", ["nope", "eth0", "lo"])
async def test_only_managed_networks_can_be_changed(networks: Networks, name: str) -> None:
    with pytest.raises(NetworkNotFound, match="Network not found"):
        await networks.update(name, NetworkPut())
    with pytest.raises(NetworkNotFound):
        await networks.rename(name, NetworkPost(name="fxnbr1"))
    with pytest.raises(NetworkNotFound):
        await networks.delete(name)
    with pytest.raises(NetworkNotFound):
        networks.attachment(name)


async def test_patch_keeps_what_is_not_given_and_put_does_not(networks: Networks) -> None:
    await networks.create(NetworksPost(name=NAME, config={**CONFIG, "user.a": "1"}, description="d"))
    await networks.update(NAME, NetworkPut(config={"user.b": "2"}), patch=True)
    shown = await networks.show("default", NAME)
    assert (shown.config, shown.description) == ({**CONFIG, "user.a": "1", "user.b": "2"}, "d")
    await networks.update(NAME, NetworkPut(config={"user.b": "", "ipv4.address": "none"}))
    shown = await networks.show("default", NAME)
    assert (shown.config, shown.description) == ({"ipv4.address": "none"}, "")


async def test_automatic_subnets_touch_nothing_of_the_host(networks: Networks, host: FakeHost) -> None:
    host.links.more_routes += [Route("10.0.0.0/9", "eth0"), Route("10.128.0.0/10", "eth0"), Route("0.0.0.0/0", "eth0")]
    host.links.add(Link("tun9", 91, kind="tun", addresses=(LinkAddress("inet", "10.192.0.1", 11, "global"),)))
    await networks.create(NetworksPost(name=NAME))
    config = (await networks.show("default", NAME)).config
    assert 224 <= int(config["ipv4.address"].split(".")[1]) <= 255
    assert config["ipv4.nat"] == config["ipv6.nat"] == "true"
    await networks.update(NAME, NetworkPut(config={"ipv4.address": "auto"}))
    assert set((await networks.show("default", NAME)).config) == {"ipv4.address"}


async def test_a_subnet_of_a_network_that_is_down_is_not_chosen(
    host: FakeHost, mirror: MemoryMirror, tmp_path: Path
) -> None:
    async with daemon(host, mirror, tmp_path) as networks:
        await networks.create(NetworksPost(name=NAME, config={"ipv4.address": "10.0.0.1/9", "ipv6.address": "none"}))
    await host.reboot()
    host.fail(method="links.create_bridge", error=HostError("no bridges today"))
    async with daemon(host, mirror, tmp_path) as networks:
        assert (await networks.show("default", NAME)).status == "Unavailable"
        assert networks.warnings() == [f'Network "{NAME}" is unavailable: no bridges today']
        host.heal()
        await networks.create(NetworksPost(name="fxnbr1"))
        assert int((await networks.show("default", "fxnbr1")).config["ipv4.address"].split(".")[1]) >= 128
        await networks.update(NAME, NetworkPut(config=CONFIG))
        assert (await networks.show("default", NAME)).status == "Created"
        assert networks.warnings() == []


async def test_without_nftables_networks_work_and_say_what_does_not(networks: Networks, host: FakeHost) -> None:
    host.firewall.fault = "nft: not found"
    await networks.create(NetworksPost(name=NAME, config={**CONFIG, "ipv4.nat": "true"}))
    assert networks.warnings() == [f'Network "{NAME}": no filter rules and NAT of ipv4: nft: not found']


async def test_a_dropping_firewall_is_a_warning(networks: Networks, host: FakeHost) -> None:
    chain = {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}
    host.processes.answer("nft", Completed(0, json.dumps({"nftables": [{"chain": chain}]}).encode(), b""))
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    assert 'the nftables chain "ip filter FORWARD" drops by default' in networks.warnings()[0]
    await networks.update(NAME, NetworkPut(config={"ipv4.address": "none"}))
    assert networks.warnings() == []


async def test_a_wrong_raw_line_is_an_error_and_changes_nothing(networks: Networks) -> None:
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    with pytest.raises(DnsmasqFailed, match="bad option at line"):
        await networks.update(NAME, NetworkPut(config={**CONFIG, "raw.dnsmasq": "no-such-option"}))
    assert (await networks.show("default", NAME)).config == CONFIG


async def test_ports(networks: Networks, host: FakeHost, tmp_path: Path) -> None:
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    port = await networks.port_address(Port(NAME, "c1", "default", "eth0", "00:16:3e:00:00:01"), choose=True)
    assert port.ipv4_address.startswith("198.18.5.")
    await networks.set_ports(NAME, [port])
    taken = Port(NAME, "c2", "default", "eth0", "00:16:3e:00:00:02", port.ipv4_address)
    with pytest.raises(InvalidInput, match=r'ipv4\.address: .* already defined on another NIC \("c1"\)'):
        await networks.port_address(taken)
    reloads = [call for call in host.calls if call.method == "processes.signal"]
    assert len(reloads) == 1
    await networks.set_ports(NAME, [port])
    assert [call for call in host.calls if call.method == "processes.signal"] == reloads
    with pytest.raises(NetworkNotFound):
        await networks.set_ports("nope", [])


async def test_unmanaged_state(networks: Networks) -> None:
    state = await networks.state("eth0")
    assert (state.state, state.hwaddr, state.bridge) == ("up", "02:00:00:00:00:01", None)
