# SPDX-License-Identifier: Apache-2.0
"""What the fake host does beyond the contract: failing on demand, telling what happened, rebooting."""

import errno
import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.api.idmap import IdMap
from flexd.host.contract import (
    Btrfs,
    Cgroups,
    CommandFailed,
    Completed,
    Files,
    Firewall,
    Host,
    HostError,
    Link,
    Links,
    Machine,
    Mounts,
    Processes,
    Quotas,
)
from flexd.host.fake import FakeHost
from flexd.host.fake import host as fakes


@pytest.fixture
async def host() -> AsyncIterator[FakeHost]:
    host = FakeHost()
    yield host
    await host.close()


async def test_it_is_a_host(host: FakeHost) -> None:
    checked: Host = host
    assert checked is host


async def test_failing_on_demand(host: FakeHost) -> None:
    host.fail(method="links.create_bridge", error=HostError("no", errno.EPERM), after=1, times=1)
    await host.links.create_bridge("a")
    with pytest.raises(HostError, match="no"):
        await host.links.create_bridge("b")
    await host.links.create_bridge("b")
    assert [call.method for call in host.calls] == ["links.create_bridge"] * 3
    assert host.calls[1].arguments == ("b",)


async def test_healing(host: FakeHost) -> None:
    host.fail(method="machine.features", error=HostError("no"))
    for _ in range(2):
        with pytest.raises(HostError):
            await host.machine.features()
    host.heal()
    await host.machine.features()


async def test_programs_are_answered(host: FakeHost) -> None:
    with pytest.raises(CommandFailed, match="127"):
        await host.processes.run(["dnsmasq"])
    host.processes.answer("dnsmasq", Completed(0, b"ok", b""))
    assert (await host.processes.run(["dnsmasq"])).stdout == b"ok"
    host.processes.answer("nft", lambda _argv, stdin: Completed(1, b"", stdin or b""))
    with pytest.raises(CommandFailed, match="wrong"):
        await host.processes.run(["nft"], stdin=b"wrong")


async def test_a_reboot(host: FakeHost, tmp_path: Path) -> None:
    process = host.processes.start(["daemon"])
    await host.links.create_bridge("br0")
    host.links.add(Link("eth0", 50))
    await host.firewall.replace_table("inet", "t", "")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    await host.mounts.bind(tmp_path / "a", tmp_path / "b")
    boot_id = await host.machine.boot_id()
    await host.reboot()
    assert not await host.processes.is_alive(process)
    assert [link.name for link in await host.links.all()] == ["lo"]
    assert await host.firewall.tables() == []
    assert not await host.mounts.mounted(tmp_path / "b")
    assert await host.machine.boot_id() != boot_id


async def test_owners_are_recorded(host: FakeHost, tmp_path: Path) -> None:
    await host.files.shift_tree(tmp_path, old=IdMap(), new=IdMap.single(1000000, 65536))
    assert host.files.shifted[0].new.host_uid(0) == 1000000


async def test_readings_can_fail_and_change_nothing(host: FakeHost) -> None:
    host.fail(method="links.all", error=HostError("no"))
    with pytest.raises(HostError):
        await host.links.all()
    assert host.calls == []
    assert [call.method for call in host.recorder.readings] == ["links.all"]


def test_every_method_of_the_contract_can_fail() -> None:
    """Each facet's methods begin by telling the recorder their own name."""
    for facet in (Processes, Mounts, Files, Quotas, Btrfs, Cgroups, Links, Firewall, Machine):
        fake: type = getattr(fakes, f"Fake{facet.__name__}")
        methods = [name for name, value in vars(facet).items() if inspect.iscoroutinefunction(value)]
        assert methods
        for name in methods:
            assert f'("{facet.__name__.lower()}.{name}"' in inspect.getsource(getattr(fake, name))
