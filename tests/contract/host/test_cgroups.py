# SPDX-License-Identifier: Apache-2.0
"""Cgroups of whatever kind this host has."""

import os
from collections.abc import AsyncIterator

import pytest

from flexd.host.cgroups import hierarchies
from flexd.host.contract import CgroupStats, Host, HostError
from flexd.host.fake import FakeHost

_GROUP = "fxh-test"


@pytest.fixture
async def cgroups(host: Host) -> AsyncIterator[Host]:
    layout = await host.cgroups.layout()
    if isinstance(host, FakeHost):
        host.cgroups.make(_GROUP, stats=CgroupStats(memory_usage_bytes=1, processes=0))
    else:
        if not layout.controllers:
            pytest.skip("no cgroups are mounted here")
        for mount in hierarchies(layout):
            if os.access(mount, os.W_OK):
                (mount / _GROUP / "inner").mkdir(parents=True)
    yield host
    await host.cgroups.remove(_GROUP)


async def test_the_layout_makes_sense(host: Host) -> None:
    layout = await host.cgroups.layout()
    assert layout.mode in ("v1", "v2", "hybrid")
    assert (layout.unified is None) == (layout.mode == "v1")


async def test_figures_come_in_order(cgroups: Host) -> None:
    gone, there = await cgroups.cgroups.stats(["fxh-none", _GROUP])
    assert gone == CgroupStats()
    assert there.memory_usage_bytes is not None or "memory" not in (await cgroups.cgroups.layout()).controllers


async def test_files(cgroups: Host) -> None:
    layout = await cgroups.cgroups.layout()
    if "pids" not in layout.controllers:
        pytest.skip("no pids controller here")
    await cgroups.cgroups.write(_GROUP, "pids", "pids.max", "100")
    assert (await cgroups.cgroups.read(_GROUP, "pids", "pids.max")).strip() == "100"


async def test_what_is_not_there(cgroups: Host) -> None:
    with pytest.raises(HostError):
        await cgroups.cgroups.read("fxh-none", "pids", "pids.max")
    with pytest.raises(HostError, match="nonesuch"):
        await cgroups.cgroups.write(_GROUP, "nonesuch", "x", "1")


async def test_processes(cgroups: Host) -> None:
    assert await cgroups.cgroups.processes(_GROUP) == []
    assert await cgroups.cgroups.processes("fxh-none") == []


async def test_removing_takes_the_children_along(cgroups: Host) -> None:
    await cgroups.cgroups.remove(_GROUP)
    await cgroups.cgroups.remove(_GROUP)
    if not isinstance(cgroups, FakeHost):
        layout = await cgroups.cgroups.layout()
        assert not any((mount / _GROUP).exists() for mount in hierarchies(layout))
