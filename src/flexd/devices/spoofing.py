# SPDX-License-Identifier: Apache-2.0
"""`security.mac_filtering`, `ipv4_filtering`, `ipv6_filtering`: an nftables table in front of a port. Pure.

In the bridge family, which sees frames as they leave the instance; `drop` everywhere, as not every kernel can reject
there."""

import ipaddress
from collections.abc import Iterator, Sequence

from msgspec import Struct

from flexd.network.addresses import eui64

# What an interface takes by itself (RFC 4291, 2.5.6).
_LINK_LOCAL = ipaddress.IPv6Network("fe80::/64")


class Guard(Struct, frozen=True):
    """What may come from a port. `ipv4`/`ipv6` None: not filtered; empty: nothing of that family."""

    link: str
    hwaddr: str
    ipv4: tuple[str, ...] | None = None
    ipv6: tuple[str, ...] | None = None


def render(guard: Guard) -> str:
    """What stands between the table's braces."""
    rules = [*_mac(guard), *_ipv4(guard), *_ipv6(guard)]
    if guard.ipv4 is not None and guard.ipv6 is not None:
        rules.append("ether type != { arp, ip, ip6 } drop")
    chains = [f"chain spoof {{\n{_lines(rules)}}}"]
    for hook in ("input", "forward"):
        # Before whatever else is in the bridge family (priority filter is -200 there).
        head = f"type filter hook {hook} priority -210; policy accept;"
        chains.append(f'chain {hook} {{\n\t{head}\n\tiifname "{guard.link}" jump spoof\n}}')
    return "\n".join(chains)


def _lines(rules: Sequence[str]) -> str:
    return "".join(f"\t{rule}\n" for rule in rules)


def _mac(guard: Guard) -> Iterator[str]:
    yield f"ether saddr != {guard.hwaddr} drop"
    yield f"arp saddr ether != {guard.hwaddr} drop"


def _ipv4(guard: Guard) -> Iterator[str]:
    if guard.ipv4 is None:
        return
    if not guard.ipv4:
        yield "ether type { arp, ip } drop"
        return
    addresses = ", ".join(guard.ipv4)
    yield f"arp saddr ip != {{ 0.0.0.0, {addresses} }} drop"
    yield "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept"
    yield f"ip saddr != {{ {addresses} }} drop"


def _ipv6(guard: Guard) -> Iterator[str]:
    if guard.ipv6 is None:
        return
    if not guard.ipv6:
        yield "ether type ip6 drop"
        return
    own = [*guard.ipv6, str(eui64(_LINK_LOCAL, guard.hwaddr))]
    yield "icmpv6 type nd-router-advert drop"
    for address in (each for each in own if "/" not in each):
        # The target of an advertisement, behind the header's 40 bytes and 8 of ICMPv6 (RFC 4861, 4.4).
        number = int(ipaddress.IPv6Address(address))
        yield f"icmpv6 type nd-neighbor-advert @nh,384,128 {number:#034x} accept"
    yield "icmpv6 type nd-neighbor-advert drop"
    yield f"ip6 saddr != {{ ::, {', '.join(own)} }} drop"
