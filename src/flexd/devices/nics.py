# SPDX-License-Identifier: Apache-2.0
"""What NICs of several kinds share: key rows, checks, names, limits by tc(8) and nftables, routes."""

import ipaddress
import re
import secrets
from collections.abc import Mapping

from flexd.api.errors import BadRequest, Fault
from flexd.api.keys import Key
from flexd.api.units import is_true, parse_bits
from flexd.devices.contract import DeviceContext, Kind, Parts, RunConfig
from flexd.devices.probes import Probes
from flexd.host.contract import Host
from flexd.runtime.contract import NicSpec, RunningContainer

# LXD's and Xen's registered prefix for generated addresses.
_HWADDR_PREFIX = "00:16:3e"
_LIMITS = ("limits.egress", "limits.ingress", "limits.max", "limits.priority")
# tc-tbf(8): the bucket must hold what flows in one tick of the timer (10 ms at HZ=100), and some full frames.
_TICKS_PER_S, _LEAST_BURST_BYTES = 100, 16 * 1024
# A packet may be 64 KiB before it is segmented, and TCP needs several in flight to find its rate.
_POLICE_BURST_BYTES = 128 * 1024


def interface_fault(value: str) -> str | None:
    """The kernel's rule for interface names (dev_valid_name): 1-15 bytes, no slash, colon or white space."""
    if not re.fullmatch(r"[^\s/:%]{1,15}", value) or value in (".", ".."):
        return f'invalid interface name "{value}" (1 to 15 characters without slash, colon or space)'
    return None


def _hwaddr_fault(value: str) -> str | None:
    if not re.fullmatch(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}", value):
        return f'invalid MAC address "{value}" (six bytes in hexadecimal, separated by colons)'
    if int(value[:2], 16) & 1:
        return f'invalid MAC address "{value}" (it is a multicast address)'
    return None


def _mtu_fault(value: str) -> str | None:
    # 68 is IPv4's least MTU (RFC 791); 65535 is what veth takes at most.
    if not value.isdecimal() or not 68 <= int(value) <= 65535:
        return f'invalid MTU "{value}" (68 to 65535)'
    return None


def _number_fault(value: str) -> str | None:
    return None if value.isdecimal() and int(value) < 2**32 else f'invalid value "{value}" (0 to 4294967295)'


def vlan_fault(value: str) -> str | None:
    """What is wrong with one VLAN ID."""
    return None if value.isdecimal() and 1 <= int(value) <= 4094 else f'invalid VLAN ID "{value}" (1 to 4094)'


def _rate_fault(value: str) -> str | None:
    try:
        parse_bits(value)
    except BadRequest as error:
        return str(error)
    return None


def split(value: str | None) -> list[str]:
    """A list separated by commas."""
    return [part.strip() for part in (value or "").split(",") if part.strip()]


def ip_fault(version: int, value: str) -> str | None:
    """What is wrong with one address of a family."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        address = None
    if address is None or address.version != version or "%" in value:
        return f'invalid IPv{version} address "{value}"'
    return None


def ips_fault(version: int, value: str) -> str | None:
    """The same for a list."""
    return next((fault for each in split(value) if (fault := ip_fault(version, each))), None)


def subnets_fault(version: int, value: str) -> str | None:
    """What is wrong with a list of subnets."""
    for each in split(value):
        try:
            subnet = ipaddress.ip_network(each)
        except ValueError as error:
            return f'invalid IPv{version} subnet "{each}" ({error})'
        if subnet.version != version:
            return f'invalid IPv{version} subnet "{each}"'
    return None


def new_hwaddr() -> str:
    """A random address with LXD's prefix."""
    return ":".join([_HWADDR_PREFIX, *(f"{byte:02x}" for byte in secrets.token_bytes(3))])


NICTYPE = Key("nictype", description="Kind of NIC, where no network is given")
NAME = Key("name", description="Name of the interface inside the instance", check=interface_fault)
HWADDR = Key("hwaddr", description="MAC address; made up and kept when not given", check=_hwaddr_fault)
MTU = Key("mtu", description="Default: that of the parent", check=_mtu_fault)
HOST_NAME = Key("host_name", description="Name of the interface on the host", check=interface_fault)
QUEUE = Key("queue.tx.length", description="Length of the transmit queue", check=_number_fault)
BOOT = Key("boot.priority", kind="integer", description="Of virtual machines; without effect here")
GVRP = Key("gvrp", kind="bool", default="false", description="Whether the VLAN is registered with GVRP")
VLAN = Key("vlan", description="VLAN of the parent to attach to", check=vlan_fault)
LIMITS = (
    Key("limits.ingress", description="Bit/s to the instance (100Mbit)", check=_rate_fault),
    Key("limits.egress", description="Bit/s from the instance", check=_rate_fault),
    Key("limits.max", description="The same for both directions", check=_rate_fault),
    Key("limits.priority", description="Priority of the instance's packets in the host's queues", check=_number_fault),
)
ROUTES = (
    Key("ipv4.routes", description="Subnets routed to it", check=lambda value: subnets_fault(4, value)),
    Key("ipv6.routes", description="Subnets routed to it", check=lambda value: subnets_fault(6, value)),
)


def value_of(context: DeviceContext, key: str) -> str:
    """What was configured, else what was made up."""
    return context.config.get(key) or context.volatile.get(key, "")


class Nic(Kind):
    """Base of all kinds of NIC."""

    PREFIX = "veth"  # of generated names on the host

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.probes = Probes(parts.host)

    def new_volatile(self, device: str, config: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
        new = {}
        if not config.get("hwaddr") and not known.get("hwaddr"):
            new["hwaddr"] = new_hwaddr()
        if not config.get("name") and not known.get("name"):
            new["name"] = device if re.fullmatch(r"eth[0-9]+", device) else "eth0"
        if not config.get("host_name") and not known.get("host_name"):
            new["host_name"] = f"{self.PREFIX}{secrets.token_hex(4)}"
        return new

    def inner_link(self, context: DeviceContext) -> str:
        """The container's end while it is still on the host."""
        return f"fx{self.token(context)}"

    async def run_config(self, context: DeviceContext) -> RunConfig:
        spec = NicSpec(self.inner_link(context), value_of(context, "name"), hwaddr=value_of(context, "hwaddr"))
        return RunConfig(nics=(spec,))

    async def parent_faults(self, context: DeviceContext) -> list[Fault]:
        parent = context.config.get("parent", "")
        if await self.host.links.get(parent) is None:
            return [Fault(f"devices.{context.device}.parent", f'Parent device "{parent}" doesn\'t exist')]
        return []

    async def vlan_faults(self, context: DeviceContext) -> list[Fault]:
        if not context.config.get("vlan"):
            return []
        fault = await self.probes.link_fault("CONFIG_VLAN_8021Q", "vlan", "id", "2")
        return [Fault(f"devices.{context.device}.vlan", fault)] if fault else []

    def parent(self, context: DeviceContext) -> str:
        """The link of the host that it is on: the parent, or a VLAN of it."""
        vlan = context.config.get("vlan")
        return f"{context.config['parent']}.{vlan}" if vlan else context.config["parent"]

    async def make_vlan(self, context: DeviceContext) -> None:
        """The VLAN's link, up. It stays: other instances may be on it by the time that this one ends."""
        parent, name = context.config["parent"], self.parent(context)
        if name == parent or await self.host.links.get(name) is not None:
            return
        words = ["id", context.config["vlan"]]
        words += ["gvrp", "on"] if is_true(context.config.get("gvrp")) else []
        await self.host.processes.run(["ip", "link", "add", "link", parent, "name", name, "type", "vlan", *words])
        await self.host.links.set_up(name)


class VethNic(Nic):
    """Base of kinds that are a pair of links, one of them on the host."""

    SAVABLE = True

    UPDATABLE = frozenset({*_LIMITS, "ipv4.routes", "ipv6.routes", "queue.tx.length", "boot.priority"})

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        found = super().faults(device, config)
        if config.get("limits.max") and (config.get("limits.ingress") or config.get("limits.egress")):
            where = f"devices.{device}.limits.max"
            found.append(Fault(where, "cannot be used together with limits.ingress or limits.egress"))
        return found

    async def limit_faults(self, context: DeviceContext) -> list[Fault]:
        """Limits need tc(8) towards the instance and nftables from it."""
        config, where = context.config, f"devices.{context.device}"
        found = []
        needs_nft = next((key for key in ("limits.egress", "limits.priority", "limits.max") if config.get(key)), None)
        missing = await self.host.firewall.available() if needs_nft else None
        if missing is not None:
            found.append(Fault(f"{where}.{needs_nft}", f"needs nftables: {missing}"))
        shaped = next((key for key in ("limits.ingress", "limits.max") if config.get(key)), None)
        if shaped is not None:
            no_tbf = await self._tbf_fault()
            found += [Fault(f"{where}.{shaped}", no_tbf)] if no_tbf else []
        return found

    async def _tbf_fault(self) -> str | None:
        argv = ["unshare", "--net", "--", "tc", "qdisc", "add", "dev", "lo", "root"]
        argv += ["tbf", "rate", "1mbit", "burst", "16kb", "latency", "50ms"]
        done = await self.host.processes.run(argv, check=False)
        if done.returncode == 0:
            return None
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return f"needs tc and the kernel's sch_tbf (CONFIG_NET_SCH_TBF): {said[0] if said else 'tc failed'}"

    async def make_pair(self, context: DeviceContext, mtu: int) -> None:
        """Both ends down; what is left of a run that ended without its clean-up goes first."""
        host_name, hwaddr = value_of(context, "host_name"), value_of(context, "hwaddr")
        # A bridge takes the lowest address of its ports unless it was given one: with the highest there are, instances
        # that come and go do not change the address under which others know the host.
        peer_hwaddr = f"fe{hwaddr[2:]}" if hwaddr else ""
        await self.host.links.delete(host_name)
        await self.host.links.create_veth(
            self.inner_link(context), host_name, hwaddr=hwaddr, mtu=mtu, peer_hwaddr=peer_hwaddr
        )
        length = context.config.get("queue.tx.length")
        if length:
            for link in (self.inner_link(context), host_name):
                await self.host.processes.run(["ip", "link", "set", "dev", link, "txqueuelen", length])

    async def _take_link(self, nic: NicSpec, container: RunningContainer) -> None:
        """Nothing to take: both ends go when `stop` deletes the host's."""

    async def limit(self, context: DeviceContext) -> None:
        """Make the limits what the entry says; none where it says nothing."""
        await limit_link(self.host, value_of(context, "host_name"), f"flexd_{self.token(context)}", context.config)

    async def sever(self, context: DeviceContext) -> None:
        """Both ends of the pair go. With the link still there liblxc's monitor would first move it back to the host."""
        await self.host.links.delete(value_of(context, "host_name"))

    async def stop(self, context: DeviceContext) -> None:
        await self.unlimit(context)
        await self.host.links.delete(value_of(context, "host_name"))

    async def unlimit(self, context: DeviceContext) -> None:
        if any(context.config.get(key) for key in _LIMITS):
            await self.host.firewall.delete_table("netdev", f"flexd_{self.token(context)}")

    async def update(self, old: DeviceContext, new: DeviceContext, container: RunningContainer) -> None:
        del container
        if any(old.config.get(key) != new.config.get(key) for key in _LIMITS):
            if not any(new.config.get(key) for key in _LIMITS):
                await self.unlimit(old)
            await self.limit(new)
        if old.config.get("queue.tx.length") != new.config.get("queue.tx.length"):
            length = new.config.get("queue.tx.length") or "1000"  # the kernel's own (DEFAULT_TX_QUEUE_LEN)
            await self.host.processes.run(
                ["ip", "link", "set", "dev", value_of(new, "host_name"), "txqueuelen", length]
            )
        await change_routes(self.host, self.route_link(new), old.config, new.config)

    def route_link(self, context: DeviceContext) -> str:
        """Where `ipv4.routes` and `ipv6.routes` lead on the host."""
        return value_of(context, "host_name")


async def limit_link(host: Host, link: str, table: str, config: Mapping[str, str]) -> None:
    """Shape what goes to the instance, drop what comes from it too fast: the kernel can only queue what it sends."""
    both = config.get("limits.max", "")
    ingress, egress = (parse_bits(both or config.get(f"limits.{way}", "")) for way in ("ingress", "egress"))
    if ingress:
        burst = max(ingress // 8 // _TICKS_PER_S, _LEAST_BURST_BYTES)
        words = ["tbf", "rate", f"{ingress}bit", "burst", str(burst), "latency", "50ms"]
        await host.processes.run(["tc", "qdisc", "replace", "dev", link, "root", *words])
    else:
        await host.processes.run(["tc", "qdisc", "del", "dev", link, "root"], check=False)
    rules = []
    if config.get("limits.priority"):
        rules.append(f"meta priority set 0:{int(config['limits.priority']):x}")
    if egress:
        burst = max(egress // 8 // 10, _POLICE_BURST_BYTES)
        rules.append(f"limit rate over {max(1, egress // 8)} bytes/second burst {burst} bytes drop")
    if rules:
        head = f'type filter hook ingress device "{link}" priority 0; policy accept;'
        await host.firewall.replace_table("netdev", table, f"chain egress {{ {head}\n" + "\n".join(rules) + "\n}")


async def change_routes(host: Host, link: str, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Add and remove routes so that they are those of `new`. Protocol `boot` tells them from a network's own."""
    for flag, key in (("-4", "ipv4.routes"), ("-6", "ipv6.routes")):
        before, after = split(old.get(key)), split(new.get(key))
        for subnet in (each for each in before if each not in after):
            await host.processes.run(["ip", flag, "route", "del", subnet, "dev", link, "proto", "boot"], check=False)
        for subnet in (each for each in after if each not in before):
            await host.processes.run(["ip", flag, "route", "replace", subnet, "dev", link, "proto", "boot"])
