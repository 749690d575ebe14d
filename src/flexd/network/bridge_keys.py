# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of a managed bridge, and the faults that only several keys together have. Pure."""

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface, ip_network

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.network.addresses import (
    dhcp_ranges,
    hwaddr_valid,
    interface_of,
    parse_address,
    parse_list,
    parse_range,
)

# IPv4's least (RFC 791) and what the kernel takes at most; IPv6's least (RFC 8200).
_MIN_MTU, MAX_MTU, _MIN_MTU_IPV6 = 68, 65535, 1280
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
# dnsmasq(8), --dhcp-range: seconds, or a number with m, h, d or w; at least two minutes.
_EXPIRY = re.compile(r"[1-9][0-9]*[smhdw]?|infinite")
_INTERFACE = re.compile(r"[-_a-zA-Z0-9.]+")
# Names that mean something else: to sysctl, to the kernel's folders, to people.
_RESERVED = ("all", "default", "lo", ".", "..")

Check = Callable[[str], str | None]


def interface_name_fault(name: str) -> str | None:
    """LXD's rules for the name of a bridge, and its words."""
    if len(name) < 2:
        return "Network interface is too short (minimum 2 characters)"
    if len(name) > 15:
        return "Network interface is too long (maximum 15 characters)"
    if _INTERFACE.fullmatch(name) is None or name.startswith("-"):
        return "Network interface contains invalid characters"
    return f'The network name "{name}" is reserved' if name in _RESERVED else None


def _tries(check: Callable[[str], object]) -> Check:
    """A check that raises ValueError, as one that returns what is wrong."""

    def wrong(value: str) -> str | None:
        try:
            check(value)
        except ValueError as error:
            return str(error)
        return None

    return wrong


def _each(check: Check) -> Check:
    """Check every item of a comma-separated list."""
    return lambda value: next((wrong for item in parse_list(value) if (wrong := check(item)) is not None), None)


def _bridge_address(version: int) -> Check:
    def check(value: str) -> None:
        if value in ("auto", "none"):
            return
        if "/" not in value:
            raise ValueError(f'invalid value "{value}" (expected an address with its prefix length, auto or none)')
        interface = ip_interface(value)
        if interface.version != version or "%" in value:
            raise ValueError(f'invalid value "{value}" (not an IPv{version} address)')
        subnet = interface.network
        ends = [subnet.network_address, *([subnet.broadcast_address] if version == 4 else [])]
        if interface.ip in ends and subnet.num_addresses > 2:
            raise ValueError(f'invalid value "{value}" (not a usable address of {subnet})')

    return _tries(check)


def _address(version: int) -> Check:
    return _tries(lambda value: parse_address(value, version))


def _subnet(version: int) -> Check:
    def check(value: str) -> None:
        if ip_network(value).version != version or "%" in value:
            raise ValueError(f'invalid value "{value}" (not an IPv{version} subnet)')

    return _tries(check)


def _domain(value: str) -> str | None:
    return None if DOMAIN.fullmatch(value) else f'invalid domain name "{value}"'


def _expiry(value: str) -> str | None:
    return None if _EXPIRY.fullmatch(value) else f'invalid value "{value}" (expected a time such as 1h, or infinite)'


def _mtu(value: str) -> str | None:
    in_range = _MIN_MTU <= int(value) <= MAX_MTU
    return None if in_range else f'invalid value "{value}" (expected {_MIN_MTU} to {MAX_MTU})'


def _hwaddr(value: str) -> str | None:
    return None if hwaddr_valid(value) else f'invalid MAC address "{value}"'


def _gateway(value: str) -> str | None:
    return None if value == "none" else _address(4)(value)


def _family_keys(family: str, version: int) -> Iterator[Key]:
    name = f"IPv{version}"
    yield Key(
        f"{family}.address",
        description=f"{name} address of the bridge with its prefix length, `none`, or `auto` for a free random subnet",
        check=_bridge_address(version),
    )
    yield Key(f"{family}.dhcp", "bool", "true", f"Whether instances get their {name} configuration over DHCP")
    yield Key(f"{family}.dhcp.expiry", "string", "1h", "When DHCP leases end", check=_expiry)
    yield Key(
        f"{family}.dhcp.ranges",
        description="Comma-separated ranges that DHCP gives addresses from (FIRST-LAST); default: the whole subnet",
        check=_each(_tries(lambda item: parse_range(item, version))),
    )
    yield Key(f"{family}.firewall", "bool", "true", "Whether to add filter rules for this network to the firewall")
    yield Key(f"{family}.nat", "bool", "false", "Whether to hide the subnet behind the host; true for an `auto` subnet")
    yield Key(
        f"{family}.nat.address",
        description="Source address of what leaves the network; default: that of the outgoing interface",
        check=_address(version),
    )
    yield Key(
        f"{family}.nat.order",
        default="before",
        description="Order of the NAT rules among others; without effect, as in LXD, where nftables keeps tables apart",
        choices=("before", "after"),
    )
    yield Key(
        f"{family}.routes",
        description="Comma-separated subnets that the host routes to the bridge besides its own",
        check=_each(_subnet(version)),
    )
    yield Key(f"{family}.routing", "bool", "true", "Whether traffic is routed in and out of the network")


BRIDGE_KEYS: tuple[Key, ...] = (
    Key("bridge.driver", default="native", description="Kind of bridge", choices=("native",)),
    Key(
        "bridge.external_interfaces",
        description="Comma-separated interfaces of the host, without addresses, to plug into the bridge",
        check=_each(interface_name_fault),
    ),
    Key("bridge.hwaddr", description="MAC address of the bridge; default: a random one that is kept", check=_hwaddr),
    Key("bridge.mtu", "integer", "1500", "MTU of the bridge", check=_mtu),
    Key("dns.domain", default="lxd", description="Domain of the instances' names", check=_domain),
    Key(
        "dns.mode",
        default="managed",
        description="Which names DNS knows: the instances' (`managed`), what they call themselves (`dynamic`), `none`",
        choices=("managed", "dynamic", "none"),
    ),
    Key(
        "dns.search",
        description="Comma-separated domains for instances to search; default: `dns.domain`",
        check=_each(_domain),
    ),
    *_family_keys("ipv4", 4),
    Key(
        "ipv4.dhcp.gateway",
        description="Gateway that DHCP tells; `none` for no gateway; default: the bridge's address",
        check=_gateway,
    ),
    *_family_keys("ipv6", 6),
    Key("ipv6.dhcp.stateful", "bool", "false", "Whether DHCPv6 gives out addresses, in place of SLAAC"),
    Key("raw.dnsmasq", description="Lines to append to the configuration of dnsmasq"),
    Key("user.*", description="Free keys for people and programs"),
)


def config_faults(config: dict[str, str]) -> list[Fault]:
    """What the rows can't see. Called when they have found nothing."""
    faults = [fault for family in ("ipv4", "ipv6") for fault in _family_faults(config, family)]
    mtu = int(config.get("bridge.mtu") or 1500)
    if interface_of(config, "ipv6") is not None and mtu < _MIN_MTU_IPV6:
        faults.append(Fault("config.bridge.mtu", f"IPv6 needs an MTU of {_MIN_MTU_IPV6} at least"))
    return faults


def _family_faults(config: dict[str, str], family: str) -> Iterator[Fault]:
    interface = interface_of(config, family)
    if interface is None:
        return
    path = f"config.{family}.dhcp.ranges"
    for first, last in dhcp_ranges(config, family):
        if first not in interface.network or last not in interface.network:
            yield Fault(path, f'the range "{first}-{last}" is not within the subnet {interface.network}')
    gateway = config.get(f"{family}.dhcp.gateway")
    if gateway and gateway != "none" and ip_address(gateway) not in interface.network:
        yield Fault(f"config.{family}.dhcp.gateway", f'"{gateway}" is not within the subnet {interface.network}')
