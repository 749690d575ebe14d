# SPDX-License-Identifier: Apache-2.0
"""Addresses to listen on."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.api.errors import BadRequest
from flexd.server.addresses import Address, parse_address, parse_addresses, reachable


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1", "10.0.0.1", 8443),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("fd42::1", "fd42::1", 8443),
        ("[fd42::1]", "fd42::1", 8443),
        ("[fd42::1]:443", "fd42::1", 443),
        ("::", "::", 8443),
        ("[::]:8444", "::", 8444),
        (":8443", "", 8443),
        ("*:65535", "", 65535),
        ("0.0.0.0", "0.0.0.0", 8443),
        ("host.example:8443", "host.example", 8443),
    ],
)
def test_an_address(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:x",
        "10.0.0.1:",
        "10.0.0.256",
        "1.2.3",
        "[10.0.0.1]:1",
        "[fd42::1",
        "[fd42::1]:",
        "[fd42::1]8443",
        "fd42::1::2",
        "a:b:c",
        "https://10.0.0.1",
        "a b",
        "-a",
        "10.0.0.1:-1",
        "10.0.0.1:٣",  # a digit to Python, not to us
    ],
)
def test_a_wrong_address_is_named(text: str) -> None:
    with pytest.raises(BadRequest, match="invalid address") as caught:
        parse_address(text)
    assert text in str(caught.value)


def test_several_and_each_once() -> None:
    found = parse_addresses("10.0.0.1, [fd42::1]:443 ,10.0.0.1:8443,")
    assert found == (Address("10.0.0.1", 8443), Address("fd42::1", 443))


@given(st.ip_addresses(), st.integers(1, 65535))
def test_what_is_written_is_read_again(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    address = Address(str(ip), port)
    assert parse_address(str(address)) == address


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_fault(text: str) -> None:
    try:
        found = parse_addresses(text)
    except BadRequest:
        return
    for address in found:
        assert 0 < address.port < 65536
        assert parse_address(str(address)) == address


OWN = ("127.0.0.1", "::1", "10.0.0.1", "fe80::1", "169.254.1.1", "fd42::1", "192.0.2.9")


@pytest.mark.parametrize(
    ("listening", "expected"),
    [
        (":8443", ["10.0.0.1:8443", "[fd42::1]:8443", "192.0.2.9:8443"]),
        ("[::]:1", ["10.0.0.1:1", "[fd42::1]:1", "192.0.2.9:1"]),
        ("0.0.0.0:1", ["10.0.0.1:1", "192.0.2.9:1"]),
        ("127.0.0.1:1", ["127.0.0.1:1"]),
        ("host:1,10.0.0.1", ["host:1", "10.0.0.1:8443"]),
        ("10.0.0.1,:8443", ["10.0.0.1:8443", "[fd42::1]:8443", "192.0.2.9:8443"]),
    ],
)
def test_what_clients_are_told(listening: str, expected: list[str]) -> None:
    assert reachable(parse_addresses(listening), OWN) == expected
