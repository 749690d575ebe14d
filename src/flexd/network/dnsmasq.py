# SPDX-License-Identifier: Apache-2.0
"""What dnsmasq is told for a bridge, and what its lease file says. Pure; dnsmasq(8) explains every option.

The configuration is one file per network; static leases and names are two more files, read again on SIGHUP.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from msgspec import Struct

from flexd.api.units import is_true
from flexd.network.addresses import Interface, dhcp_ranges, interface_of, parse_list, reverse_zones
from flexd.network.contract import Port
from flexd.network.firewall import on

_DEFAULT_EXPIRY = "1h"  # LXD's
_ETHERNET_MTU = 1500
_MAX_LEASES = 65536  # dnsmasq's own default, 1000, would end a larger network silently
_SLAAC_PREFIX = 64  # dnsmasq advertises no other prefix for SLAAC (RFC 4862 with 64-bit interface identifiers)


class DnsmasqFiles(Struct, frozen=True):
    """Where one network's files are."""

    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "dnsmasq.conf"

    @property
    def static_leases(self) -> Path:
        return self.directory / "dnsmasq.dhcp-hosts"

    @property
    def names(self) -> Path:
        return self.directory / "dnsmasq.hosts"

    @property
    def leases(self) -> Path:
        return self.directory / "dnsmasq.leases"

    @property
    def pid(self) -> Path:
        return self.directory / "dnsmasq.pid"

    @property
    def process(self) -> Path:
        return self.directory / "dnsmasq.json"

    @property
    def log(self) -> Path:
        return self.directory / "dnsmasq.log"


class LeaseRow(Struct, frozen=True):
    """A line of the lease file; `hwaddr` is empty for a DHCPv6 client whose DUID does not hold one."""

    address: str
    hwaddr: str
    hostname: str
    expires: datetime | None


def domain_of(config: dict[str, str]) -> str:
    return config.get("dns.domain") or "lxd"


def slaac(config: dict[str, str]) -> bool:
    """Whether instances make their own IPv6 addresses from router advertisements."""
    interface = interface_of(config, "ipv6")
    return interface is not None and interface.network.prefixlen <= _SLAAC_PREFIX and not stateful(config)


def stateful(config: dict[str, str]) -> bool:
    return on(config, "ipv6.dhcp") and is_true(config.get("ipv6.dhcp.stateful"))


# --- configuration -----------------------------------------------------------------------------------------------


def render_config(bridge: str, config: dict[str, str], files: DnsmasqFiles, *, user: str, group: str, mtu: int) -> str:
    """The whole configuration file; "" if the network needs no dnsmasq (it has no address in either family)."""
    addresses = [address for family in ("ipv4", "ipv6") if (address := interface_of(config, family))]
    if not addresses:
        return ""
    lines = [
        *_process(bridge, files, user, group),
        *_dns(bridge, config, files, addresses),
        *_dhcp(files),
        *_dhcpv4(config, mtu),
        *_dhcpv6(config),
        *_search(config),
        *config.get("raw.dnsmasq", "").strip("\n").split("\n"),
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _process(bridge: str, files: DnsmasqFiles, user: str, group: str) -> Iterator[str]:
    yield f"user={user}"
    yield f"group={group}"
    yield f"pid-file={files.pid}"
    yield f"log-facility={files.log}"
    yield f"interface={bridge}"
    yield "except-interface=lo"  # `interface` alone would include it
    yield "bind-interfaces"  # other DNS servers of this host keep their port 53


def _dns(bridge: str, config: dict[str, str], files: DnsmasqFiles, addresses: list[Interface]) -> Iterator[str]:
    mode = config.get("dns.mode") or "managed"
    yield "no-hosts"
    if mode != "dynamic":
        yield "dhcp-ignore-names"  # what clients call themselves; the name of a static lease still counts
    if mode == "none":
        return
    domain = domain_of(config)
    yield f"domain={domain}"
    yield f"addn-hosts={files.names}"
    yield f"interface-name=_gateway.{domain},{bridge}"
    for zone in [domain, *(zone for address in addresses for zone in reverse_zones(address.network))]:
        yield f"local=/{zone}/"  # never asked upstream


def _dhcp(files: DnsmasqFiles) -> Iterator[str]:
    yield "dhcp-authoritative"
    yield "no-ping"  # an offer must not wait for the probe
    yield "dhcp-rapid-commit"
    yield f"dhcp-leasefile={files.leases}"
    yield f"dhcp-hostsfile={files.static_leases}"
    yield f"dhcp-lease-max={_MAX_LEASES}"
    yield from ("quiet-dhcp", "quiet-dhcp6", "quiet-ra")


def _dhcpv4(config: dict[str, str], mtu: int) -> Iterator[str]:
    interface = interface_of(config, "ipv4")
    if interface is None or not on(config, "ipv4.dhcp"):
        return
    expiry = config.get("ipv4.dhcp.expiry") or _DEFAULT_EXPIRY
    for first, last in dhcp_ranges(config, "ipv4"):
        yield f"dhcp-range={first},{last},{interface.network.netmask},{expiry}"
    gateway = config.get("ipv4.dhcp.gateway")
    if gateway:
        yield "dhcp-option-force=option:router" + ("" if gateway == "none" else f",{gateway}")
    if mtu != _ETHERNET_MTU:
        yield f"dhcp-option-force=option:mtu,{mtu}"


def _dhcpv6(config: dict[str, str]) -> Iterator[str]:
    interface = interface_of(config, "ipv6")
    if interface is None or not (slaac(config) or stateful(config)):
        return
    expiry = config.get("ipv6.dhcp.expiry") or _DEFAULT_EXPIRY
    yield "enable-ra"
    if stateful(config):
        prefix = max(interface.network.prefixlen, _SLAAC_PREFIX)
        yield from (f"dhcp-range={first},{last},{prefix},{expiry}" for first, last in _within_64(config))
    else:
        mode = "ra-stateless,ra-names" if on(config, "ipv6.dhcp") else "ra-only"
        yield f"dhcp-range={_slaac_subnet(interface)},{mode},{_SLAAC_PREFIX},{expiry}"
    yield f"dhcp-option=option6:dns-server,[{interface.ip}]"


def _slaac_subnet(interface: Interface) -> str:
    """The /64 that is advertised: the gateway's own."""
    return str(ip_address(int(interface.ip) >> 64 << 64) if interface.version == 6 else interface.network[0])


def _within_64(config: dict[str, str]) -> Iterator[tuple[object, object]]:
    """DHCPv6 ranges, cut where they leave the /64 that they begin in: dnsmasq takes no wider ones."""
    for first, last in dhcp_ranges(config, "ipv6"):
        yield first, ip_address(min(int(last), int(first) | ((1 << 64) - 1)))


def _search(config: dict[str, str]) -> Iterator[str]:
    """`dns.search` in DHCP and, from the DHCPv6 option, in router advertisements."""
    domains = parse_list(config.get("dns.search"))
    if domains:
        yield f"dhcp-option-force=option:domain-search,{','.join(domains)}"
        yield f"dhcp-option=option6:domain-search,{','.join(domains)}"


# --- static leases and names -------------------------------------------------------------------------------------


def render_static_leases(ports: Iterable[Port], config: dict[str, str]) -> str:
    """One line a port. `id:*`: the MAC address alone says who asks, or else copies of a container that share a machine
    id (systemd-networkd's client id) would be given one address."""
    named = (config.get("dns.mode") or "managed") == "managed"
    return "".join(
        ",".join(
            [
                port.hwaddr,
                "id:*",
                *([port.ipv4_address] if port.ipv4_address else []),
                *([f"[{port.ipv6_address}]"] if port.ipv6_address else []),
                *([port.label] if named and port.label else []),
            ]
        )
        + "\n"
        for port in _sorted(ports)
        if port.hwaddr
    )


def render_names(ports: Iterable[Port], config: dict[str, str]) -> str:
    """Names of static addresses: known before, and whether or not, the instance asks for a lease."""
    if (config.get("dns.mode") or "managed") != "managed":
        return ""
    domain = domain_of(config)
    return "".join(
        f"{address} {port.label}.{domain} {port.label}\n"
        for port in _sorted(ports)
        for address in (port.ipv4_address, port.ipv6_address)
        if address and port.label
    )


def _sorted(ports: Iterable[Port]) -> list[Port]:
    return sorted(ports, key=lambda port: (port.project, port.instance, port.device))


# --- leases ------------------------------------------------------------------------------------------------------


def parse_leases(text: str) -> list[LeaseRow]:
    """The lease file; lines that are not leases (`duid …`) are passed over."""
    return [row for line in text.splitlines() if (row := _parse_lease(line.split())) is not None]


def _parse_lease(words: list[str]) -> LeaseRow | None:
    if len(words) < 5 or not words[0].isdigit():
        return None
    expiry, client, address, hostname, identifier = words[:5]
    return LeaseRow(
        address=address,
        hwaddr=_duid_hwaddr(identifier) if ":" in address else client,
        hostname="" if hostname == "*" else hostname,
        expires=datetime.fromtimestamp(int(expiry), UTC) if expiry != "0" else None,
    )


def _duid_hwaddr(duid: str) -> str:
    """The MAC address in a DUID made from one (RFC 8415 section 11: types 1 and 3)."""
    octets = duid.split(":")
    return ":".join(octets[-6:]) if octets[:2] in (["00", "01"], ["00", "03"]) and len(octets) >= 10 else ""
