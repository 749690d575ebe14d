# SPDX-License-Identifier: Apache-2.0
"""Links, addresses and routes; those of other network namespaces too."""

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexd.host.contract import Host, HostError, Link
from flexd.host.fake import FakeHost
from flexd.host.linux import LinuxHost
from tests.contract.host.conftest import LINK_PREFIX

_BRIDGE, _VETH, _PEER = f"{LINK_PREFIX}br", f"{LINK_PREFIX}a", f"{LINK_PREFIX}b"


async def _get(host: Host, name: str) -> Link:
    link = await host.links.get(name)
    assert link is not None
    return link


async def test_the_loopback(links: Host) -> None:
    loopback = await _get(links, "lo")
    assert loopback.loopback
    assert loopback.index == 1


async def test_names(links: Host) -> None:
    await links.links.create_bridge(_BRIDGE)
    known = {link.index: link.name for link in await links.links.all()}
    assert await links.links.names() == known
    assert _BRIDGE in known.values()


async def test_a_bridge(links: Host) -> None:
    await links.links.create_bridge(_BRIDGE, hwaddr="00:16:3e:00:00:01", mtu=1400)
    bridge = await _get(links, _BRIDGE)
    assert (bridge.kind, bridge.hwaddr, bridge.mtu, bridge.up) == ("bridge", "00:16:3e:00:00:01", 1400, False)
    with pytest.raises(HostError, match=_BRIDGE) as caught:
        await links.links.create_bridge(_BRIDGE)
    assert caught.value.errno == errno.EEXIST
    await links.links.set_up(_BRIDGE)
    assert (await _get(links, _BRIDGE)).up
    await links.links.set_up(_BRIDGE, False)
    await links.links.delete(_BRIDGE)
    await links.links.delete(_BRIDGE)
    assert await links.links.get(_BRIDGE) is None


async def test_a_pair(links: Host) -> None:
    await links.links.create_bridge(_BRIDGE)
    hwaddrs = {"hwaddr": "00:16:3e:00:00:02", "peer_hwaddr": "fe:16:3e:00:00:02"}
    await links.links.create_veth(_VETH, _PEER, mtu=1300, index=70001, **hwaddrs)
    first, second = await _get(links, _VETH), await _get(links, _PEER)
    assert (first.kind, first.index, first.mtu, second.mtu) == ("veth", 70001, 1300, 1300)
    assert (first.hwaddr, second.hwaddr) == tuple(hwaddrs.values())
    assert (first.peer_index, second.peer_index) == (second.index, first.index)
    await links.links.set_master(_PEER, _BRIDGE)
    assert (await _get(links, _PEER)).master_index == (await _get(links, _BRIDGE)).index
    await links.links.set_master(_PEER, None)
    assert (await _get(links, _PEER)).master_index == 0
    await links.links.delete(_VETH)
    assert await links.links.get(_PEER) is None


async def test_changes(links: Host) -> None:
    await links.links.create_veth(_VETH, _PEER)
    await links.links.set_mtu(_VETH, 1280)
    await links.links.set_hwaddr(_VETH, "00:16:3e:00:00:03")
    await links.links.rename(_VETH, f"{LINK_PREFIX}c")
    renamed = await _get(links, f"{LINK_PREFIX}c")
    assert (renamed.mtu, renamed.hwaddr) == (1280, "00:16:3e:00:00:03")
    assert await links.links.get(_VETH) is None
    with pytest.raises(HostError) as caught:
        await links.links.rename(_PEER, f"{LINK_PREFIX}c")
    assert caught.value.errno == errno.EEXIST


async def test_links_that_are_not_there(links: Host) -> None:
    for attempt in (
        links.links.set_up("fxhnone"),
        links.links.set_mtu("fxhnone", 1400),
        links.links.set_master("fxhnone", None),
        links.links.set_addresses("fxhnone", []),
        links.links.rename("fxhnone", "fxhother"),
    ):
        with pytest.raises(HostError, match="fxhnone") as caught:
            await attempt
        assert caught.value.errno == errno.ENODEV


async def test_addresses_become_exactly_these(links: Host) -> None:
    await links.links.create_bridge(_BRIDGE)
    await links.links.set_up(_BRIDGE)

    async def addresses() -> set[str]:
        found = (await _get(links, _BRIDGE)).addresses
        return {f"{each.address}/{each.prefix}" for each in found if each.scope == "global"}

    for wanted in (
        {"198.18.10.1/24", "fd42:1234::1/64"},
        {"198.18.10.1/24", "198.18.11.1/24"},
        {"198.18.11.1/25"},
        set[str](),
    ):
        await links.links.set_addresses(_BRIDGE, sorted(wanted))
        assert await addresses() == wanted


async def test_routes_of_addresses(links: Host) -> None:
    await links.links.create_bridge(_BRIDGE)
    await links.links.set_addresses(_BRIDGE, ["198.18.10.1/24", "fd42:1234::1/64"])
    await links.links.set_up(_BRIDGE)
    found = {(route.destination, route.link, route.gateway) for route in await links.links.routes()}
    assert {("198.18.10.0/24", _BRIDGE, ""), ("fd42:1234::/64", _BRIDGE, "")} <= found


async def test_sysctls(links: Host) -> None:
    await links.links.create_bridge(_BRIDGE)
    await links.links.set_sysctl(_BRIDGE, "ipv4", "forwarding", "1")
    assert await links.links.get_sysctl(_BRIDGE, "ipv4", "forwarding") == "1"
    assert await links.links.get_sysctl("fxhnone", "ipv4", "forwarding") is None
    with pytest.raises(HostError, match="fxhnone"):
        await links.links.set_sysctl("fxhnone", "ipv4", "forwarding", "1")


async def test_neighbours(links: Host) -> None:
    await links.links.create_bridge(_BRIDGE)
    if isinstance(links, FakeHost):
        links.links.neighbours_of[_BRIDGE] = [("198.18.10.5", "00:16:3e:00:00:05")]
    else:
        await links.links.set_up(_BRIDGE)
        words = ["198.18.10.5", "lladdr", "00:16:3e:00:00:05", "nud", "reachable"]
        await links.processes.run(["ip", "neighbour", "add", *words, "dev", _BRIDGE])
    assert await links.links.neighbours(_BRIDGE) == [("198.18.10.5", "00:16:3e:00:00:05")]


async def test_nobody_is_inside_a_process_that_is_gone(links: Host) -> None:
    assert await links.links.inside([1 << 22]) == [[]]
    assert await links.links.inside([]) == []


async def test_macvlan(links: Host) -> None:
    await links.links.create_veth(_VETH, _PEER)
    name = f"{LINK_PREFIX}m"
    await links.links.create_macvlan(name, _VETH, mode="private", hwaddr="00:16:3e:00:00:08", mtu=1300)
    made = await _get(links, name)
    assert (made.kind, made.hwaddr, made.mtu) == ("macvlan", "00:16:3e:00:00:08", 1300)
    with pytest.raises(HostError, match="fxhnone"):
        await links.links.create_macvlan(f"{LINK_PREFIX}n", "fxhnone")


async def test_move_and_fetch(links: Host, sleepers: list[int]) -> None:
    namespace = Path(f"/proc/{sleepers[0]}/ns/net")
    await links.links.create_veth(_VETH, _PEER)
    await links.links.set_up(_VETH)
    await links.links.move(_VETH, namespace, "eth7")
    assert await links.links.get(_VETH) is None
    inside = next(link for link in (await links.links.inside([sleepers[0]]))[0] if link.name == "eth7")
    assert not inside.up
    await links.links.create_veth(f"{LINK_PREFIX}c", f"{LINK_PREFIX}d")
    with pytest.raises(HostError) as caught:
        await links.links.move(f"{LINK_PREFIX}c", namespace, "eth7")
    assert caught.value.errno == errno.EEXIST
    assert await links.links.get(f"{LINK_PREFIX}c") is not None
    assert await links.links.fetch(namespace, "eth7", _VETH)
    assert (await _get(links, _VETH)).peer_index == (await _get(links, _PEER)).index
    assert not await links.links.fetch(namespace, "eth7", _VETH)
    assert not await links.links.fetch(Path("/proc/4194304/ns/net"), "eth7", _VETH)


# --- what only a kernel can show ---------------------------------------------------------------------------------


@pytest.fixture
def kernel(real: bool, links: Host) -> LinuxHost:
    if not isinstance(links, LinuxHost):
        pytest.skip("the fake host has no network namespaces")
    return links


@pytest.fixture
def sleepers(real: bool) -> Iterator[list[int]]:
    """Two processes in user and network namespaces of their own."""
    if not real:
        yield [1 << 23, (1 << 23) + 1]
        return
    ours = os.stat("/proc/self/ns/net").st_ino
    argv = ["unshare", "--user", "--map-root-user", "--net", "sleep", "1000"]
    processes = [subprocess.Popen(argv, stdout=subprocess.DEVNULL) for _ in range(2)]
    while any(os.stat(f"/proc/{process.pid}/ns/net").st_ino == ours for process in processes):
        os.sched_yield()
    yield [process.pid for process in processes]
    for process in processes:
        process.kill()
        process.wait()


def _inside(pid: int, *commands: str) -> None:
    for command in commands:
        subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *command.split()], check=True)


async def test_links_of_containers(kernel: LinuxHost, sleepers: list[int]) -> None:
    first, second = sleepers
    await kernel.links.create_veth(_VETH, _PEER, hwaddr="00:16:3e:00:00:07")
    await kernel.processes.run(["ip", "link", "set", _VETH, "netns", str(first), "name", "eth0"])
    _inside(first, "link set lo up", "link set eth0 up", "address add 198.18.10.9/24 dev eth0")
    gone = 1 << 22
    rows = await kernel.links.inside([second, first, gone, first, os.getpid()])
    assert [[link.name for link in row] for row in rows[:4]] == [["lo"], ["lo", "eth0"], [], ["lo", "eth0"]]
    assert _PEER in [link.name for link in rows[4]]
    loopback, eth0 = rows[1]
    assert [each.address for each in loopback.addresses] == ["127.0.0.1", "::1"]
    assert (eth0.hwaddr, eth0.up) == ("00:16:3e:00:00:07", True)
    assert ("198.18.10.9", 24) in [(each.address, each.prefix) for each in eth0.addresses]
    assert eth0.peer_index == (await _get(kernel, _PEER)).index
    assert Path("/proc/self/ns/net").stat().st_ino == os.stat(f"/proc/{os.getpid()}/ns/net").st_ino


async def test_what_iproute2_sees(kernel: LinuxHost) -> None:
    await kernel.links.create_bridge(_BRIDGE, mtu=1400)
    await kernel.links.set_addresses(_BRIDGE, ["198.18.10.1/24", "fd42:1234::1/64"])
    await kernel.links.set_up(_BRIDGE)
    done = await kernel.processes.run(["ip", "-json", "-details", "address", "show"])
    told = {each["ifname"]: each for each in json.loads(done.stdout)}
    ours = {link.name: link for link in await kernel.links.all()}
    assert set(told) == set(ours)
    for name, link in ours.items():
        there = told[name]
        assert (link.index, link.mtu, link.hwaddr) == (there["ifindex"], there["mtu"], there.get("address", ""))
        assert link.kind == there.get("linkinfo", {}).get("info_kind", "")
        assert link.up == ("UP" in there["flags"])
        addresses = {(each["local"], each["prefixlen"]) for each in there["addr_info"]}
        assert {(each.address, each.prefix) for each in link.addresses} == addresses


async def test_errors_tell_what_the_kernel_said(kernel: LinuxHost) -> None:
    await kernel.links.create_bridge(_BRIDGE)
    with pytest.raises(HostError, match=rf"^set the MTU of link {_BRIDGE} to 10: Invalid argument.*EINVAL"):
        await kernel.links.set_mtu(_BRIDGE, 10)
