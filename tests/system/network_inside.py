# SPDX-License-Identifier: Apache-2.0
"""Real networks: bridge, dnsmasq, nftables, with a client behind a veth pair. Started by `test_network.py`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flexd.api.errors import BadRequest, Conflict, InvalidInput
from flexd.api.network import NetworkPost, NetworkPut, NetworksPost
from flexd.host.linux import LinuxHost
from flexd.network.contract import NetworkInUse, NetworkNotFound, Port
from flexd.network.dnsmasq_process import ProcessRecord
from flexd.network.networks import Networks
from flexd.operations.events import Events
from flexd.operations.locks import Locks
from flexd.projects.projects import Projects
from flexd.store.mirror import StoreMirror
from flexd.store.sqlite import SqliteStore

CLIENT = Path(__file__).with_name("network_client.py")
NAME = "fxnbr0"
MAC = "00:16:3e:00:00:01"
CONFIG = {
    "ipv4.address": "198.18.5.1/24",
    "ipv4.nat": "true",
    "ipv6.address": "fd42:f1ec:5::1/64",
    "ipv6.nat": "true",
}


def sh(*argv: str, check: bool = True) -> str:
    return subprocess.run(argv, check=check, capture_output=True, text=True).stdout


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not pytest's own, which keeps other users out: dnsmasq is to run unprivileged."""
    with tempfile.TemporaryDirectory(prefix="fxn", dir="/tmp") as path:
        os.chmod(path, 0o711)
        yield Path(path)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """What a failing test left is not to fail the next one; links, tables and processes here are all our own."""
    sh("ip", "link", "set", "lo", "up")
    yield
    for pid in running_dnsmasqs():
        os.kill(pid, signal.SIGKILL)
    for name in our_links():
        sh("ip", "link", "delete", name, check=False)
    sh("nft", "flush", "ruleset")


@asynccontextmanager
async def daemon(directory: Path) -> AsyncIterator[Networks]:
    """What the daemon has of networks, from start to stop (or kill: it lets go the same way)."""
    host, store = LinuxHost(), await SqliteStore.open(directory / "store.db")
    mirror = await StoreMirror.open(store)
    projects = Projects(mirror, Locks())
    await projects.start()
    networks = Networks(
        host=host,
        mirror=mirror,
        projects=projects,
        locks=Locks(),
        events=Events(),
        directory=directory / "networks",
    )
    await networks.start()
    try:
        yield networks
    finally:
        await networks.stop()
        await mirror.close()
        await store.close()
        await host.close()


@pytest.fixture
async def networks(directory: Path) -> AsyncIterator[Networks]:
    async with daemon(directory) as networks:
        try:
            yield networks
        finally:
            networks.set_used_by(lambda _name: [])
            for name in networks.names("default"):
                await networks.delete(name)
    assert_nothing_left(directory)


def assert_nothing_left(directory: Path) -> None:
    assert our_links() == []
    assert "flexd" not in sh("nft", "list", "tables")
    assert list((directory / "networks").iterdir()) == []
    assert running_dnsmasqs() == []


def our_links() -> list[str]:
    names = [link["ifname"] for link in json.loads(sh("ip", "-j", "link"))]
    return [name for name in names if name.startswith("fxn")]


def running_dnsmasqs() -> list[int]:
    return [int(pid.name) for pid in Path("/proc").glob("[0-9]*") if _command(pid).startswith(b"dnsmasq\0")]


def add_interface(name: str, *, mtu: int = 1500) -> None:
    """An interface like any other of a host: half of a veth pair, as not all kernels have dummies."""
    sh("ip", "link", "add", name, "mtu", str(mtu), "type", "veth", "peer", "name", f"{name}p")


def _command(pid: Path) -> bytes:
    try:
        return (pid / "cmdline").read_bytes()
    except OSError:
        return b""


class Guest:
    """A network namespace with an interface on the bridge, as an instance has."""

    def __init__(self, bridge: str, hwaddr: str = MAC) -> None:
        self._process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
        self.hwaddr = hwaddr
        ours = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self._process.pid}/ns/net") == ours:
            os.sched_yield()
        self.link = f"fxnv{self._process.pid}"
        sh("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "address", hwaddr,
           "netns", str(self._process.pid))  # fmt: skip
        sh("ip", "link", "set", self.link, "master", bridge, "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "set", "eth0", "up")

    def run(self, *argv: str) -> str:
        return sh("nsenter", f"--net=/proc/{self._process.pid}/ns/net", *argv)

    async def dhcp(self, *words: str) -> dict[str, Any]:
        found = await asyncio.to_thread(self.run, sys.executable, str(CLIENT), "dhcp", "eth0", self.hwaddr, *words)
        return dict(json.loads(found))

    async def dns(self, server: str, name: str, kind: str) -> list[str]:
        return list(
            json.loads(await asyncio.to_thread(self.run, sys.executable, str(CLIENT), "dns", server, name, kind))
        )

    def configure(self, lease: dict[str, Any]) -> None:
        self.run("ip", "addr", "replace", f"{lease['address']}/24", "dev", "eth0")
        if lease["router"]:
            self.run("ip", "route", "replace", "default", "via", lease["router"])

    def addresses(self, family: str) -> list[str]:
        found = json.loads(self.run("ip", "-j", "addr", "show", "dev", "eth0"))[0]["addr_info"]
        ready = [a for a in found if a["family"] == family and a["scope"] == "global" and not a.get("tentative")]
        return [address["local"] for address in ready]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        sh("ip", "link", "delete", self.link, check=False)


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    made: list[Guest] = []
    yield made
    for guest in made:
        guest.close()


def join(guests: list[Guest], bridge: str = NAME, hwaddr: str = MAC) -> Guest:
    guests.append(Guest(bridge, hwaddr))
    return guests[-1]


def record(directory: Path, name: str = NAME) -> ProcessRecord:
    """The running dnsmasq, as the daemon wrote it down."""
    return msgspec.json.decode((directory / "networks" / name / "dnsmasq.json").read_bytes(), type=ProcessRecord)


def bridge_index() -> int:
    return int(json.loads(sh("ip", "-j", "link", "show", NAME))[0]["ifindex"])


async def wait_addresses(guest: Guest, family: str) -> list[str]:
    """The kernel configures itself from a router advertisement; duplicate detection takes a second more."""
    async with asyncio.timeout(30):
        while not (found := guest.addresses(family)):
            await asyncio.sleep(0.05)
    return found


# --- the main road -----------------------------------------------------------------------------------------------


async def test_a_guest_gets_all_of_it(networks: Networks, directory: Path, guests: list[Guest]) -> None:
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    guest = join(guests)
    lease = await guest.dhcp()
    assert lease["router"] == lease["dns"] == "198.18.5.1"
    assert lease["domain"] == "lxd"
    assert lease["address"].startswith("198.18.5.")
    assert "fd42:f1ec:5:0:216:3eff:fe00:1" in await wait_addresses(guest, "inet6")
    guest.configure(lease)
    assert await guest.dns("198.18.5.1", "_gateway.lxd", "A") == ["198.18.5.1"]
    assert await guest.dns("fd42:f1ec:5::1", "_gateway.lxd", "AAAA") == ["fd42:f1ec:5::1"]
    dynamic = [lease for lease in await networks.leases(NAME) if lease.type == "dynamic"]
    assert [(row.address, row.hwaddr) for row in dynamic] == [(lease["address"], MAC)]
    state = await networks.state(NAME)
    assert (state.state, state.type, state.mtu) == ("up", "broadcast", 1500)
    assert {address.address for address in state.addresses} >= {"198.18.5.1", "fd42:f1ec:5::1"}
    assert state.bridge is not None
    assert state.bridge.upper_devices == [guest.link]
    assert state.bridge.id == f"8000.{state.hwaddr.replace(':', '')}"
    table = sh("nft", "list", "table", "inet", f"flexd_{NAME}")
    assert "ip saddr 198.18.5.0/24 ip daddr != 198.18.5.0/24 masquerade" in table
    assert "ip6 saddr fd42:f1ec:5::/64 ip6 daddr != fd42:f1ec:5::/64 masquerade" in table
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"
    assert Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text() == "1\n"
    status = Path(f"/proc/{record(directory).pid}/status").read_text()
    assert "\nUid:\t0\t" not in status


async def test_forwarding_and_nat_reach_another_network(networks: Networks, guests: list[Guest]) -> None:
    """A "server" on a plain bridge outside sees the host's address, not the guest's."""
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    sh("ip", "link", "add", "fxnout", "type", "bridge")
    sh("ip", "addr", "add", "198.19.0.1/24", "dev", "fxnout")
    sh("ip", "link", "set", "fxnout", "up")
    try:
        guest, server = join(guests), join(guests, "fxnout", "00:16:3e:00:00:99")
        guest.configure(await guest.dhcp())
        server.run("ip", "addr", "add", "198.19.0.9/24", "dev", "eth0")  # no route back: only NAT brings an answer
        listen = (
            "import socket; s = socket.create_server(('198.19.0.9', 8080)); c, a = s.accept(); c.sendall(a[0].encode())"
        )
        serving = asyncio.create_task(asyncio.to_thread(server.run, sys.executable, "-c", listen))
        connect = (
            "import socket, time\n"
            "end = time.monotonic() + 20\n"
            "while True:\n"
            "    try: s = socket.create_connection(('198.19.0.9', 8080), 5); break\n"
            "    except ConnectionRefusedError: assert time.monotonic() < end\n"
            "print(s.recv(99).decode())"
        )
        assert await asyncio.to_thread(guest.run, sys.executable, "-c", connect) == "198.19.0.1\n"
        await serving
    finally:
        sh("ip", "link", "delete", "fxnout")


async def test_names_and_static_addresses_without_a_restart(
    networks: Networks, directory: Path, guests: list[Guest]
) -> None:
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    before = record(directory)
    guest, other = join(guests), join(guests, hwaddr="00:16:3e:00:00:02")
    await networks.set_ports(
        NAME,
        [
            Port(NAME, "c1", "default", "eth0", MAC, "198.18.5.77"),
            Port(NAME, "c2", "default", "eth0", other.hwaddr),
        ],
    )
    assert record(directory) == before
    lease = await guest.dhcp("", "liar")
    assert lease["address"] == "198.18.5.77"
    guest.configure(lease)
    dynamic = await other.dhcp()
    assert await guest.dns("198.18.5.1", "c1.lxd", "A") == ["198.18.5.77"]
    assert await guest.dns("198.18.5.1", "c2.lxd", "A") == [dynamic["address"]]
    assert await guest.dns("198.18.5.1", "c2", "A") == [dynamic["address"]]
    assert await guest.dns("198.18.5.1", "77.5.18.198.in-addr.arpa", "PTR") == ["c1.lxd"]
    assert await guest.dns("198.18.5.1", "liar.lxd", "A") == []
    types = {lease.address: lease.type for lease in await networks.leases(NAME)}
    assert types["198.18.5.77"] == "static"
    assert types["198.18.5.1"] == "gateway"
    await networks.set_ports(NAME, [])
    assert await guest.dns("198.18.5.1", "c1.lxd", "AAAA") == []
    assert {lease.type for lease in await networks.leases(NAME)} == {"gateway", "dynamic"}


async def test_copies_that_share_a_client_id_get_two_addresses(networks: Networks, guests: list[Guest]) -> None:
    """systemd-networkd's client id comes from the machine id, which a copied container may share."""
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    one, two = join(guests), join(guests, hwaddr="00:16:3e:00:00:02")
    ports = [Port(NAME, name, "default", "eth0", guest.hwaddr) for name, guest in (("c1", one), ("c2", two))]
    await networks.set_ports(NAME, ports)
    client_id = "ff00112233000200001234deadbeef"
    assert (await one.dhcp(client_id))["address"] != (await two.dhcp(client_id))["address"]


async def test_dynamic_names(networks: Networks, guests: list[Guest]) -> None:
    await networks.create(
        NetworksPost(name=NAME, config={**CONFIG, "dns.mode": "dynamic", "dns.domain": "example.org"})
    )
    guest = join(guests)
    lease = await guest.dhcp("", "itself")
    guest.configure(lease)
    assert lease["domain"] == "example.org"
    assert await guest.dns("198.18.5.1", "itself.example.org", "A") == [lease["address"]]


# --- restart, crash, repair --------------------------------------------------------------------------------------


async def test_a_restarted_daemon_touches_nothing_that_is_right(directory: Path, guests: list[Guest]) -> None:
    async with daemon(directory) as networks:
        await networks.create(NetworksPost(name=NAME, config=CONFIG))
        await networks.set_ports(NAME, [Port(NAME, "c1", "default", "eth0", MAC, "198.18.5.77")])
        before = bridge_index(), record(directory)
        guest = join(guests)
    async with daemon(directory) as networks:
        assert (bridge_index(), record(directory)) == before
        assert (await guest.dhcp())["address"] == "198.18.5.77"
        guest.close()
        await networks.delete(NAME)
    assert_nothing_left(directory)


async def test_all_that_is_gone_comes_back_at_start(directory: Path, guests: list[Guest]) -> None:
    async with daemon(directory) as networks:
        await networks.create(NetworksPost(name=NAME, config=CONFIG))
        hwaddr = (await networks.state(NAME)).hwaddr
    os.kill(record(directory).pid, signal.SIGKILL)
    sh("nft", "delete", "table", "inet", f"flexd_{NAME}")
    sh("ip", "link", "delete", NAME)
    async with daemon(directory) as networks:
        assert (await networks.state(NAME)).hwaddr == hwaddr
        assert (await join(guests).dhcp())["router"] == "198.18.5.1"
        assert "masquerade" in sh("nft", "list", "table", "inet", f"flexd_{NAME}")
        await networks.delete(NAME)


async def test_a_dnsmasq_that_dies_is_started_again(networks: Networks, directory: Path, guests: list[Guest]) -> None:
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    dead = record(directory)
    os.kill(dead.pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        while not (directory / "networks" / NAME / "dnsmasq.json").exists() or record(directory) == dead:
            await asyncio.sleep(0.02)
    assert (await join(guests).dhcp())["router"] == "198.18.5.1"


async def test_a_dnsmasq_started_right_before_a_crash_is_found(directory: Path) -> None:
    async with daemon(directory) as networks:
        await networks.create(NetworksPost(name=NAME, config=CONFIG))
    stray = record(directory)
    (directory / "networks" / NAME / "dnsmasq.json").unlink()
    async with daemon(directory) as networks:
        assert record(directory).pid != stray.pid
        assert running_dnsmasqs() == [record(directory).pid]
        await networks.delete(NAME)
    assert_nothing_left(directory)


async def test_what_a_crash_left_of_a_creation_is_removed(directory: Path) -> None:
    """As a crash between the host's part and the document leaves it."""
    async with daemon(directory) as networks:
        await networks.create(NetworksPost(name=NAME, config=CONFIG))
    store = await SqliteStore.open(directory / "store.db")
    mirror = await StoreMirror.open(store)
    await Networks(
        host=LinuxHost(),
        mirror=mirror,
        projects=Projects(mirror, Locks()),
        locks=Locks(),
        events=Events(),
        directory=directory,
    )._documents.delete(("default", NAME))
    await mirror.close()
    await store.close()
    async with daemon(directory) as networks:
        assert networks.names("default") == []
        assert_nothing_left(directory)


async def test_a_strangers_bridge_is_left_alone(directory: Path) -> None:
    async with daemon(directory) as networks:
        await networks.create(NetworksPost(name=NAME, config=CONFIG))
    os.kill(record(directory).pid, signal.SIGKILL)
    sh("ip", "link", "delete", NAME)
    sh("ip", "link", "add", NAME, "type", "bridge")
    async with daemon(directory) as networks:
        assert (await networks.show("default", NAME)).status == "Unavailable"
        assert "was not made for it" in networks.warnings()[0]
        await networks.delete(NAME)
        assert sh("ip", "-br", "link", "show", NAME)
        with pytest.raises(BadRequest, match=f'Network interface "{NAME}" already exists'):
            await networks.create(NetworksPost(name=NAME, config=CONFIG))
    sh("ip", "link", "delete", NAME)
    assert_nothing_left(directory)


# --- editing -----------------------------------------------------------------------------------------------------


async def test_an_edit_keeps_bridge_and_ports(networks: Networks, guests: list[Guest]) -> None:
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    guest = join(guests)
    await guest.dhcp()
    edit = {
        "ipv4.address": "198.18.6.1/24",
        "ipv4.dhcp.gateway": "none",
        "ipv4.routes": "198.19.7.0/24",
        "bridge.mtu": "1400",
        "raw.dnsmasq": "address=/raw.test/198.18.6.200",
    }
    await networks.update(NAME, NetworkPut(config=edit, description="edited"))
    lease = await guest.dhcp()
    assert lease["address"].startswith("198.18.6.")
    assert (lease["router"], lease["mtu"]) == ("", 1400)
    guest.configure(lease)
    assert await guest.dns("198.18.6.1", "raw.test", "A") == ["198.18.6.200"]
    table = sh("nft", "list", "table", "inet", f"flexd_{NAME}")
    assert "masquerade" not in table
    assert "198.19.7.0/24" in sh("ip", "route", "show", "dev", NAME)
    state = await networks.state(NAME)
    assert {a.address for a in state.addresses if a.scope == "global"} == {"198.18.6.1"}
    await networks.update(NAME, NetworkPut(config={"ipv4.routes": ""}), patch=True)
    assert "198.19.7.0/24" not in sh("ip", "route", "show", "dev", NAME)
    shown = await networks.show("default", NAME)
    assert shown.description == "edited"
    assert shown.config["bridge.mtu"] == "1400"


async def test_a_failing_edit_changes_nothing(networks: Networks, guests: list[Guest]) -> None:
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    before = await networks.show("default", NAME)
    with pytest.raises(Exception, match="dnsmasq"):
        await networks.update(
            NAME, NetworkPut(config={"ipv4.address": "198.18.6.1/24", "raw.dnsmasq": "no-such-option"})
        )
    assert await networks.show("default", NAME) == before
    assert (await join(guests).dhcp())["router"] == "198.18.5.1"


async def test_rename(networks: Networks, directory: Path, guests: list[Guest]) -> None:
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    await networks.set_ports(NAME, [Port(NAME, "c1", "default", "eth0", MAC, "198.18.5.77")])
    hwaddr = (await networks.state(NAME)).hwaddr
    await networks.rename(NAME, NetworkPost(name="fxnbr1"))
    assert networks.names("default") == ["fxnbr1"]
    assert (await networks.state("fxnbr1")).hwaddr == hwaddr
    assert (await join(guests, "fxnbr1").dhcp())["address"] == "198.18.5.77"
    assert sh("ip", "link", "show", NAME, check=False) == ""
    assert f"flexd_{NAME}" not in sh("nft", "list", "tables")
    with pytest.raises(NetworkNotFound):
        await networks.show("default", NAME)
    with pytest.raises(Conflict, match='Network "fxnbr1" already exists'):
        await networks.rename("fxnbr1", NetworkPost(name="fxnbr1"))


async def test_in_use_is_not_deleted(networks: Networks) -> None:
    await networks.create(NetworksPost(name=NAME, config={"ipv4.address": "none", "ipv6.address": "none"}))
    networks.set_used_by(lambda _name: ["/1.0/profiles/default"])
    with pytest.raises(NetworkInUse, match="The network is currently in use"):
        await networks.delete(NAME)
    with pytest.raises(NetworkInUse, match="The network is currently in use"):
        await networks.rename(NAME, NetworkPost(name="fxnbr1"))
    assert (await networks.show("default", NAME)).used_by == ["/1.0/profiles/default"]


# --- particulars -------------------------------------------------------------------------------------------------


async def test_automatic_subnets(networks: Networks) -> None:
    for number in range(3):
        await networks.create(NetworksPost(name=f"fxnbr{number}"))
    shown = [await networks.show("default", name) for name in networks.names("default")]
    assert len({network.config["ipv4.address"] for network in shown}) == 3
    assert all(network.config["ipv4.nat"] == network.config["ipv6.nat"] == "true" for network in shown)
    assert all(network.config["ipv6.address"].startswith("fd42:") for network in shown)
    assert {network.status for network in shown} == {"Created"}
    with pytest.raises(InvalidInput, match="overlaps"):
        await networks.update("fxnbr0", NetworkPut(config={"ipv4.address": shown[1].config["ipv4.address"]}))


async def test_stateful_ipv6(networks: Networks, guests: list[Guest]) -> None:
    await networks.create(NetworksPost(name=NAME, config={**CONFIG, "ipv6.dhcp.stateful": "true"}))
    with pytest.raises(InvalidInput, match="not within network"):
        await networks.port_address(Port(NAME, "c1", "default", "eth0", MAC, "198.18.9.9"))
    chosen = await networks.port_address(Port(NAME, "c1", "default", "eth0", MAC), choose=True)
    assert chosen.ipv6_address.startswith("fd42:f1ec:5:")
    await networks.set_ports(NAME, [chosen])
    guest = join(guests)
    guest.configure(await guest.dhcp())
    assert guest.addresses("inet") == [chosen.ipv4_address]
    assert await guest.dns("198.18.5.1", "c1.lxd", "AAAA") == [chosen.ipv6_address]
    assert {lease.type for lease in await networks.leases(NAME)} == {"gateway", "static"}


async def test_without_ipv6_in_the_host(networks: Networks, guests: list[Guest]) -> None:
    sysctl = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    sysctl.write_text("1")
    try:
        await networks.create(NetworksPost(name=NAME, config=CONFIG))
        assert "IPv6 is configured but disabled on this host" in networks.warnings()[0]
        await networks.create(NetworksPost(name="fxnbr1"))
        assert (await networks.show("default", "fxnbr1")).config["ipv6.address"] == "none"
        assert (await join(guests).dhcp())["router"] == "198.18.5.1"
    finally:
        sysctl.write_text("0")


async def test_external_interfaces(networks: Networks) -> None:
    add_interface("fxnext")
    try:
        await networks.create(NetworksPost(name=NAME, config={**CONFIG, "bridge.external_interfaces": "fxnext"}))
        assert f"master {NAME}" in sh("ip", "link", "show", "fxnext")
        await networks.update(NAME, NetworkPut(config=CONFIG))
        assert "master" not in sh("ip", "link", "show", "fxnext")
        sh("ip", "addr", "add", "198.19.8.1/24", "dev", "fxnext")
        with pytest.raises(Exception, match="Only unconfigured network interfaces can be bridged"):
            await networks.update(NAME, NetworkPut(config={**CONFIG, "bridge.external_interfaces": "fxnext"}))
    finally:
        sh("ip", "link", "delete", "fxnext")


async def test_the_mtu_stays_when_a_port_has_a_smaller_one(networks: Networks) -> None:
    await networks.create(NetworksPost(name=NAME, config=CONFIG))
    add_interface("fxnsmall", mtu=1300)
    try:
        sh("ip", "link", "set", "fxnsmall", "master", NAME, "up")
        assert (await networks.state(NAME)).mtu == 1500
    finally:
        sh("ip", "link", "delete", "fxnsmall")


async def test_a_dropping_firewall_is_reported_and_left_alone(networks: Networks) -> None:
    sh("nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    try:
        await networks.create(NetworksPost(name=NAME, config=CONFIG))
        assert "nft insert rule ip filter DOCKER-USER" in networks.warnings()[0]
        assert "policy drop" in sh("nft", "list", "chain", "ip", "filter", "FORWARD")
    finally:
        sh("nft", "delete", "table", "ip", "filter")


async def test_uplinks_go_on_listening_to_routers(networks: Networks) -> None:
    for name in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/forwarding").write_text("0")
    add_interface("fxnup")
    add_interface("fxndeaf")
    conf = Path("/proc/sys/net/ipv6/conf")
    (conf / "fxnup/accept_ra").write_text("1")
    (conf / "fxndeaf/accept_ra").write_text("0")
    try:
        await networks.create(NetworksPost(name=NAME, config=CONFIG))
        assert (conf / "fxnup/accept_ra").read_text() == "2\n"
        assert (conf / "fxndeaf/accept_ra").read_text() == "0\n"
        assert (conf / f"{NAME}/accept_ra").read_text() == "0\n"
    finally:
        sh("ip", "link", "delete", "fxnup")
        sh("ip", "link", "delete", "fxndeaf")


async def test_interfaces_of_the_host_are_shown(networks: Networks) -> None:
    lo = await networks.show("default", "lo")
    assert (lo.managed, lo.type, lo.config, lo.status) == (False, "loopback", {}, "")
    assert "lo" in await networks.all_names("default")
    assert (await networks.state("lo")).type == "loopback"
    with pytest.raises(NetworkNotFound):
        await networks.leases("lo")
    with pytest.raises(NetworkNotFound, match="Network not found"):
        await networks.state("fxnnone")
    with pytest.raises(NetworkNotFound):
        await networks.delete("lo")
