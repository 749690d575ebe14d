# SPDX-License-Identifier: Apache-2.0
"""The nftables table of a bridge (rendering), and other tables that stand in its way (reading). Pure.

A table of our own per network, replaced whole: an accept in it does not overrule a drop in somebody else's table
(nft(8): a packet must be accepted by every base chain), so the latter is only found and reported.
"""

import json
from collections.abc import Iterator

from flexd.api.units import is_true
from flexd.network.addresses import configured, interface_of

FAMILY = "inet"
_FAMILIES = (("ipv4", "ip"), ("ipv6", "ip6"))
# ICMP that a gateway must hear: errors (path MTU among them) and echo; for IPv6 also neighbours and routers (RFC 4890).
_ICMP_IN = "destination-unreachable, time-exceeded, parameter-problem, echo-request"
_ICMPV6_IN = (
    "destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, nd-router-solicit, "
    "nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld2-listener-report"
)


def table_name(bridge: str) -> str:
    """Bridges are unique in a network namespace, and so are tables: two daemons can't meet in one."""
    return f"flexd_{bridge}"


def on(config: dict[str, str], key: str) -> bool:
    """A boolean that is true unless it is said to be false."""
    return is_true(config.get(key) or "true")


def nat_wanted(config: dict[str, str]) -> list[str]:
    """The families that ask for NAT."""
    return [family for family, _ in _FAMILIES if interface_of(config, family) and is_true(config.get(f"{family}.nat"))]


def render_table(bridge: str, config: dict[str, str]) -> str:
    """What stands between the table's braces; "" if this network needs no rules."""
    chains = (
        ("input", "filter", "filter", list(_input_rules(bridge, config))),
        ("forward", "filter", "filter", list(_forward_rules(bridge, config))),
        ("postrouting", "nat", "srcnat", list(_nat_rules(config))),
    )
    return "\n".join(_chain(*chain) for chain in chains if chain[3])


def _chain(hook: str, kind: str, priority: str, rules: list[str]) -> str:
    lines = [f"type {kind} hook {hook} priority {priority}; policy accept;", *rules]
    return f"chain {hook} {{\n" + "".join(f"\t{line}\n" for line in lines) + "}"


def _input_rules(bridge: str, config: dict[str, str]) -> Iterator[str]:
    """DNS, DHCP and ICMP from the network's instances to its gateway; DNS for nobody outside this host."""
    families = [family for family, _ in _FAMILIES if interface_of(config, family) and on(config, f"{family}.firewall")]
    for family, word in _FAMILIES:
        interface = interface_of(config, family)
        if family in families and interface is not None:
            yield from (f'iifname "{bridge}" meta nfproto {family} {proto} dport 53 accept' for proto in ("udp", "tcp"))
            # dnsmasq binds the address, not the interface: neighbours of the host could send their queries there.
            outside = f'iifname != {{ "lo", "{bridge}" }} {word} daddr {interface.ip}'
            yield from (f"{outside} {proto} dport 53 drop" for proto in ("udp", "tcp"))
    if "ipv4" in families:
        yield f'iifname "{bridge}" icmp type {{ {_ICMP_IN} }} accept'
        if on(config, "ipv4.dhcp"):
            yield f'iifname "{bridge}" meta nfproto ipv4 udp dport 67 accept'
    if "ipv6" in families:
        yield f'iifname "{bridge}" icmpv6 type {{ {_ICMPV6_IN} }} accept'
        if on(config, "ipv6.dhcp"):
            yield f'iifname "{bridge}" meta nfproto ipv6 udp dport 547 accept'


def _forward_rules(bridge: str, config: dict[str, str]) -> Iterator[str]:
    for family, _ in _FAMILIES:
        if not configured(config.get(f"{family}.address")) or not on(config, f"{family}.firewall"):
            continue
        if on(config, f"{family}.routing"):
            yield from (f'{side} "{bridge}" meta nfproto {family} accept' for side in ("iifname", "oifname"))
        else:  # between two instances nothing is routed, so only what leaves or enters the network is refused
            yield f'iifname "{bridge}" oifname != "{bridge}" meta nfproto {family} reject'
            yield f'oifname "{bridge}" iifname != "{bridge}" meta nfproto {family} reject'


def _nat_rules(config: dict[str, str]) -> Iterator[str]:
    wanted = nat_wanted(config)
    for family, word in _FAMILIES:
        interface = interface_of(config, family)
        if family not in wanted or interface is None:
            continue
        source = config.get(f"{family}.nat.address")
        action = f"snat {word} to {source}" if source else "masquerade"
        yield f"{word} saddr {interface.network} {word} daddr != {interface.network} {action}"


# --- others' tables ----------------------------------------------------------------------------------------------


def dropping_chains(listing: bytes) -> list[str]:
    """`family table chain` of each base chain that drops forwarded packets by default, out of `nft -j list chains`."""
    objects = json.loads(listing or b"{}").get("nftables", [])
    chains = [item["chain"] for item in objects if "chain" in item]
    return [
        f"{chain['family']} {chain['table']} {chain['name']}"
        for chain in chains
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and not chain["table"].startswith("flexd_")
    ]


def drop_warning(bridge: str, chain: str) -> str:
    """What a person can do about such a chain. Docker jumps to DOCKER-USER first, and keeps it when it starts again."""
    place = "ip filter DOCKER-USER" if chain == "ip filter FORWARD" else chain
    rules = "; ".join(f'nft insert rule {place} {side} "{bridge}" accept' for side in ("iifname", "oifname"))
    return (
        f'Traffic of network "{bridge}" may not be forwarded: '
        f'the nftables chain "{chain}" drops by default. If so, allow it: {rules}'
    )
