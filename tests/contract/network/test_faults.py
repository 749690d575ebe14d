# SPDX-License-Identifier: Apache-2.0
"""A failure, or a crash, at every single call to the host while networks are made, edited, renamed and deleted."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from flexd.api.network import NetworkPost, NetworkPut, NetworksPost
from flexd.host.contract import HostError, Link
from flexd.host.fake.host import FakeHost
from flexd.network.networks import Networks
from tests.contract.network.house import MemoryMirror, daemon, fake_host

CONFIG = {"ipv4.address": "198.18.9.1/24", "ipv4.nat": "true", "ipv6.address": "none", "ipv4.routes": "198.19.0.0/24"}
EDIT = {"ipv4.address": "198.18.8.1/24", "ipv6.address": "fd42::1/64", "bridge.external_interfaces": "eth7"}


class Killed(BaseException):
    """The daemon is no more: nothing that follows, undoing included, happens."""


class House:
    """A host whose n-th change fails: once, or as in a crash for good."""

    def __init__(self, directory: Path) -> None:
        self.host: FakeHost = fake_host()
        self.host.links.add(Link("eth7", 77))
        self.mirror = MemoryMirror()
        directory.mkdir(exist_ok=True)
        directory.chmod(0o711)
        self.directory = directory
        self._note = self.host.recorder.note
        self._left = -1
        self._killed = False
        self._forever = False

    def trip(self, call: int, *, forever: bool) -> None:
        self._left, self._forever, self._killed = call, forever, False
        self.host.recorder.note = self._trip  # type: ignore[method-assign]
        self.mirror.before_txn = lambda: self._trip("store.txn")

    def heal(self) -> bool:
        """Whether the failure came at all."""
        self.host.recorder.note = self._note  # type: ignore[method-assign]
        self.mirror.before_txn = lambda: None
        return self._left < 0

    def _trip(self, method: str, *arguments: object) -> None:
        if self._killed:
            raise Killed
        self._note(method, *arguments)
        self._left -= 1
        if self._left == -1:
            self._killed = self._forever
            raise Killed if self._forever else HostError(f"{method} fails")

    def state(self) -> dict[str, object]:
        """All that networks leave; without what differs from one creation to the next (indices, pids, addresses)."""
        networks = self.directory / "networks"
        links = self.host.links.by_name.values()
        return {
            "links": sorted((link.name, link.mtu, link.addresses) for link in links),
            "plugged": [link.name for link in links if link.master_index],
            "tables": dict(self.host.firewall.bodies),
            "processes": sorted(
                child.argv[1].removeprefix(f"--conf-file={networks}/")
                for child in self.host.processes.running.values()
                if child.returncode is None
            ),
            "configurations": {path.parent.name: _lines(path) for path in networks.rglob("dnsmasq.conf")},
            "documents": {key: entry.value for key, entry in self.mirror.entries.items()},
            "files": sorted(str(path.relative_to(networks)) for path in networks.rglob("*")),
        }


def _lines(path: Path) -> set[str]:
    return {line for line in path.read_text().splitlines() if str(path.parent) not in line}


@pytest.fixture
async def house(directory: Path) -> AsyncIterator[House]:
    house = House(directory)
    yield house
    await house.host.close()


Change = Callable[[Networks], Awaitable[None]]


async def create(networks: Networks) -> None:
    await networks.create(NetworksPost(name="fxnb", config=CONFIG))


async def edit(networks: Networks) -> None:
    await networks.update("fxna", NetworkPut(config=EDIT))


async def rename(networks: Networks) -> None:
    await networks.rename("fxna", NetworkPost(name="fxnc"))


async def delete(networks: Networks) -> None:
    await networks.delete("fxna")


CHANGES: list[Change] = [create, edit, rename, delete]
OTHER = {**CONFIG, "ipv4.address": "198.18.7.1/24", "ipv4.routes": ""}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_failure_anywhere_leaves_all_as_it_was(house: House, change: Change) -> None:
    call, came = 0, True
    while came:
        async with daemon(house.host, house.mirror, house.directory) as networks:
            for name in networks.names("default"):
                await networks.delete(name)
            await networks.create(NetworksPost(name="fxna", config=OTHER))
            before = house.state()
            house.trip(call, forever=False)
            try:
                await change(networks)
            except HostError:
                if change is delete and not house.mirror.list("/networks/"):
                    break  # deleted; what is left of its directory goes at the next start
                assert house.state() == before, f"call {call}"
            came = house.heal()  # without an error, too: some failures are worth a warning only
        call += 1
    assert call > 3


@pytest.mark.parametrize("change", CHANGES)
async def test_a_crash_anywhere_is_repaired_at_start(directory: Path, change: Change) -> None:
    """After it the host is as if it had only ever seen what the documents say."""
    call, came = 0, True
    while came:
        house, fresh = House(directory / f"{call}"), House(directory / f"{call}-fresh")
        async with daemon(house.host, house.mirror, house.directory) as networks:
            await networks.create(NetworksPost(name="fxna", config=OTHER))
            house.trip(call, forever=True)
            with suppress(Killed):
                await change(networks)
        came = house.heal()
        fresh.mirror.entries.update(house.mirror.entries)
        for each in (house, fresh):
            async with daemon(each.host, each.mirror, each.directory):
                pass
        assert house.state() == fresh.state(), f"call {call}"
        for each in (house, fresh):
            await each.host.close()
        call += 1
    assert call > 3
