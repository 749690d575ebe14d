# SPDX-License-Identifier: Apache-2.0
"""The rules in front of a filtered port; that the kernel takes them is tested with real containers."""

import pytest

from flexd.devices.spoofing import Guard, render

MAC = "00:16:3e:01:02:03"


def test_only_the_mac_address() -> None:
    rules = render(Guard("veth1", MAC))
    assert f"ether saddr != {MAC} drop" in rules
    assert f"arp saddr ether != {MAC} drop" in rules
    assert 'iifname "veth1" jump spoof' in rules
    assert "ip saddr" not in rules
    assert "ip6" not in rules


def test_one_ipv4_address() -> None:
    rules = render(Guard("veth1", MAC, ipv4=("198.18.40.5",)))
    assert "arp saddr ip != { 0.0.0.0, 198.18.40.5 } drop" in rules
    assert "udp sport 68 udp dport 67 accept" in rules
    assert rules.index("udp dport 67 accept") < rules.index("ip saddr != { 198.18.40.5 } drop")


def test_ipv6_addresses_and_the_link_local_one() -> None:
    rules = render(Guard("veth1", MAC, ipv6=("fd42::5", "fd43::/64")))
    assert "ip6 saddr != { ::, fd42::5, fd43::/64, fe80::216:3eff:fe01:203 } drop" in rules
    assert "@nh,384,128 0xfd420000000000000000000000000005 accept" in rules
    assert "@nh,384,128 0xfd43" not in rules  # a subnet is nobody's address
    assert "icmpv6 type nd-router-advert drop" in rules


@pytest.mark.parametrize(
    ("guard", "rule"),
    [
        (Guard("veth1", MAC, ipv4=()), "ether type { arp, ip } drop"),
        (Guard("veth1", MAC, ipv6=()), "ether type ip6 drop"),
        (Guard("veth1", MAC, ipv4=("198.18.40.5",), ipv6=()), "ether type != { arp, ip, ip6 } drop"),
    ],
)
def test_nothing_of_a_family(guard: Guard, rule: str) -> None:
    assert rule in render(guard)
