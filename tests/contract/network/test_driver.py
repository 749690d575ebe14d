# SPDX-License-Identifier: Apache-2.0
"""What every network driver must do, found by scanning the folder; on the fake and on the real host."""

import asyncio
from pathlib import Path

import pytest

from flexd.api.keys import check_config
from flexd.host.contract import Host
from flexd.host.fake.host import FakeHost
from flexd.network.contract import Driver, DriverContext, Port
from flexd.network.drivers import load_drivers

NAME = "fxncon0"
CONFIGS = {"bridge": {"ipv4.address": "198.18.9.1/24", "ipv4.nat": "true", "ipv6.address": "fd42:f1ec:9::1/64"}}
DRIVERS = load_drivers()


@pytest.fixture(params=sorted(DRIVERS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make(host: Host, directory: Path, kind: str) -> "Make":
    return Make(host, directory, kind)


class Make:
    """Makes drivers of one network, as a daemon does after each start."""

    def __init__(self, host: Host, directory: Path, kind: str) -> None:
        self.host, self.directory, self.kind = host, directory / NAME, kind
        self.directory.mkdir()
        self.directory.chmod(0o711)

    def __call__(self, config: dict[str, str] | None = None) -> Driver:
        context = DriverContext(self.host, self.directory, lambda: ["198.18.0.0/24"])
        return DRIVERS[self.kind](context, NAME, CONFIGS[self.kind] if config is None else config)

    async def left(self) -> list[object]:
        """What is on the host of the network."""
        link = await self.host.links.get(NAME)
        tables = [name for _, name in await self.host.firewall.tables() if NAME in name]
        return [*([link.name] if link else []), *tables]


def test_a_driver_describes_itself(kind: str) -> None:
    driver = DRIVERS[kind]
    assert driver.type == kind
    assert all(key.description for key in driver.KEYS)
    assert check_config(CONFIGS[kind], driver.KEYS) == []


async def test_fill_resolves_what_is_absent(make: Make) -> None:
    driver = make({})
    config = await driver.fill({"user.x": "y"}, new=True)
    assert config["user.x"] == "y"
    assert "auto" not in config.values()
    assert check_config(config, driver.KEYS) == []
    assert driver.faults(config) == []
    assert await driver.fill(config, new=False) == config


async def test_fill_of_an_edit_adds_nothing(make: Make) -> None:
    assert await make().fill({"user.x": "y", "user.empty": ""}, new=False) == {"user.x": "y"}


async def test_start_and_stop_are_idempotent(make: Make) -> None:
    await make().stop()
    await make().start()
    try:
        there = await make.left()
        assert there
        await make().start()
        assert await make.left() == there
        state = await make().state()
        assert state.state == "up"
        assert state.mtu == make().attachment().mtu
        assert make().attachment().bridge == NAME
    finally:
        await make().stop()
        await make().stop()
    assert await make.left() == []


async def test_a_second_start_changes_no_process(make: Make) -> None:
    await make().start()
    try:
        processes = {path.name: path.read_text() for path in make.directory.glob("*.json")}
        await make().start()
        assert {path.name: path.read_text() for path in make.directory.glob("*.json")} == processes
    finally:
        await make().stop()


async def test_a_service_that_has_ended_is_noticed_by_whoever_asks_later(make: Make, host: Host) -> None:
    if not isinstance(host, FakeHost):
        pytest.skip("only the fake host's processes can be ended without knowing them")
    await make().start()
    host.processes.end_all()
    async with asyncio.timeout(20):
        await make().wait_failed()
    await make().stop()


async def test_ports_become_leases(make: Make) -> None:
    driver = make()
    await driver.start()
    try:
        await driver.set_ports([Port(NAME, "c1", "default", "eth0", "00:16:3e:00:00:01", "198.18.9.7")])
        found = {lease.address: lease for lease in await make().leases()}
        assert found["198.18.9.7"].hostname == "c1"
        assert found["198.18.9.7"].type == "static"
        await driver.set_ports([])
        assert "198.18.9.7" not in {lease.address for lease in await make().leases()}
    finally:
        await driver.stop()


async def test_ports_are_taken_while_the_network_is_down(make: Make) -> None:
    await make().set_ports([Port(NAME, "c1", "default", "eth0", "00:16:3e:00:00:01", "198.18.9.7")])
    assert "198.18.9.7" in {lease.address for lease in await make().leases()}
    assert (await make().state()).state == "down"


async def test_after_a_reboot_start_makes_all_anew(make: Make, host: Host) -> None:
    if not isinstance(host, FakeHost):
        pytest.skip("only the fake host can be rebooted")
    await make().start()
    before = await make.left()
    await host.reboot()
    assert await make.left() == []
    await make().start()
    assert await make.left() == before
    await make().stop()
