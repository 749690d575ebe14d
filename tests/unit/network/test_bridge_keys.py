# SPDX-License-Identifier: Apache-2.0
"""Rows and rules of a bridge's configuration."""

import pytest

from flexd.api.keys import check_config
from flexd.network.bridge_keys import BRIDGE_KEYS, config_faults, interface_name_fault


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("a", "Network interface is too short (minimum 2 characters)"),
        ("a" * 16, "Network interface is too long (maximum 15 characters)"),
        ("a b", "Network interface contains invalid characters"),
        ("../x", "Network interface contains invalid characters"),
        ("-x", "Network interface contains invalid characters"),
        ("lo", 'The network name "lo" is reserved'),
        ("..", 'The network name ".." is reserved'),
        ("all", 'The network name "all" is reserved'),
        ("flexbr0", None),
        ("br-1.2_3", None),
    ],
)
def test_names(name: str, wrong: str | None) -> None:
    assert interface_name_fault(name) == wrong


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ipv4.address", "198.18.0.1"),
        ("ipv4.address", "198.18.0.0/24"),
        ("ipv4.address", "198.18.0.255/24"),
        ("ipv4.address", "fd42::1/64"),
        ("ipv4.address", "x/24"),
        ("ipv6.address", "fd42::/64"),
        ("ipv6.address", "fe80::1%\nx/64"),
        ("ipv4.dhcp", "maybe"),
        ("ipv4.dhcp.expiry", "1h\nuser=root"),
        ("ipv4.dhcp.ranges", "198.18.0.2-198.18.0.9,198.18.0.20"),
        ("ipv4.dhcp.gateway", "fd42::1"),
        ("ipv4.nat.order", "between"),
        ("ipv4.nat.address", "fd42::1"),
        ("ipv4.routes", "198.18.1.1/24"),
        ("ipv6.routes", "198.18.1.0/24"),
        ("bridge.mtu", "20"),
        ("bridge.mtu", "x"),
        ("bridge.hwaddr", "01:00:5e:00:00:01"),
        ("bridge.driver", "openvswitch"),
        ("bridge.external_interfaces", "eth1,a b"),
        ("dns.domain", "a_b"),
        ("dns.domain", "lxd\nuser=root"),
        ("dns.mode", "magic"),
        ("security.acls", "x"),
        ("ipv5.address", "none"),
    ],
)
def test_wrong_values(key: str, value: str) -> None:
    faults = check_config({key: value}, BRIDGE_KEYS)
    assert [fault.path for fault in faults] == [f"config.{key}"]


def test_right_values() -> None:
    config = {
        "ipv4.address": "198.18.0.1/24",
        "ipv4.dhcp.ranges": "198.18.0.2-198.18.0.9, 198.18.0.20-198.18.0.30",
        "ipv4.dhcp.gateway": "none",
        "ipv4.dhcp.expiry": "12h",
        "ipv4.routes": "198.19.0.0/24,198.19.1.0/24",
        "ipv6.address": "auto",
        "ipv6.dhcp.stateful": "true",
        "bridge.hwaddr": "00:16:3E:00:00:01",
        "bridge.mtu": "9000",
        "dns.search": "example.org,lxd",
        "raw.dnsmasq": "log-queries\nno-resolv",
        "user.anything": "x",
    }
    assert check_config(config, BRIDGE_KEYS) == []
    assert config_faults(config) == []


def test_faults_of_several_keys_together_are_all_told() -> None:
    config = {
        "ipv4.address": "198.18.0.1/24",
        "ipv4.dhcp.ranges": "198.18.1.2-198.18.1.9",
        "ipv4.dhcp.gateway": "198.18.2.1",
        "ipv6.address": "fd42::1/64",
        "bridge.mtu": "1000",
    }
    assert [fault.path for fault in config_faults(config)] == [
        "config.ipv4.dhcp.ranges",
        "config.ipv4.dhcp.gateway",
        "config.bridge.mtu",
    ]


def test_every_row_is_described() -> None:
    assert all(key.description for key in BRIDGE_KEYS)
