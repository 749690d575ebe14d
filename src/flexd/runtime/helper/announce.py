# SPDX-License-Identifier: Apache-2.0
"""Telling a network where a container now is: gratuitous ARP (RFC 5227, 3) and unsolicited neighbour advertisements
(RFC 4861, 7.2.6), from inside its network namespace, so that bridges on the way learn the new port, too."""

import ctypes
import fcntl
import os
import socket
import struct

from flexd.runtime.helper import wire

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNET = 0x40000000
_SIOCGIFADDR, _SIOCGIFHWADDR = 0x8915, 0x8927
_ETHERNET = 1  # ARPHRD_ETHER
_BROADCAST = b"\xff" * 6
_ALL_NODES = "ff02::1"
_NEIGHBOUR_ADVERTISEMENT, _OVERRIDE, _TARGET_LINK_ADDRESS = 136, 0x20000000, 2
_LINK_LOCAL = 0x20  # in /proc/net/if_inet6


def serve(connection: socket.socket) -> None:
    """Answers {} when everything has been said."""
    request = wire.receive(connection)
    fd = os.open(f"/proc/{request['init']}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if _libc.setns(fd, _CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "enter the network namespace")
    addresses6 = _addresses6(request["init"])
    for index, name in socket.if_nameindex():
        hwaddr = _hwaddr(name)
        if hwaddr is None:
            continue
        address = _address4(name)
        if address is not None:
            _say_arp(name, hwaddr, address)
        for address6 in addresses6.get(name, ()):
            _say_neighbour(index, hwaddr, address6)
    wire.send(connection, {})


def _ask(name: str, request: int) -> bytes | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            return fcntl.ioctl(asking, request, struct.pack("16s24x", name.encode()))
        except OSError:  # it has none
            return None


def _hwaddr(name: str) -> bytes | None:
    answer = _ask(name, _SIOCGIFHWADDR)
    if answer is None or struct.unpack_from("H", answer, 16)[0] != _ETHERNET:
        return None
    return answer[18:24]


def _address4(name: str) -> bytes | None:
    answer = _ask(name, _SIOCGIFADDR)
    return None if answer is None else answer[20:24]


def _addresses6(init: int) -> dict[str, list[bytes]]:
    """By interface; not link-local ones, which nobody outside of the link's caches has."""
    found: dict[str, list[bytes]] = {}
    try:
        with open(f"/proc/{init}/net/if_inet6") as file:
            rows = [line.split() for line in file]
    except OSError:  # no IPv6
        return found
    for row in rows:
        if int(row[3], 16) != _LINK_LOCAL:
            found.setdefault(row[5], []).append(bytes.fromhex(row[0]))
    return found


def _say_arp(name: str, hwaddr: bytes, address: bytes) -> None:
    """As a request and as an answer: each is believed by somebody."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((name, 0x0806))
        for operation, target in ((1, b"\0" * 6), (2, hwaddr)):
            head = struct.pack("!6s6sHHHBBH", _BROADCAST, hwaddr, 0x0806, 1, 0x0800, 6, 4, operation)
            out.send(head + hwaddr + address + target + address)


def _say_neighbour(index: int, hwaddr: bytes, address: bytes) -> None:
    body = struct.pack(
        "!BBHI16sBB6s", _NEIGHBOUR_ADVERTISEMENT, 0, 0, _OVERRIDE, address, _TARGET_LINK_ADDRESS, 1, hwaddr
    )
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as out:
        out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        out.sendto(body, (_ALL_NODES, 0, 0, index))
