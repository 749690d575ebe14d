# SPDX-License-Identifier: Apache-2.0
"""Addresses: reading what the configuration writes, and choosing free subnets and addresses. Pure."""

import hashlib
import random
import re
from collections.abc import Collection, Iterable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_interface,
    ip_network,
)

from flexd.api.errors import FlexdError

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

# LXD's choice first; the other private blocks (RFC 1918) for hosts whose routes cover all of 10.0.0.0/8 (VPNs).
_IPV4_POOLS = (IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16"))
# fd42 as LXD; else any unique local prefix (RFC 4193).
_IPV6_POOLS = (IPv6Network("fd42::/16"), IPv6Network("fd00::/8"))
_HWADDR = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


class NoFreeAddress(FlexdError):
    pass


class Range(tuple[Address, Address]):
    """First and last address of a DHCP range, both included."""

    __slots__ = ()

    def __contains__(self, address: object) -> bool:
        first, last = self
        return isinstance(address, type(first)) and int(first) <= int(address) <= int(last)


def parse_address(text: str, version: int) -> Address:
    """An address as it may stand in a file of ours: no zone (`%eth0`), which may hold any character."""
    address = ip_address(text)
    if address.version != version or "%" in text:
        raise ValueError(f'invalid value "{text}" (not an IPv{version} address)')
    return address


def configured(value: str | None) -> bool:
    """Whether an `ipv4.address` or `ipv6.address` says that the family is used."""
    return value not in (None, "", "none")


def interface_of(config: dict[str, str], family: str) -> Interface | None:
    """The bridge's address and subnet in a family ("ipv4", "ipv6"); None if the family is off or still "auto"."""
    value = config.get(f"{family}.address")
    return ip_interface(value) if value not in (None, "", "none", "auto") else None


def parse_list(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def parse_range(text: str, version: int) -> Range:
    """`FIRST-LAST`; ValueError says what is wrong."""
    first_text, dash, last_text = text.partition("-")
    if not dash:
        raise ValueError(f'invalid range "{text}" (expected FIRST-LAST)')
    first, last = parse_address(first_text.strip(), version), parse_address(last_text.strip(), version)
    if int(first) > int(last):
        raise ValueError(f'invalid range "{text}" (its end is before its start)')
    return Range((first, last))


def dhcp_ranges(config: dict[str, str], family: str) -> list[Range]:
    """The ranges that DHCP may give: the configured ones, else the subnet from its second host address on.

    Empty where the subnet has no room. The first host address is the gateway's usual place; LXD skips it, too.
    """
    interface = interface_of(config, family)
    if interface is None:
        return []
    ranges = [parse_range(part, interface.version) for part in parse_list(config.get(f"{family}.dhcp.ranges"))]
    if ranges:
        return ranges
    subnet = interface.network
    spare = 2 if subnet.version == 4 else 1  # IPv4's last address is broadcast
    if subnet.num_addresses < 3 + spare - 1:
        return []
    return [Range((subnet[2], subnet[-spare]))]


# --- choosing subnets --------------------------------------------------------------------------------------------


def choose_ipv4(taken: Iterable[str], rng: random.Random) -> IPv4Interface:
    """A random free /24 of the private blocks, with its first host address."""
    chosen = _choose(_IPV4_POOLS, 24, _networks(taken, 4), rng)
    return IPv4Interface(f"{chosen[1]}/24")


def choose_ipv6(taken: Iterable[str], rng: random.Random) -> IPv6Interface:
    """A random free unique local /64, with its first host address."""
    chosen = _choose(_IPV6_POOLS, 64, _networks(taken, 6), rng)
    return IPv6Interface(f"{chosen[1]}/64")


def _networks(texts: Iterable[str], version: int) -> list[Network]:
    """Networks of one version; default routes clash with nothing."""
    networks = (ip_network(text, strict=False) for text in texts)
    return [network for network in networks if network.version == version and network.prefixlen > 0]


def _choose(pools: Iterable[Network], prefix: int, taken: list[Network], rng: random.Random) -> Network:
    for pool in pools:
        free = _free(pool, prefix, taken)
        if not free:
            continue
        number = rng.randrange(sum(_count(block, prefix) for block in free))
        for block in free:
            if number < _count(block, prefix):
                return type(block)((int(block.network_address) + (number << (block.max_prefixlen - prefix)), prefix))
            number -= _count(block, prefix)
    raise NoFreeAddress(f"Failed choosing a subnet: the host's routes cover every /{prefix} of the private ranges")


def _count(block: Network, prefix: int) -> int:
    return 1 << (prefix - block.prefixlen)


def _free(pool: Network, prefix: int, taken: list[Network]) -> list[Network]:
    """What is left of a pool in blocks that hold at least one subnet of this prefix."""
    inside = [network for network in taken if network.overlaps(pool)]
    coarse = [network if network.prefixlen <= prefix else network.supernet(new_prefix=prefix) for network in inside]
    free: list[Network] = [pool]
    for used in collapse_addresses(coarse):  # type: ignore[type-var]  # one version, filtered above
        free = [rest for block in free for rest in _without(block, used)]
    return sorted(free, key=lambda block: int(block.network_address))


def _without(block: Network, used: Network) -> Iterator[Network]:
    if not block.overlaps(used):
        yield block
    elif block.prefixlen < used.prefixlen:
        yield from block.address_exclude(used)  # type: ignore[arg-type]


# --- choosing addresses ------------------------------------------------------------------------------------------


def hwaddr_valid(text: str) -> bool:
    """A unicast MAC address."""
    return _HWADDR.fullmatch(text) is not None and int(text[:2], 16) & 1 == 0


def random_hwaddr(rng: random.Random) -> str:
    """A MAC address under the prefix that LXD uses (Xensource's 00:16:3e)."""
    return "00:16:3e:" + ":".join(f"{rng.randrange(256):02x}" for _ in range(3))


def eui64(subnet: IPv6Network, hwaddr: str) -> IPv6Address:
    """The address that SLAAC makes of a MAC address (RFC 4291, appendix A)."""
    octets = bytes.fromhex(hwaddr.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(int(subnet.network_address) | int.from_bytes(identifier, "big"))


def choose_host(ranges: list[Range], taken: Collection[Address], seed: str) -> Address:
    """A free address of the ranges; the same seed (a MAC address) finds the same one while it is free."""
    sizes = [int(last) - int(first) + 1 for first, last in ranges]
    total = sum(sizes)
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    for offset in range(min(total, len(taken) + 1)):  # one more than are taken: then one is free, if any is
        address = _nth(ranges, sizes, (start + offset) % total)
        if address not in taken:
            return address
    raise NoFreeAddress("Failed choosing an address: every address of the network's ranges is taken")


def _nth(ranges: list[Range], sizes: list[int], number: int) -> Address:
    for (first, _last), size in zip(ranges, sizes, strict=True):
        if number < size:
            return first + number
        number -= size
    raise AssertionError("unreachable")


def reverse_zones(subnet: Network) -> list[str]:
    """Names below which all PTR records of a subnet lie: one, or none where it ends within a label."""
    bits = 8 if subnet.version == 4 else 4
    if subnet.prefixlen % bits:
        return []
    labels = subnet.network_address.reverse_pointer.split(".")
    return [".".join(labels[(subnet.max_prefixlen - subnet.prefixlen) // bits :])]
