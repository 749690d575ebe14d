# SPDX-License-Identifier: Apache-2.0
"""Static addresses and leases of the instances' interfaces."""

import pytest

from flexd.network.contract import Port
from flexd.network.dnsmasq import LeaseRow
from flexd.network.ports import all_leases, choose_addresses, clean, port_faults

CONFIG = {"ipv4.address": "198.18.5.1/24", "ipv6.address": "fd42::1/64", "ipv6.dhcp.stateful": "true"}


def port(name: str = "c1", ipv4: str = "", ipv6: str = "", hwaddr: str = "00:16:3e:00:00:01") -> Port:
    return Port("br", name, "default", "eth0", hwaddr, ipv4, ipv6)


def faults(config: dict[str, str], subject: Port, *others: Port) -> list[str]:
    return [str(fault) for fault in port_faults("br", config, subject, others)]


def test_good_addresses() -> None:
    assert faults(CONFIG, port(ipv4="198.18.5.9", ipv6="fd42::9"), port("c2", "198.18.5.10")) == []


@pytest.mark.parametrize(
    ("config", "subject", "wrong"),
    [
        (CONFIG, port(ipv4="198.18.6.9"), 'not within network "br" subnet'),
        (CONFIG, port(ipv4="198.18.5.1"), 'is the gateway of network "br"'),
        (CONFIG, port(ipv4="198.18.5.10"), 'already defined on another NIC ("c2")'),
        (CONFIG, port(ipv4="fd42::9"), "not an IPv4 address"),
        ({**CONFIG, "ipv4.dhcp": "false"}, port(ipv4="198.18.5.9"), 'DHCP is disabled on network "br"'),
        ({**CONFIG, "ipv4.address": "none"}, port(ipv4="198.18.5.9"), 'DHCP is disabled on network "br"'),
        ({**CONFIG, "ipv6.dhcp.stateful": ""}, port(ipv6="fd42::9"), '"ipv6.dhcp.stateful" are disabled'),
    ],
)
def test_wrong_addresses(config: dict[str, str], subject: Port, wrong: str) -> None:
    found = faults(config, subject, port("c2", "198.18.5.10"))
    assert len(found) == 1
    assert wrong in found[0]
    assert found[0].startswith(("ipv4.address: ", "ipv6.address: "))


def test_chosen_addresses_are_free() -> None:
    config = {**CONFIG, "ipv4.dhcp.ranges": "198.18.5.1-198.18.5.4"}
    leases = [
        LeaseRow("198.18.5.3", "00:16:3e:00:00:99", "x", None),
        LeaseRow("198.18.5.4", "00:16:3e:00:00:01", "", None),
    ]
    chosen = choose_addresses(config, port(), [port("c2", "198.18.5.2")], leases)
    assert chosen.ipv4_address == "198.18.5.4"  # its own lease does not count, gateway and others do
    assert chosen.ipv6_address.startswith("fd42::")


def test_given_addresses_are_kept_and_families_without_leases_left_out() -> None:
    config = {**CONFIG, "ipv6.dhcp.stateful": "false"}
    assert choose_addresses(config, port(ipv4="198.18.5.9"), [], []) == port(ipv4="198.18.5.9")


def test_what_would_be_an_option_to_dnsmasq_is_no_address() -> None:
    ports = [
        port("c1", ipv4="198.18.5.9,set:x", ipv6="fe80::1%\nx"),
        port("c 2"),
        port("c3", hwaddr="x\ny"),
        port("c0", ipv4="198.18.5.7"),
    ]
    assert clean(ports) == [port("c0", ipv4="198.18.5.7"), port("c1")]


def test_leases_of_all_kinds_once_each() -> None:
    config = {**CONFIG, "ipv6.dhcp.stateful": "false"}
    rows = [
        LeaseRow("198.18.5.9", "00:16:3e:00:00:01", "c1", None),
        LeaseRow("198.18.5.77", "00:16:3e:00:00:02", "", None),
    ]
    found = all_leases("br", config, [port(ipv4="198.18.5.9"), port("c2", hwaddr="00:16:3e:00:00:02")], rows)
    assert [(lease.type, lease.address, lease.hostname) for lease in found] == [
        ("gateway", "198.18.5.1", "br.gw"),
        ("gateway", "fd42::1", "br.gw"),
        ("static", "198.18.5.9", "c1"),
        ("dynamic", "fd42::216:3eff:fe00:1", "c1"),
        ("dynamic", "fd42::216:3eff:fe00:2", "c2"),
        ("dynamic", "198.18.5.77", "c2"),
    ]
