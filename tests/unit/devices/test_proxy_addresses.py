# SPDX-License-Identifier: Apache-2.0
"""Addresses of proxies as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.api.errors import BadRequest
from flexd.devices.kinds.proxy import pairs, parse_addresses
from flexd.runtime.contract import ProxyAddress


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp:127.0.0.1:80", [ProxyAddress("tcp", "127.0.0.1", 80)]),
        ("udp:[::1]:53", [ProxyAddress("udp", "::1", 53)]),
        ("tcp:0.0.0.0:80-81,90", [ProxyAddress("tcp", "0.0.0.0", port) for port in (80, 81, 90)]),
        ("unix:/run/x.sock", [ProxyAddress("unix", "/run/x.sock")]),
        ("unix:@abstract", [ProxyAddress("unix", "@abstract")]),
    ],
)
def test_addresses(text: str, expected: list[ProxyAddress]) -> None:
    assert parse_addresses(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "tcp", "tcp:80", "tcp:1.2.3:80", "tcp:127.0.0.1:", "tcp:127.0.0.1:81-80", "tcp:127.0.0.1:1-65535", "unix:",
     "unix:@", "unix:x", "unix:/a/../b", "unix:/" + "x" * 108, "sctp:127.0.0.1:80", "tcp:[::1:80"],
)  # fmt: skip
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_addresses(text)


@given(st.text())
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        parse_addresses(text)
    except BadRequest:
        return


def test_one_target_serves_many_ports() -> None:
    found = pairs({"listen": "tcp:127.0.0.1:80-82", "connect": "unix:/x"})
    assert [connect for _, connect in found] == [ProxyAddress("unix", "/x")] * 3
    with pytest.raises(BadRequest, match="3 ports cannot lead to 2"):
        pairs({"listen": "tcp:127.0.0.1:80-82", "connect": "tcp:127.0.0.1:1-2"})
