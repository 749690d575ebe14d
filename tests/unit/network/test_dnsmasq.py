# SPDX-License-Identifier: Apache-2.0
"""What dnsmasq is told, line by line, and what its lease file says."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from flexd.network.contract import Port
from flexd.network.dnsmasq import (
    DnsmasqFiles,
    LeaseRow,
    parse_leases,
    render_config,
    render_names,
    render_static_leases,
)

FILES = DnsmasqFiles(Path("/n/br"))
BOTH = {"ipv4.address": "198.18.5.1/24", "ipv6.address": "fd42:1:2:3::1/64"}


def config(values: dict[str, str], mtu: int = 1500) -> str:
    return render_config("br", values, FILES, user="dnsmasq", group="nogroup", mtu=mtu)


def lines(values: dict[str, str], word: str, mtu: int = 1500) -> list[str]:
    return [line for line in config(values, mtu).splitlines() if line.startswith(word)]


def test_the_whole_of_it() -> None:
    assert config(BOTH) == (
        "user=dnsmasq\n"
        "group=nogroup\n"
        "pid-file=/n/br/dnsmasq.pid\n"
        "log-facility=/n/br/dnsmasq.log\n"
        "interface=br\n"
        "except-interface=lo\n"
        "bind-interfaces\n"
        "no-hosts\n"
        "dhcp-ignore-names\n"
        "domain=lxd\n"
        "addn-hosts=/n/br/dnsmasq.hosts\n"
        "interface-name=_gateway.lxd,br\n"
        "local=/lxd/\n"
        "local=/5.18.198.in-addr.arpa/\n"
        "local=/3.0.0.0.2.0.0.0.1.0.0.0.2.4.d.f.ip6.arpa/\n"
        "dhcp-authoritative\n"
        "no-ping\n"
        "dhcp-rapid-commit\n"
        "dhcp-leasefile=/n/br/dnsmasq.leases\n"
        "dhcp-hostsfile=/n/br/dnsmasq.dhcp-hosts\n"
        "dhcp-lease-max=65536\n"
        "quiet-dhcp\n"
        "quiet-dhcp6\n"
        "quiet-ra\n"
        "dhcp-range=198.18.5.2,198.18.5.254,255.255.255.0,1h\n"
        "enable-ra\n"
        "dhcp-range=fd42:1:2:3::,ra-stateless,ra-names,64,1h\n"
        "dhcp-option=option6:dns-server,[fd42:1:2:3::1]\n"
    )


def test_no_address_no_dnsmasq() -> None:
    assert config({"ipv4.address": "none", "raw.dnsmasq": "log-queries"}) == ""


@pytest.mark.parametrize(
    ("values", "ranges"),
    [
        ({"ipv4.dhcp": "false"}, []),
        ({"ipv4.dhcp.expiry": "infinite"}, ["dhcp-range=198.18.5.2,198.18.5.254,255.255.255.0,infinite"]),
        (
            {"ipv4.dhcp.ranges": "198.18.5.9-198.18.5.10, 198.18.5.20-198.18.5.30"},
            [
                "dhcp-range=198.18.5.9,198.18.5.10,255.255.255.0,1h",
                "dhcp-range=198.18.5.20,198.18.5.30,255.255.255.0,1h",
            ],
        ),
    ],
)
def test_ranges(values: dict[str, str], ranges: list[str]) -> None:
    assert lines({"ipv4.address": "198.18.5.1/24", **values}, "dhcp-range") == ranges


@pytest.mark.parametrize(
    ("values", "ranges"),
    [
        ({"ipv6.dhcp": "false"}, ["dhcp-range=fd42:1:2:3::,ra-only,64,1h"]),
        ({"ipv6.dhcp.stateful": "true"}, ["dhcp-range=fd42:1:2:3::2,fd42:1:2:3:ffff:ffff:ffff:ffff,64,1h"]),
        ({"ipv6.dhcp.stateful": "true", "ipv6.dhcp": "false"}, ["dhcp-range=fd42:1:2:3::,ra-only,64,1h"]),
        (
            {"ipv6.dhcp.stateful": "true", "ipv6.address": "fd42::1/112"},
            ["dhcp-range=fd42::2,fd42::ffff,112,1h"],
        ),
        ({"ipv6.address": "fd42::1/112"}, []),
        ({"ipv6.address": "fd42:1::1/48"}, ["dhcp-range=fd42:1::,ra-stateless,ra-names,64,1h"]),
        (
            {"ipv6.address": "fd42:1::1/48", "ipv6.dhcp.stateful": "true"},
            ["dhcp-range=fd42:1::2,fd42:1::ffff:ffff:ffff:ffff,64,1h"],
        ),
    ],
)
def test_ranges_of_ipv6(values: dict[str, str], ranges: list[str]) -> None:
    assert lines({"ipv6.address": "fd42:1:2:3::1/64", **values}, "dhcp-range") == ranges


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({"ipv4.dhcp.gateway": "198.18.5.9"}, ["dhcp-option-force=option:router,198.18.5.9"]),
        ({"ipv4.dhcp.gateway": "none"}, ["dhcp-option-force=option:router"]),
        (
            {"dns.search": "a.example, b.example"},
            [
                "dhcp-option-force=option:domain-search,a.example,b.example",
                "dhcp-option=option6:domain-search,a.example,b.example",
            ],
        ),
    ],
)
def test_options(values: dict[str, str], options: list[str]) -> None:
    assert lines({"ipv4.address": "198.18.5.1/24", **values}, "dhcp-option") == options


def test_only_an_unusual_mtu_is_told() -> None:
    assert lines({"ipv4.address": "198.18.5.1/24"}, "dhcp-option-force", mtu=1400) == [
        "dhcp-option-force=option:mtu,1400"
    ]


def test_dns_modes() -> None:
    dynamic, none = config({**BOTH, "dns.mode": "dynamic"}), config({**BOTH, "dns.mode": "none"})
    assert "dhcp-ignore-names" not in dynamic
    assert "domain=lxd" in dynamic
    assert "dhcp-ignore-names" in none
    assert "domain=" not in none


def test_raw_lines_come_last() -> None:
    assert config({**BOTH, "raw.dnsmasq": "log-queries\nno-resolv\n"}).endswith("\nlog-queries\nno-resolv\n")


PORTS = [
    Port("br", "web", "default", "eth0", "00:16:3e:00:00:02", "198.18.5.20", "fd42:1:2:3::20"),
    Port("br", "db", "default", "eth0", "00:16:3e:00:00:01"),
    Port("br", "nomac", "default", "eth0", ""),
]


def test_static_leases() -> None:
    assert render_static_leases(PORTS, {}) == (
        "00:16:3e:00:00:01,id:*,db\n00:16:3e:00:00:02,id:*,198.18.5.20,[fd42:1:2:3::20],web\n"
    )
    assert render_static_leases(PORTS[1:2], {"dns.mode": "dynamic"}) == "00:16:3e:00:00:01,id:*\n"


def test_names() -> None:
    assert render_names(PORTS, {"dns.domain": "example.org"}) == (
        "198.18.5.20 web.example.org web\nfd42:1:2:3::20 web.example.org web\n"
    )
    assert render_names(PORTS, {"dns.mode": "none"}) == ""


def test_leases() -> None:
    text = (
        "1700003600 00:16:3e:00:00:01 198.18.5.7 db 01:00:16:3e:00:00:01\n"
        "0 00:16:3e:00:00:02 198.18.5.8 * *\n"
        "duid 00:01:00:01:2d:8f:9c:1a:00:16:3e:aa:bb:cc\n"
        "1700003600 12345 fd42::5 db 00:01:00:01:2d:00:00:00:00:16:3e:00:00:01\n"
        "1700003600 12346 fd42::6 * 00:02:00:00:ab:11:01:02:03:04:05:06:07:08\n"
        "broken\n"
    )
    expires = datetime.fromtimestamp(1700003600, UTC)
    assert parse_leases(text) == [
        LeaseRow("198.18.5.7", "00:16:3e:00:00:01", "db", expires),
        LeaseRow("198.18.5.8", "00:16:3e:00:00:02", "", None),
        LeaseRow("fd42::5", "00:16:3e:00:00:01", "db", expires),
        LeaseRow("fd42::6", "", "", expires),
    ]
