# SPDX-License-Identifier: Apache-2.0
"""Warnings: seen, acknowledged, resolved, seen again."""

from functools import partial
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, NotFound
from flexd.api.warning import WarningPut
from flexd.host.contract import CriuFacts
from flexd.host.fake.host import FakeHost
from flexd.operations.events import Events
from flexd.runtime.fake import FakeRuntime
from flexd.server.warnings import Finding, Source, Warnings, lacking, unusable_criu
from tests.contract.network.house import MemoryMirror

FINDING = Finding("Network degraded", "Docker's firewall drops what it forwards")


def source(current: list[Finding]) -> Source:
    async def look() -> list[Finding]:
        return current

    return look


async def test_the_life_of_a_warning():
    current = [FINDING]
    warnings = Warnings(mirror=MemoryMirror(), events=Events(), sources=[source(current)])
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
    warnings = Warnings(mirror=MemoryMirror(), events=Events(), sources=[source([FINDING])])
    await warnings.refresh()
    with pytest.raises(NotFound, match="Warning not found"):
        warnings.show("nothing")
    with pytest.raises(BadRequest, match='"resolved" is not new or acknowledged'):
        await warnings.update(FINDING.uuid, WarningPut("resolved"))


async def test_what_the_host_lacks_and_what_came_back(tmp_path: Path):
    """A program that is installed, an lxcfs that is started: a minute later nobody is warned any more."""
    host, runtime = FakeHost(), FakeRuntime(tmp_path)
    host.machine.features_value.programs.pop("nft")
    runtime.lacks["lxcfs"] = "containers see the host's memory"
    warnings = Warnings(mirror=MemoryMirror(), events=Events(), sources=[partial(lacking, host.machine, runtime)])
    await warnings.refresh()
    shown = {warning.type: warning for warning in warnings.show_all()}
    assert shown["Missing nft"].last_message.startswith("nft: managed bridges have no NAT")
    assert shown["Missing lxcfs"].last_message == "lxcfs: containers see the host's memory"
    assert {warning.severity for warning in shown.values()} == {"low"}
    host.machine.features_value.programs["nft"] = "1.0.6"
    runtime.lacks.clear()
    await warnings.refresh()
    resolved = {warning.type for warning in warnings.show_all() if warning.status == "resolved"}
    assert resolved == {"Missing nft", "Missing lxcfs"}


async def test_a_criu_that_does_not_work():
    host = FakeHost()
    assert await unusable_criu(host.criu) == []
    host.criu.value = CriuFacts(version="3.17.1", reason="CRIU 3.17.1 does not work with Linux 6.18")
    (finding,) = await unusable_criu(host.criu)
    assert (finding.type, finding.severity) == ("Missing criu", "low")
    assert finding.message.endswith("CRIU 3.17.1 does not work with Linux 6.18")
