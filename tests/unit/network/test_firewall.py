# SPDX-License-Identifier: Apache-2.0
"""The table's body, line by line, and finding tables that drop what it accepts."""

import json

from flexd.network.firewall import drop_warning, dropping_chains, nat_wanted, render_table, table_name


def test_the_whole_of_it() -> None:
    config = {"ipv4.address": "198.18.5.1/24", "ipv4.nat": "true", "ipv6.address": "none"}
    assert render_table("br", config) == (
        "chain input {\n"
        "\ttype filter hook input priority filter; policy accept;\n"
        '\tiifname "br" meta nfproto ipv4 udp dport 53 accept\n'
        '\tiifname "br" meta nfproto ipv4 tcp dport 53 accept\n'
        '\tiifname != { "lo", "br" } ip daddr 198.18.5.1 udp dport 53 drop\n'
        '\tiifname != { "lo", "br" } ip daddr 198.18.5.1 tcp dport 53 drop\n'
        '\tiifname "br" icmp type { destination-unreachable, time-exceeded, parameter-problem, echo-request } accept\n'
        '\tiifname "br" meta nfproto ipv4 udp dport 67 accept\n'
        "}\n"
        "chain forward {\n"
        "\ttype filter hook forward priority filter; policy accept;\n"
        '\tiifname "br" meta nfproto ipv4 accept\n'
        '\toifname "br" meta nfproto ipv4 accept\n'
        "}\n"
        "chain postrouting {\n"
        "\ttype nat hook postrouting priority srcnat; policy accept;\n"
        "\tip saddr 198.18.5.0/24 ip daddr != 198.18.5.0/24 masquerade\n"
        "}"
    )


def test_nothing_to_say() -> None:
    assert render_table("br", {"ipv4.address": "none"}) == ""
    assert render_table("br", {"ipv4.address": "198.18.5.1/24", "ipv4.firewall": "false"}) == ""


def test_a_network_that_is_not_routed_is_cut_off() -> None:
    body = render_table("br", {"ipv6.address": "fd42::1/64", "ipv6.routing": "false"})
    assert 'iifname "br" oifname != "br" meta nfproto ipv6 reject' in body
    assert 'oifname "br" iifname != "br" meta nfproto ipv6 reject' in body


def test_nat_from_a_chosen_address() -> None:
    config = {"ipv6.address": "fd42::1/64", "ipv6.nat": "true", "ipv6.nat.address": "fd00::9", "ipv6.firewall": "false"}
    assert "\tip6 saddr fd42::/64 ip6 daddr != fd42::/64 snat ip6 to fd00::9\n" in render_table("br", config)
    assert nat_wanted(config) == ["ipv6"]


def chain(**values: str) -> dict[str, dict[str, str]]:
    return {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", **values}}


def test_a_forward_chain_that_drops_is_found() -> None:
    listing = {
        "nftables": [
            {"metainfo": {"version": "1.0.6"}},
            chain(policy="drop"),
            chain(policy="accept", name="other"),
            chain(policy="drop", hook="input"),
            chain(policy="drop", family="inet", table="firewalld", name="filter_FORWARD"),
            chain(policy="drop", table=table_name("br")),
        ]
    }
    assert dropping_chains(json.dumps(listing).encode()) == [
        "ip filter FORWARD",
        "inet firewalld filter_FORWARD",
    ]
    assert dropping_chains(b"") == []


def test_the_warning_says_what_to_do() -> None:
    warning = drop_warning("br", "ip filter FORWARD")
    assert 'nft insert rule ip filter DOCKER-USER iifname "br" accept' in warning
    assert 'nft insert rule inet fw fwd oifname "br" accept' in drop_warning("br", "inet fw fwd")
