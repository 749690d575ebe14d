# SPDX-License-Identifier: Apache-2.0
"""rtnetlink messages, made and read without a kernel."""

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.host import netlink
from flexd.host.contract import HostError, LinkAddress, LinkCounters

_ADDRESS = LinkAddress("inet", "198.18.10.1", 24, "global")


def _link(*attributes: bytes, index: int = 7, flags: int = netlink.IFF_UP | netlink.IFF_RUNNING) -> bytes:
    return netlink.IFINFO.pack(0, 1, index, flags, 0) + b"".join(attributes)


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40)))
def test_attributes_come_back(given_attributes: dict[int, bytes]) -> None:
    packed = b"".join(netlink.attribute(kind, value) for kind, value in given_attributes.items())
    assert len(packed) % 4 == 0
    assert netlink.attributes(packed) == given_attributes


@given(st.binary(max_size=200))
def test_no_bytes_are_too_odd(data: bytes) -> None:
    netlink.attributes(data)
    list(netlink.messages(data))


def test_a_veth() -> None:
    info = netlink.nested(netlink.IFLA_LINKINFO, netlink.string(netlink.IFLA_INFO_KIND, "veth"))
    link = netlink.parse_link(
        _link(
            netlink.string(netlink.IFLA_IFNAME, "eth0"),
            netlink.u32(netlink.IFLA_MTU, 1500),
            netlink.u32(netlink.IFLA_LINK, 12),
            netlink.u32(netlink.IFLA_MASTER, 3),
            netlink.attribute(netlink.IFLA_ADDRESS, bytes.fromhex("00163e000001")),
            netlink.attribute(netlink.IFLA_STATS64, struct.pack("=24Q", *range(1, 25))),
            info,
        ),
        {7: [_ADDRESS]},
    )
    assert (link.name, link.index, link.kind, link.mtu, link.peer_index, link.master_index) == (
        "eth0", 7, "veth", 1500, 12, 3,
    )  # fmt: skip
    assert (link.hwaddr, link.up, link.running, link.loopback) == ("00:16:3e:00:00:01", True, True, False)
    assert link.addresses == (_ADDRESS,)
    assert link.counters == LinkCounters(
        packets_received=1, packets_sent=2, bytes_received=3, bytes_sent=4,
        errors_received=5, errors_sent=6, packets_dropped_inbound=7, packets_dropped_outbound=8,
    )  # fmt: skip


def test_the_link_of_a_vlan_is_no_peer() -> None:
    info = netlink.nested(netlink.IFLA_LINKINFO, netlink.string(netlink.IFLA_INFO_KIND, "vlan"))
    assert netlink.parse_link(_link(netlink.u32(netlink.IFLA_LINK, 2), info), {}).peer_index == 0


@pytest.mark.parametrize(
    ("family", "text", "scope", "name"),
    [
        (socket.AF_INET, "198.18.10.1", 0, "global"),
        (socket.AF_INET6, "fe80::1", 253, "link"),
        (socket.AF_INET6, "::1", 254, "local"),
    ],
)
def test_addresses(family: int, text: str, scope: int, name: str) -> None:
    payload = netlink.IFADDR.pack(family, 24, 0, scope, 7)
    payload += netlink.attribute(netlink.IFA_ADDRESS, socket.inet_pton(family, text))
    kind = "inet" if family == socket.AF_INET else "inet6"
    assert netlink.parse_address(payload) == (7, LinkAddress(kind, text, 24, name))


def test_the_own_end_of_a_point_to_point_link() -> None:
    payload = netlink.IFADDR.pack(socket.AF_INET, 32, 0, 0, 7)
    payload += netlink.attribute(netlink.IFA_ADDRESS, socket.inet_aton("198.18.10.2"))
    payload += netlink.attribute(netlink.IFA_LOCAL, socket.inet_aton("198.18.10.1"))
    parsed = netlink.parse_address(payload)
    assert parsed is not None
    assert parsed[1].address == "198.18.10.1"


def _route(length: int, *attributes: bytes, table: int = netlink.RT_TABLE_MAIN, kind: int = 1) -> bytes:
    header = netlink.RTMSG.pack(socket.AF_INET, length, 0, 0, table, 0, 0, kind, 0)
    return header + b"".join(attributes)


def test_routes() -> None:
    gateway = netlink.attribute(5, socket.inet_aton("192.0.2.1"))
    assert netlink.parse_route(_route(0, netlink.u32(4, 2), gateway)) == [("0.0.0.0/0", 2, "192.0.2.1")]
    destination = netlink.attribute(1, socket.inet_aton("198.18.10.0"))
    assert netlink.parse_route(_route(24, destination, netlink.u32(4, 3))) == [("198.18.10.0/24", 3, "")]
    assert netlink.parse_route(_route(24, destination, netlink.u32(4, 3), table=255)) == []
    assert netlink.parse_route(_route(24, destination, netlink.u32(4, 3), kind=6)) == []


def test_a_route_with_several_ways() -> None:
    gateway = netlink.attribute(5, socket.inet_aton("192.0.2.1"))
    ways = struct.pack("=HBBi", 16, 0, 0, 2) + gateway + struct.pack("=HBBi", 8, 0, 0, 3)
    assert netlink.parse_route(_route(0, netlink.attribute(9, ways))) == [
        ("0.0.0.0/0", 2, "192.0.2.1"),
        ("0.0.0.0/0", 3, ""),
    ]


def test_neighbours_that_answered() -> None:
    body = netlink.attribute(1, socket.inet_aton("198.18.10.5")) + netlink.attribute(2, bytes.fromhex("00163e000005"))
    reachable, failed = (netlink.NDMSG.pack(socket.AF_INET, 7, state, 0, 1) + body for state in (0x02, 0x20))
    assert netlink.parse_neighbour(reachable) == (7, "198.18.10.5", "00:16:3e:00:00:05")
    assert netlink.parse_neighbour(failed) is None


def test_errors_tell_the_kernels_words() -> None:
    request = struct.pack("=IHHII", 16, 16, 0, 1, 0)
    words = netlink.string(1, "Invalid MTU")
    with pytest.raises(HostError, match=r"^set x: Invalid argument: Invalid MTU \(rtnetlink EINVAL\)$") as caught:
        netlink.raise_error("set x", struct.pack("=i", -errno.EINVAL) + request + words, 0x300)
    assert caught.value.errno == errno.EINVAL
    netlink.raise_error("set x", struct.pack("=i", 0), 0)


def test_namespace_ids() -> None:
    header = netlink.RTGEN.pack(0)
    assert netlink.parse_namespace_id(header + netlink.s32(netlink.NETNSA_NSID, 4)) == 4
    assert netlink.parse_namespace_id(header + netlink.s32(netlink.NETNSA_NSID, -1)) == -1
    assert netlink.parse_namespace_id(header) == -1
