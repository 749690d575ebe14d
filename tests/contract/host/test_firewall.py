# SPDX-License-Identifier: Apache-2.0
"""Tables of our own are replaced whole; others are left alone."""

import subprocess
from collections.abc import AsyncIterator

import pytest

from flexd.api.errors import FlexdError
from flexd.host.contract import Host
from flexd.host.linux import LinuxHost

_NAME = "fxh.test"
_CHAIN = "chain in {\n type filter hook input priority 0; policy accept;\n %s\n}"


@pytest.fixture
async def firewall(host: Host) -> AsyncIterator[Host]:
    fault = await host.firewall.available()
    if fault is not None:
        pytest.skip(fault)
    yield host
    await host.firewall.delete_table("inet", _NAME)


async def test_a_table(firewall: Host) -> None:
    await firewall.firewall.replace_table("inet", _NAME, _CHAIN % "")
    assert ("inet", _NAME) in await firewall.firewall.tables()
    await firewall.firewall.delete_table("inet", _NAME)
    assert ("inet", _NAME) not in await firewall.firewall.tables()
    await firewall.firewall.delete_table("inet", _NAME)


async def test_names_that_would_be_commands(firewall: Host) -> None:
    with pytest.raises(FlexdError):
        await firewall.firewall.replace_table("inet", "x {}; flush ruleset", "")


async def test_replaced_whole_or_not_at_all(firewall: Host) -> None:
    if not isinstance(firewall, LinuxHost):
        pytest.skip("the fake host reads no rules")
    await firewall.firewall.replace_table("inet", _NAME, _CHAIN % "ip saddr 198.18.10.1 accept")
    await firewall.firewall.replace_table("inet", _NAME, _CHAIN % "ip saddr 198.18.10.2 accept")
    with pytest.raises(FlexdError, match="syntax error"):
        await firewall.firewall.replace_table("inet", _NAME, _CHAIN % "no such rule")
    listing = subprocess.run(["nft", "list", "table", "inet", _NAME], capture_output=True, text=True, check=True).stdout
    assert "198.18.10.2" in listing
    assert "198.18.10.1" not in listing
