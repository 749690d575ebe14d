# SPDX-License-Identifier: Apache-2.0
"""The PROXY protocol's headers."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.server.proxy_header import Header, parse_header

HELLO = b"\x16\x03\x01\x02\x00"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def version_2(family: int, payload: bytes, command: int = 0x21) -> bytes:
    return SIGNATURE + struct.pack(">BBH", command, family, len(payload)) + payload


IPV4 = version_2(0x11, socket.inet_aton("198.51.100.7") + socket.inet_aton("203.0.113.1") + struct.pack(">HH", 1, 2))
IPV6 = version_2(0x21, socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16) + struct.pack(">HH", 1, 2))


@pytest.mark.parametrize(
    ("data", "address"),
    [
        (b"PROXY TCP4 198.51.100.7 203.0.113.1 4711 8443\r\n", "198.51.100.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 8443\r\n", "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", ""),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", ""),
        (IPV4, "198.51.100.7"),
        (IPV6, "2001:db8::7"),
        (version_2(0x21, socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16 + 4 + 90)), "2001:db8::7"),
        (version_2(0x00, b"", command=0x20), ""),
        (version_2(0x31, bytes(216)), ""),
    ],
)
def test_headers(data: bytes, address: str) -> None:
    assert parse_header(data + HELLO) == Header(len(data), address)
    for cut in range(len(data)):
        assert parse_header(data[:cut]) is None


def test_a_connection_without_one_is_taken_as_it_is() -> None:
    assert parse_header(HELLO) == Header()


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 198.51.100.7\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
        b"PROXY UDP4 198.51.100.7 203.0.113.1 1 2\r\n",
        b"PROXY TCP4 nobody 203.0.113.1 1 2\r\n",
        b"PROXY TCP4 " + b"1" * 100,
        b"PROXY \xff\r\n",
        version_2(0x11, b"short"),
        version_2(0x11, bytes(12), command=0x31),
        version_2(0x11, bytes(5000)),
    ],
)
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_header(data)


@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]), st.binary(max_size=300))
def test_anything_is_a_header_or_none_or_an_error(begin: bytes, rest: bytes) -> None:
    try:
        found = parse_header(begin + rest)
    except ValueError:
        return
    assert found is None or 0 <= found.length <= len(begin + rest)
