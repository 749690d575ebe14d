# SPDX-License-Identifier: Apache-2.0
"""What both hosts say of CRIU holds together."""

from flexd.host.contract import Host


async def test_usable_or_a_reason(host: Host) -> None:
    facts = await host.criu.facts()
    assert facts.usable is (facts.reason == "")
    if facts.usable:
        assert facts.path is not None
        assert facts.version
    assert await host.criu.facts() == facts
