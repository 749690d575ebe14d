# SPDX-License-Identifier: Apache-2.0
"""A tiny DHCP and DNS client, run as a program inside a network namespace; prints JSON.

`dhcp INTERFACE HWADDR [CLIENT_ID_HEX [HOSTNAME]]` asks for a lease (RFC 2131) without configuring it;
`dns SERVER NAME TYPE` asks for A, AAAA or PTR records (RFC 1035).
"""

import ipaddress
import json
import socket
import struct
import sys

_TYPES = {"A": 1, "PTR": 12, "AAAA": 28}
_COOKIE = b"\x63\x82\x53\x63"
_SO_BINDTODEVICE = 25


def dhcp(interface: str, hwaddr: str, client_id: str = "", hostname: str = "") -> dict[str, object]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, interface.encode())
        link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        link.bind(("0.0.0.0", 68))
        link.settimeout(20)
        extra = (b"=" + bytes([len(client_id) // 2]) + bytes.fromhex(client_id)) if client_id else b""
        extra += (b"\x0c" + bytes([len(hostname)]) + hostname.encode()) if hostname else b""
        offer = _exchange(link, hwaddr, b"\x35\x01\x01" + extra, 2)
        wanted = b"\x35\x01\x03\x32\x04" + socket.inet_aton(str(offer["address"]))
        return _exchange(link, hwaddr, wanted + b"\x36\x04" + offer["server"] + extra, 5)  # type: ignore[operator]


def _exchange(link: socket.socket, hwaddr: str, options: bytes, answer: int) -> dict[str, object]:
    octets = bytes.fromhex(hwaddr.replace(":", ""))
    # Flag 0x8000: answer by broadcast, we have no address yet. Option 55: mask, router, DNS, domain, MTU, search.
    head = struct.pack("!BBBBIHH16x16s64x128x", 1, 1, 6, 0, 0x464C4558, 0, 0x8000, octets)
    asked = b"\x37\x06\x01\x03\x06\x0f\x1a\x77"
    link.sendto(head + _COOKIE + options + asked + b"\xff", ("255.255.255.255", 67))
    while True:
        packet = link.recv(4096)
        found = _options(packet[240:])
        if packet[28:34] == octets and found.get(53) == bytes([answer]):
            break
    routers, servers = found.get(3, b""), found.get(6, b"")
    return {
        "address": socket.inet_ntoa(packet[16:20]),
        "server": found[54],
        "router": socket.inet_ntoa(routers) if routers else "",
        "dns": socket.inet_ntoa(servers[:4]) if servers else "",
        "domain": found.get(15, b"").decode(),
        "mtu": int.from_bytes(found.get(26, b""), "big"),
    }


def _options(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        length = data[at + 1]
        found[data[at]] = data[at + 2 : at + 2 + length]
        at += 2 + length
    return found


def dns(server: str, name: str, kind: str) -> list[str]:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    with socket.socket(family, socket.SOCK_DGRAM) as link:
        link.settimeout(20)
        link.sendto(
            struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!HH", _TYPES[kind], 1), (server, 53)
        )
        packet = link.recv(4096)
    count = struct.unpack("!H", packet[6:8])[0]
    at, found = 12 + len(labels) + 4, []
    for _ in range(count):
        at = _skip_name(packet, at)
        record, _, _, length = struct.unpack("!HHIH", packet[at : at + 10])
        data, start = packet[at + 10 : at + 10 + length], at + 10
        at += 10 + length
        found += [_read_name(packet, start)] if record == 12 else [str(ipaddress.ip_address(data))]
    return sorted(found)


def _skip_name(packet: bytes, at: int) -> int:
    while packet[at]:
        if packet[at] >= 0xC0:
            return at + 2
        at += 1 + packet[at]
    return at + 1


def _read_name(packet: bytes, at: int) -> str:
    labels = []
    while packet[at]:
        if packet[at] >= 0xC0:
            at = struct.unpack("!H", packet[at : at + 2])[0] & 0x3FFF
            continue
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
        at += 1 + packet[at]
    return ".".join(labels)


if __name__ == "__main__":
    result = {"dhcp": dhcp, "dns": dns}[sys.argv[1]](*sys.argv[2:])  # type: ignore[operator]
    print(json.dumps(result, default=lambda data: data.hex()))
