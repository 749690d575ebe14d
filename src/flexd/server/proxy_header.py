# SPDX-License-Identifier: Apache-2.0
"""The PROXY protocol, versions 1 and 2: how a proxy tells whose connection it passes on. Pure.

Source: https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt
"""

import ipaddress
import struct

from msgspec import Struct

_V1, _V2 = b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"
# The longest line of version 1, its end included (section 2.1).
_V1_BYTES = 107
_V2_HEAD = struct.Struct(">12sBBH")  # signature; version and command; family and transport; length of the rest
# What follows the addresses (TLVs) is not looked at; certificates among it may be long.
_V2_BYTES = 4096
_LOCAL, _PROXIED = 0x20, 0x21
# By address family and transport (TCP over each): bytes of one address.
_ADDRESS_BYTES = {0x11: 4, 0x21: 16}


class Header(Struct, frozen=True):
    """`length`: bytes to leave out; 0 if there is no header. `address`: the client's, "" if the proxy told none."""

    length: int = 0
    address: str = ""


def parse_header(data: bytes) -> Header | None:
    """What a connection began with; None while more must come. ValueError: it begins like a header, but is none."""
    if data.startswith(_V1):
        return _version_1(data)
    if data.startswith(_V2):
        return _version_2(data)
    if _V1.startswith(data) or _V2.startswith(data):
        return None
    return Header()


def _version_1(data: bytes) -> Header | None:
    """`PROXY TCP4 198.51.100.1 203.0.113.1 4711 8443`, or UNKNOWN and anything."""
    line, end, _ = data.partition(b"\r\n")
    if not end:
        if len(data) >= _V1_BYTES:
            raise ValueError("the line of its PROXY header has no end")
        return None
    words = line.decode("ascii").split(" ")
    length = len(line) + len(end)
    if words[1] == "UNKNOWN":
        return Header(length)
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise ValueError(f"its PROXY header is none: {line!r}")
    address = ipaddress.ip_address(words[2])
    if address.version != int(words[1][-1]):
        raise ValueError(f"its PROXY header names {address} as {words[1]}")
    return Header(length, str(address))


def _version_2(data: bytes) -> Header | None:
    if len(data) < _V2_HEAD.size:
        return None
    _, command, family, rest = _V2_HEAD.unpack_from(data)
    if command not in (_LOCAL, _PROXIED):
        raise ValueError(f"its PROXY header has version and command {command:#x}")
    if rest > _V2_BYTES:
        raise ValueError(f"its PROXY header has {rest} bytes")
    length = _V2_HEAD.size + rest
    if len(data) < length:
        return None
    size = _ADDRESS_BYTES.get(family)
    if command == _LOCAL or size is None:  # the proxy's own check, or a family that names no address
        return Header(length)
    if rest < 2 * size + 4:
        raise ValueError("its PROXY header is too short for its addresses")
    return Header(length, str(ipaddress.ip_address(data[_V2_HEAD.size : _V2_HEAD.size + size])))
