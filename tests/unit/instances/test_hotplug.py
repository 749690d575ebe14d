# SPDX-License-Identifier: Apache-2.0
"""Devices of running instances: plugged in, unplugged, updated; a failure at any step leaves all as it was."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from flexd.api.errors import BadRequest, FlexdError, InvalidInput
from flexd.api.instance import InstancePut
from flexd.api.profile import ProfilePut
from flexd.api.storage_volume import StorageVolumesPost
from flexd.host.contract import HostError
from flexd.instances.firstboot import INSTANCE_ID
from flexd.operations.contract import Plan, Step
from flexd.server.decode import narrow
from tests.unit.instances.house import NIC, PROJECT, ROOT, House, house, restart

DISK = {"type": "disk", "source": "", "path": "/srv/data"}
NIC2 = {"type": "nic", "network": "flexbr0"}


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        await made.create()
        await made.act("start")
        yield made


@pytest.fixture
def disk(tmp_path: Path) -> dict[str, str]:
    source = tmp_path / "source"
    source.mkdir()
    return {**DISK, "source": str(source)}


async def edit(home: House, name: str = "c1", **devices: dict[str, str] | None) -> None:
    """Devices to add or replace; None removes."""
    put = narrow(home.daemon.instances.show(PROJECT, name), InstancePut)
    put.devices = {key: value for key, value in (put.devices | devices).items() if value is not None}
    await home.done(await home.daemon.instances.update(PROJECT, name, put))


def inside(home: House, name: str = "c1") -> list[str]:
    container = home.runtime._running[name].container
    return sorted(link.name for link in home.host.links.inside_of.get(container.init.pid, []))


def state(home: House, name: str = "c1") -> dict[str, object]:
    """All that an edit changes, as far as the fakes know it."""
    running = home.runtime._running.get(name)
    return {
        **home.host_state(),
        "document": home.daemon.registry.instance(PROJECT, name),
        "inside": inside(home, name) if running else None,
        "mounted inside": dict(running.mounts) if running else None,
        "devices": set(running.devices) if running else None,
        "tables": dict(home.host.firewall.bodies),
        "processes": sorted(
            " ".join(child.argv)
            for child in home.host.processes.running.values()
            if child.returncode is None and child.argv[0] != "dnsmasq"
        ),
    }


# --- one device at a time ---


async def test_a_disk_comes_and_goes(home: House, disk: dict[str, str]) -> None:
    before = state(home)
    await edit(home, data=disk)
    mount = home.runtime.mounts_of("c1")["srv/data"]
    assert Path(mount.source).name == "disk.data"
    assert Path(mount.source).resolve() == Path(disk["source"])
    assert home.daemon.registry.instance(PROJECT, "c1").attached["data"].entry == disk
    await edit(home, data=None)
    assert state(home) == before


async def test_a_nic_comes_and_goes(home: House) -> None:
    before = state(home)
    await edit(home, eth1=NIC2)
    assert inside(home) == ["eth1"]
    host_name = home.daemon.registry.instance(PROJECT, "c1").attached["eth1"].volatile["host_name"]
    assert home.host.links.by_name[host_name].up
    await edit(home, eth1=None)
    after = state(home)
    old, new = before["document"], after["document"]
    assert new.config[INSTANCE_ID] != old.config[INSTANCE_ID]  # so that cloud-init looks at the interfaces again
    config = {**new.config, INSTANCE_ID: old.config[INSTANCE_ID]}
    assert {**after, "document": msgspec.structs.replace(new, config=config)} == before


async def test_a_custom_volume(home: House) -> None:
    await home.daemon.volumes.create("default", PROJECT, StorageVolumesPost(name="v1", type="custom"))
    await edit(home, v={"type": "disk", "pool": "default", "source": "v1", "path": "/v"})
    assert home.runtime.mounts_of("c1")["v"].options[:2] == ("bind", "create=dir")
    await edit(home, v=None)
    assert home.runtime.mounts_of("c1") == {}
    with pytest.raises(FlexdError, match='Storage volume "v2" not found on pool "default"'):
        await edit(home, v={"type": "disk", "pool": "default", "source": "v2", "path": "/v"})


async def test_a_changed_device_is_replaced(home: House, disk: dict[str, str]) -> None:
    await edit(home, data=disk)
    await edit(home, data={**disk, "path": "/srv/other", "readonly": "true"})
    mounts = home.runtime.mounts_of("c1")
    assert list(mounts) == ["srv/other"]
    assert "ro" in mounts["srv/other"].options


async def test_limits_change_in_place(home: House, disk: dict[str, str]) -> None:
    group = home.runtime._running["c1"].container.cgroup
    home.host.cgroups.make(group)
    await edit(home, data=disk)
    calls = len(home.host.calls)
    await edit(home, data={**disk, "limits.read": "1MB,10iops"})
    assert home.host.cgroups.files[group, "io", "io.max"] == "8:0 rbps=1000000 wbps=max riops=10 wiops=max"
    assert [call.method for call in home.host.calls[calls:]] == ["cgroups.write"]
    # Limits of disks on one block device are averaged.
    await edit(home, root={**ROOT, "limits.read": "3MB"})
    assert home.host.cgroups.files[group, "io", "io.max"].startswith("8:0 rbps=2000000 ")
    await edit(home, data=None)
    assert home.host.cgroups.files[group, "io", "io.max"].startswith("8:0 rbps=3000000 ")
    await edit(home, root=None)
    assert home.host.cgroups.files[group, "io", "io.max"] == "8:0 rbps=max wbps=max riops=max wiops=max"


async def test_a_tmpfs(home: House) -> None:
    await edit(home, scratch={"type": "disk", "source": "tmpfs:", "path": "/scratch", "size": "1MiB"})
    (mount,) = [each for each in home.host.mounts.table if each.info.fstype == "tmpfs"]
    assert {"size=1048576", "uid=1000000", "nosuid"} <= set(mount.info.options.split(","))
    assert home.runtime.mounts_of("c1")["scratch"].source == str(mount.info.target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ""}, "needs a source"),
        ({"source": "relative"}, "an absolute path, or set a pool"),
        ({"source": "/no/such/path"}, 'Missing source path "/no/such/path"'),
        ({"source": "cephfs:x"}, "Ceph is not supported"),
        ({"path": "/"}, "only the root disk"),
        ({"path": "../x"}, "invalid path"),
        ({"propagation": "sideways"}, "expected one of private"),
        ({"limits.read": "fast"}, "operations per second"),
        ({"limits.read": "1MB", "limits.max": "1MB"}, "cannot be used together"),
        ({"size": "1GiB"}, "only the root disk and tmpfs can have a size"),
        ({"raw.mount.options": "a b"}, "without spaces"),
        ({"readonly": "perhaps"}, "Invalid boolean"),
        ({"no.such": "1"}, "unknown configuration key"),
    ],
)
async def test_bad_disks(home: House, disk: dict[str, str], changes: dict[str, str], message: str) -> None:
    before = state(home)
    with pytest.raises(FlexdError, match=message):
        await edit(home, data={**disk, **changes})
    assert state(home) == before


async def test_limits_that_cannot_be_enforced(home: House, disk: dict[str, str]) -> None:
    home.host.nodes.disk = None
    with pytest.raises(FlexdError, match="its file system is on no block device"):
        await edit(home, data={**disk, "limits.read": "1MB"})


# --- what was plugged in is what is taken down ---


async def test_the_end_takes_plugged_devices_down(home: House, disk: dict[str, str]) -> None:
    await home.act("stop", force=True)
    stopped = home.host_state()
    await home.act("start")
    await edit(home, data=disk, eth1=NIC2)
    await home.act("stop", force=True)
    assert home.host_state() == stopped


async def test_a_restarted_daemon_takes_down_what_another_plugged_in(
    home: House, disk: dict[str, str], tmp_path: Path
) -> None:
    await home.act("stop", force=True)
    stopped = home.host_state()
    await home.act("start")
    await edit(home, data=disk, eth1=NIC2)
    await restart(home, tmp_path)
    assert home.status() == "Running"
    await edit(home, eth1=None)
    await home.act("stop", force=True)
    assert home.host_state() == stopped


async def test_a_container_that_ended_unseen(home: House, disk: dict[str, str], tmp_path: Path) -> None:
    await home.act("stop", force=True)
    stopped = home.host_state()
    await home.act("start")
    await edit(home, data=disk)
    await home.daemon.close()
    home.runtime.end("c1")
    await restart_closed(home, tmp_path)
    assert home.status() == "Stopped"
    assert home.host_state() == stopped


async def restart_closed(home: House, directory: Path) -> None:
    from tests.unit.instances.house import _open

    home.daemon = await _open(directory / "state", home.host, home.runtime, rebooted=False)
    for task in list(home.daemon._tasks)[:1]:  # what it resumes
        await task


# --- failures ---


async def fail_at(home: House, position: int) -> None:
    """The journal's hook: the step fails as if the machine had."""

    async def hook(plan: Plan, at: int, step: Step) -> None:
        if plan.description.startswith("update") and at == position:
            raise HostError(f"injected at {step.action}")

    home.daemon.journal.before_step = hook


async def _edit_everything(home: House, disk: dict[str, str]) -> None:
    """A device goes, one comes, one is replaced, one updated."""
    await edit(home, eth1=None, tmp={"type": "disk", "source": "tmpfs:", "path": "/t"}, data={**disk, "path": "/new"})


@pytest.mark.parametrize("position", range(8))
async def test_a_failure_at_any_step_leaves_all_as_it_was(home: House, disk: dict[str, str], position: int) -> None:
    await edit(home, eth1=NIC2, data=disk)
    before = state(home)
    await fail_at(home, position)
    with pytest.raises(FlexdError, match="injected"):
        await _edit_everything(home, disk)
    home.daemon.journal.before_step = None
    after = state(home)
    assert await home.daemon.journal.failed() == []
    assert after == before
    await _edit_everything(home, disk)
    assert sorted(home.runtime.mounts_of("c1")) == ["new", "t"]


async def test_there_are_as_many_steps_as_the_test_before_thinks(home: House, disk: dict[str, str]) -> None:
    await edit(home, eth1=NIC2, data=disk)
    steps: list[str] = []

    async def hook(_plan: Plan, _at: int, step: Step) -> None:
        steps.append(step.action)

    home.daemon.journal.before_step = hook
    await _edit_everything(home, disk)
    assert len(steps) == 9
    assert steps[-1] == "instances.write"


@pytest.mark.parametrize("method", ["links.create_veth", "links.set_master", "links.set_up", "links.move"])
async def test_a_nic_that_the_host_refuses(home: House, method: str) -> None:
    before = state(home)
    home.host.fail(method=method, error=HostError("no"))
    with pytest.raises(FlexdError, match="no"):
        await edit(home, eth1=NIC2)
    home.host.heal()
    assert state(home) == before


@pytest.mark.parametrize("method", ["mounts.bind", "add_mount"])
async def test_a_disk_that_the_host_refuses(home: House, disk: dict[str, str], method: str) -> None:
    before = state(home)
    if method == "add_mount":
        home.runtime.failing_calls[method] = "no"
    else:
        home.host.fail(method=method, error=HostError("no"))
    with pytest.raises(FlexdError, match="no"):
        await edit(home, data=disk)
    home.host.heal()
    assert state(home) == before


async def test_a_removal_that_fails(home: House, disk: dict[str, str]) -> None:
    await edit(home, data=disk)
    before = state(home)
    home.runtime.failing_calls["remove_mount"] = "busy"
    with pytest.raises(FlexdError, match="busy"):
        await edit(home, data=None)
    home.runtime.failing_calls.clear()
    assert state(home)["document"] == before["document"]


# --- profiles ---


def _profile(home: House, **devices: dict[str, str]) -> ProfilePut:
    shown = home.daemon.profiles.show(PROJECT, "default")
    return ProfilePut(config=shown.config, devices={"root": ROOT, "eth0": NIC, **devices})


async def test_a_profile_changes_every_running_instance(home: House, disk: dict[str, str]) -> None:
    await home.create("c2")
    await home.create("idle")
    await home.act("start", "c2")
    await home.daemon.profiles.update(PROJECT, "default", _profile(home, data=disk, eth1=NIC2))
    for name in ("c1", "c2"):
        assert inside(home, name) == ["eth1"]
        assert list(home.runtime.mounts_of(name)) == ["srv/data"]
        assert home.daemon.instances.show(PROJECT, name).config["volatile.eth1.hwaddr"]
    await home.daemon.profiles.update(PROJECT, "default", _profile(home))
    for name in ("c1", "c2"):
        assert inside(home, name) == []
        assert home.runtime.mounts_of(name) == {}
        assert "volatile.eth1.hwaddr" not in home.daemon.instances.show(PROJECT, name).config


async def test_a_profile_that_one_instance_cannot_take(home: House, disk: dict[str, str]) -> None:
    await home.create("c2")
    await home.act("start", "c2")
    before = state(home), state(home, "c2"), home.daemon.profiles.show(PROJECT, "default")
    home.host.fail(method="links.move", error=HostError("no"), after=1)
    with pytest.raises(HostError, match="no"):
        await home.daemon.profiles.update(PROJECT, "default", _profile(home, data=disk, eth1=NIC2))
    home.host.heal()
    assert (state(home), state(home, "c2"), home.daemon.profiles.show(PROJECT, "default")) == before


async def test_a_profile_cannot_take_the_root(home: House) -> None:
    with pytest.raises(BadRequest, match="would lose its root disk"):
        await home.daemon.profiles.update(PROJECT, "default", ProfilePut(devices={"eth0": NIC}))


async def test_a_bad_profile(home: House) -> None:
    with pytest.raises(InvalidInput, match="unsupported device type"):
        await home.daemon.profiles.update(PROJECT, "default", _profile(home, x={"type": "spaceship"}))


# --- before a start ---


async def test_a_start_checks_the_host(home: House, disk: dict[str, str]) -> None:
    await edit(home, data=disk)
    await home.act("stop", force=True)
    Path(disk["source"]).rmdir()
    with pytest.raises(FlexdError, match=r'Failed starting instance "c1": devices.data.source: Missing source path'):
        await home.act("start")
    assert home.status() == "Stopped"
