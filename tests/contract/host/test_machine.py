# SPDX-License-Identifier: Apache-2.0
"""What the machine tells of itself."""

import os
from pathlib import Path

import msgspec

from flexd.api.resources import Resources
from flexd.host.contract import Host


async def test_features(host: Host, real: bool) -> None:
    features = await host.machine.features()
    assert features.kernel == "Linux"
    assert features.architectures
    assert features.cgroup is not None
    if real:
        assert not list(Path("/var/tmp").glob(f"flexd-probe-{os.getpid()}-*"))


async def test_what_is_missing(host: Host) -> None:
    features = await host.machine.features()
    assert set(await host.machine.missing()).isdisjoint(features.programs)


async def test_subordinate_ids(host: Host) -> None:
    found = await host.machine.subordinate_ids()
    assert found.base > 0
    assert found.count > 0


async def test_the_boot_is_known(host: Host) -> None:
    assert len(await host.machine.boot_id()) == 36
    assert await host.machine.boot_id() == await host.machine.boot_id()


async def test_resources(host: Host) -> None:
    assert msgspec.convert(await host.machine.resources(), Resources).cpu.total >= 1


async def test_load(host: Host) -> None:
    assert len(await host.machine.load_average()) == 3


async def test_a_sysctl_that_is_not_there(host: Host, real: bool) -> None:
    if real:
        assert not await host.machine.sysctl("kernel.flexd_has_no_such_thing", "1")


async def test_features_are_known_the_second_time(host: Host, real: bool) -> None:
    first = await host.machine.features()
    assert await host.machine.features() == first
