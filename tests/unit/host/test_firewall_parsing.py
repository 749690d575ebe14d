# SPDX-License-Identifier: Apache-2.0
"""Names of tables, and nft's listing of them."""

import pytest

from flexd.host.contract import HostError
from flexd.host.firewall import checked_table, parse_tables


def test_listing() -> None:
    output = (
        b'{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "inet", "name": "x", "handle": 2}}]}'
    )
    assert parse_tables(output) == [("inet", "x")]
    assert parse_tables(b"") == []


@pytest.mark.parametrize(("family", "name"), [("inet", "flexd.br0"), ("ip6", "a_b-c"), ("bridge", "x")])
def test_tables(family: str, name: str) -> None:
    assert checked_table(family, name) == f"{family} {name}"


@pytest.mark.parametrize(
    ("family", "name"), [("inet", "x; flush ruleset"), ("inet", ""), ("none", "x"), ("inet", "x\n")]
)
def test_anything_else_is_refused(family: str, name: str) -> None:
    with pytest.raises(HostError):
        checked_table(family, name)
