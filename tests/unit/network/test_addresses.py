# SPDX-License-Identifier: Apache-2.0
"""Choosing and reading addresses."""

import random
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.network.addresses import (
    NoFreeAddress,
    Range,
    choose_host,
    choose_ipv4,
    choose_ipv6,
    dhcp_ranges,
    eui64,
    hwaddr_valid,
    interface_of,
    parse_address,
    parse_range,
    random_hwaddr,
    reverse_zones,
)

ipv4_networks = st.builds(
    lambda number, prefix: str(ip_network((number >> (32 - prefix) << (32 - prefix), prefix))),
    st.integers(0x0A000000, 0x0AFFFFFF),
    st.integers(9, 32),
)


@given(st.lists(ipv4_networks, max_size=30), st.integers())
def test_an_ipv4_choice_is_a_private_24_that_touches_nothing_taken(taken: list[str], seed: int) -> None:
    chosen = choose_ipv4(taken, random.Random(seed))
    assert chosen.network.prefixlen == 24
    assert chosen.network.is_private
    assert chosen.ip == chosen.network[1]
    assert not any(chosen.network.overlaps(IPv4Network(network)) for network in taken)


@given(st.integers())
def test_an_ipv6_choice_is_an_fd42_64(seed: int) -> None:
    chosen = choose_ipv6(["fd42:1::/32", "10.0.0.0/8", "::/0"], random.Random(seed))
    assert chosen.network.prefixlen == 64
    assert chosen.network.subnet_of(IPv6Network("fd42::/16"))
    assert not chosen.network.overlaps(IPv6Network("fd42:1::/32"))
    assert chosen.ip == chosen.network[1]


def test_default_routes_are_in_nobodys_way() -> None:
    assert choose_ipv4(["0.0.0.0/0", "::/0"], random.Random(1)).network.subnet_of(IPv4Network("10.0.0.0/8"))


def test_a_vpn_over_all_of_10_leaves_the_other_private_blocks() -> None:
    assert choose_ipv4(["10.0.0.0/8"], random.Random(1)).network.subnet_of(IPv4Network("172.16.0.0/12"))
    assert choose_ipv6(["fd42::/16"], random.Random(1)).network.subnet_of(IPv6Network("fd00::/8"))


def test_the_last_free_subnet_is_found() -> None:
    free = IPv4Network("10.7.9.0/24")
    taken = [str(network) for network in IPv4Network("10.0.0.0/8").address_exclude(free)]
    assert choose_ipv4([*taken, "172.16.0.0/12", "192.168.0.0/16"], random.Random(3)).network == free


def test_no_free_subnet_is_an_error() -> None:
    with pytest.raises(NoFreeAddress, match="every /24 of the private ranges"):
        choose_ipv4(["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], random.Random(1))


@pytest.mark.parametrize("value", [None, "", "none", "auto"])
def test_no_interface_without_an_address(value: str | None) -> None:
    assert interface_of({} if value is None else {"ipv4.address": value}, "ipv4") is None


def test_default_ranges_leave_out_gateway_and_broadcast() -> None:
    assert dhcp_ranges({"ipv4.address": "198.18.0.1/24"}, "ipv4") == [parse_range("198.18.0.2-198.18.0.254", 4)]
    assert dhcp_ranges({"ipv6.address": "fd42::1/64"}, "ipv6") == [parse_range("fd42::2-fd42::ffff:ffff:ffff:ffff", 6)]


def test_a_subnet_without_room_has_no_ranges() -> None:
    assert dhcp_ranges({"ipv4.address": "198.18.0.0/31"}, "ipv4") == []
    assert dhcp_ranges({"ipv4.address": "198.18.0.1/32"}, "ipv4") == []
    assert dhcp_ranges({"ipv4.address": "none"}, "ipv4") == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("198.18.0.2", "FIRST-LAST"),
        ("198.18.0.9-198.18.0.2", "its end is before its start"),
        ("fd42::2-fd42::9", "not an IPv4 address"),
        ("a-b", "does not appear"),
    ],
)
def test_wrong_ranges_say_what_is_wrong(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse_range(text, 4)


def test_a_zone_is_no_part_of_an_address() -> None:
    with pytest.raises(ValueError, match="not an IPv6 address"):
        parse_address("fe80::1%\nuser=root", 6)


def test_a_range_holds_its_ends_and_no_other_family() -> None:
    addresses = parse_range("198.18.0.2-198.18.0.5", 4)
    assert ip_address("198.18.0.2") in addresses
    assert ip_address("198.18.0.5") in addresses
    assert ip_address("198.18.0.6") not in addresses
    assert ip_address("::198.18.0.3") not in addresses


@given(st.sets(st.integers(2, 20), max_size=18), st.text(max_size=20))
def test_a_chosen_host_is_free_and_in_range(taken: set[int], seed: str) -> None:
    ranges = [Range((IPv4Address("198.18.0.2"), IPv4Address("198.18.0.11"))), parse_range("198.18.0.12-198.18.0.20", 4)]
    used = {IPv4Address("198.18.0.0") + number for number in taken}
    chosen = choose_host(ranges, used, seed)
    assert chosen not in used
    assert any(chosen in addresses for addresses in ranges)
    assert chosen == choose_host(ranges, used, seed)


def test_a_full_range_is_an_error() -> None:
    used = {IPv4Address("198.18.0.2"), IPv4Address("198.18.0.3")}
    with pytest.raises(NoFreeAddress, match="every address"):
        choose_host([parse_range("198.18.0.2-198.18.0.3", 4)], used, "x")


def test_eui64_as_in_rfc_4291() -> None:
    assert str(eui64(IPv6Network("fd42::/64"), "34:56:78:9a:bc:de")) == "fd42::3656:78ff:fe9a:bcde"


def test_hwaddrs() -> None:
    assert hwaddr_valid(random_hwaddr(random.Random(1)))
    assert not hwaddr_valid("01:00:5e:00:00:01")
    assert not hwaddr_valid("00:16:3e:00:00")


@pytest.mark.parametrize(
    ("subnet", "zones"),
    [
        ("198.18.5.0/24", ["5.18.198.in-addr.arpa"]),
        ("10.0.0.0/8", ["10.in-addr.arpa"]),
        ("198.18.4.0/22", []),
        ("fd42:1:2:3::/64", ["3.0.0.0.2.0.0.0.1.0.0.0.2.4.d.f.ip6.arpa"]),
        ("fd42::/63", []),
    ],
)
def test_reverse_zones(subnet: str, zones: list[str]) -> None:
    assert reverse_zones(ip_network(subnet)) == zones
