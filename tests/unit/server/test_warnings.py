# SPDX-License-Identifier: Apache-2.0
"""Warnings: seen, acknowledged, resolved, seen again."""

import pytest

from flexd.api.errors import BadRequest, NotFound
from flexd.api.warning import WarningPut
from flexd.host.contract import Features
from flexd.operations.events import Events
from flexd.server.warnings import Finding, Warnings, lacking
from tests.contract.network.house import MemoryMirror

FINDING = Finding("Network degraded", "Docker's firewall drops what it forwards")


async def test_the_life_of_a_warning():
    current = [FINDING]
    warnings = Warnings(mirror=MemoryMirror(), events=Events(), sources=[lambda: current])
    await warnings.refresh()
    await warnings.refresh()
    shown = warnings.show(FINDING.uuid)
    assert (shown.status, shown.count, shown.last_message) == ("new", 1, FINDING.message)
    await warnings.update(FINDING.uuid, WarningPut("acknowledged"))
    await warnings.refresh()
    assert warnings.show(FINDING.uuid).status == "acknowledged"
    current.clear()
    await warnings.refresh()
    assert warnings.show(FINDING.uuid).status == "resolved"
    current.append(FINDING)
    await warnings.refresh()
    assert (warnings.show(FINDING.uuid).status, warnings.show(FINDING.uuid).count) == ("new", 2)
    await warnings.delete(FINDING.uuid)
    assert warnings.uuids() == []


async def test_what_cannot_be():
    warnings = Warnings(mirror=MemoryMirror(), events=Events(), sources=[lambda: [FINDING]])
    await warnings.refresh()
    with pytest.raises(NotFound, match="Warning not found"):
        warnings.show("nothing")
    with pytest.raises(BadRequest, match='"resolved" is not new or acknowledged'):
        await warnings.update(FINDING.uuid, WarningPut("resolved"))


def test_what_the_host_lacks():
    features = Features(missing={"nft": "networks have no NAT"})
    assert [finding.message for finding in lacking(features)] == ["nft: networks have no NAT"]
