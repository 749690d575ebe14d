# SPDX-License-Identifier: Apache-2.0
"""Devices of running instances: plugged in, unplugged, updated; a failure at any step leaves all as it was."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from flexd.api.errors import BadRequest, FlexdError, InvalidInput
from flexd.api.instance import InstancePut
from flexd.api.profile import ProfilePut
from flexd.api.storage_volume import StorageVolumesPost
from flexd.host.contract import Completed, HostError, Link, Node
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


# --- processes, nodes and hardware ---

PROXY = {"type": "proxy", "listen": "tcp:127.0.0.1:8080", "connect": "tcp:127.0.0.1:80"}


def proxies(home: House) -> list[tuple[str, str]]:
    return [
        (f"{listen.host}:{listen.port}", f"{connect.host}:{connect.port}")
        for spec in home.runtime.proxies.values()
        for listen, connect in spec.pairs
    ]


async def test_a_proxy(home: House, tmp_path: Path) -> None:
    before = state(home)
    await edit(home, web={**PROXY, "listen": "tcp:127.0.0.1:8080-8081,90", "connect": "tcp:127.0.0.1:80"})
    assert [listen for listen, _ in proxies(home)] == ["127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:90"]
    await restart(home, tmp_path)
    assert len(home.runtime.proxies) == 1
    home.runtime.proxies.clear()  # somebody killed it while the daemon was away
    await restart(home, tmp_path)
    assert len(home.runtime.proxies) == 1
    home.runtime.end_proxy(next(iter(home.runtime.proxies)))
    await _until(lambda: len(home.runtime.proxies) == 1)
    await edit(home, web=None)
    assert home.runtime.proxies == {}
    assert state(home) == before


async def test_a_proxy_that_cannot_live_is_tried_again(home: House) -> None:
    await edit(home, web=PROXY)
    home.runtime.failing_calls["start_proxy"] = "Address already in use"
    home.runtime.end_proxy(next(iter(home.runtime.proxies)))
    await asyncio.sleep(0.35)
    assert home.runtime.proxies == {}
    del home.runtime.failing_calls["start_proxy"]
    await _until(lambda: len(home.runtime.proxies) == 1)
    home.runtime.end_proxy(next(iter(home.runtime.proxies)))
    await edit(home, web=None)  # in between: none comes back
    await asyncio.sleep(0.6)
    assert home.runtime.proxies == {}


async def test_a_proxy_starts_and_ends_with_its_instance(home: House) -> None:
    await edit(home, web=PROXY)
    await home.act("restart", force=True)
    assert proxies(home) == [("127.0.0.1:8080", "127.0.0.1:80")]
    await home.act("stop", force=True)
    assert home.runtime.proxies == {}


async def test_a_start_whose_proxy_fails_takes_everything_back(home: House) -> None:
    await edit(home, web=PROXY)
    await home.act("stop", force=True)
    before = home.host_state()
    home.runtime.failing_calls["start_proxy"] = "Address already in use"
    with pytest.raises(FlexdError, match="Address already in use"):
        await home.act("start")
    assert (home.status(), home.host_state()) == ("Stopped", before)


async def test_a_proxy_by_nat(home: House) -> None:
    before = state(home)
    web = {**PROXY, "nat": "true", "listen": "tcp:198.18.40.1:80", "connect": "tcp:0.0.0.0:8080"}
    with pytest.raises(FlexdError, match="must be a static address of the instance"):
        await edit(home, web=web)
    assert state(home) == before
    await edit(home, eth0={**NIC, "ipv4.address": "198.18.1.7"})
    await edit(home, web=web)
    (body,) = [body for (family, _), body in home.host.firewall.bodies.items() if family == "inet" and "dnat" in body]
    assert "ip daddr 198.18.40.1 tcp dport 80 dnat ip to 198.18.1.7:8080" in body
    assert "ip saddr 198.18.1.7 ip daddr 198.18.1.7 tcp dport 8080 masquerade" in body
    await edit(home, web=None)
    assert not [body for body in home.host.firewall.bodies.values() if "dnat" in body]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"listen": "80"}, "invalid address"),
        ({"listen": "tcp:127.0.0.1:0"}, "1 to 65535"),
        ({"listen": "tcp:localhost:80"}, "does not appear to be an IPv4 or IPv6 address"),
        ({"listen": "unix:relative"}, "invalid unix address"),
        ({"listen": "tcp:127.0.0.1:1-3", "connect": "tcp:127.0.0.1:1-2"}, "3 ports cannot lead to 2"),
        ({"listen": "udp:127.0.0.1:53"}, "datagrams"),
        ({"connect": ""}, "a value is required"),
        ({"mode": "0600"}, "only a listening unix socket has an owner"),
        ({"listen": "unix:/x", "mode": "9"}, "invalid mode"),
        ({"bind": "moon"}, "expected one of host"),
        ({"nat": "true", "bind": "instance", "listen": "tcp:198.18.40.1:80"}, "Only host-bound"),
        ({"nat": "true", "listen": "tcp:0.0.0.0:80"}, "wildcard address"),
        ({"nat": "true", "listen": "unix:/x"}, "works for tcp to tcp"),
        ({"nat": "true", "listen": "tcp:[fd42::1]:80"}, "IPv6 cannot lead to IPv4"),
        ({"nat": "true", "listen": "tcp:198.18.40.1:80", "proxy_protocol": "true"}, "keeps the sender's address"),
    ],
)
async def test_bad_proxies(home: House, changes: dict[str, str], message: str) -> None:
    with pytest.raises(FlexdError, match=message):
        await edit(home, web={**PROXY, **changes})
    assert home.runtime.proxies == {}


async def test_a_node(home: House) -> None:
    before = state(home)
    home.host.nodes.by_path[Path("/dev/thing")] = Node("c", 10, 99)
    await edit(home, thing={"type": "unix-char", "path": "/dev/thing", "uid": "1000", "mode": "0600"})
    assert list(home.runtime.mounts_of("c1")) == ["dev/thing"]
    made = next(call for call in home.host.calls if call.method == "nodes.make")
    assert made.arguments[1:] == (Node("c", 10, 99), 0o600, 1_001_000, 1_000_000)
    assert home.runtime.devices_of("c1") == set()  # an unprivileged container's devices are not limited
    await edit(home, thing=None)
    assert state(home) == before


async def test_a_node_of_a_privileged_container(home: House) -> None:
    await home.create("priv", config={"security.privileged": "true"})
    home.host.nodes.by_path[Path("/dev/thing")] = Node("b", 7, 3)
    await home.act("start", "priv")
    await edit(home, "priv", thing={"type": "unix-block", "source": "/dev/thing", "path": "/dev/other"})
    assert home.runtime.devices_of("priv") == {"b 7:3 rwm"}
    await home.act("restart", "priv", force=True)
    assert ("devices.allow", "b 7:3 rwm") in home.runtime.specs["priv"].cgroup
    await edit(home, "priv", thing=None)
    assert home.runtime.devices_of("priv") == set()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "unix-char"}, "missing the required source or path"),
        ({"type": "unix-char", "path": "/dev/none"}, 'The required device path "/dev/none" doesn\'t exist'),
        ({"type": "unix-block", "path": "/dev/char"}, '"/dev/char" is not a block device'),
        ({"type": "unix-char", "path": "/dev/x", "major": "1"}, "must be given together"),
        ({"type": "unix-char", "path": "/dev/x", "major": "1", "minor": "9999999"}, "invalid device number"),
        ({"type": "unix-hotplug"}, "require a vendorid or productid"),
        ({"type": "usb", "vendorid": "1"}, "four hexadecimal digits"),
        ({"type": "usb", "vendorid": "1234", "required": "true"}, "this host has no such device"),
        ({"type": "gpu"}, r"its kernel no driver for it \(CONFIG_DRM\)"),
        ({"type": "gpu", "gputype": "mig"}, "NVIDIA MIG needs"),
        ({"type": "gpu", "pci": "0000:00:02.0", "id": "0"}, "Cannot use id when pci is set"),
        ({"type": "tpm", "path": "/dev/tpm0", "pathrm": "/dev/tpmrm0"}, "CONFIG_TCG_VTPM_PROXY"),
        ({"type": "infiniband"}, 'needs a "nictype"'),
        ({"type": "infiniband", "nictype": "physical", "parent": "ib0"}, "CONFIG_INFINIBAND"),
        ({"type": "nic", "nictype": "ovn"}, 'unsupported nictype "ovn"'),
        ({"type": "nic", "nictype": "macvlan"}, "a value is required"),
        ({"type": "nic", "nictype": "macvlan", "parent": "nope0"}, 'Parent device "nope0" doesn\'t exist'),
        ({"type": "nic", "nictype": "sriov", "parent": "lo"}, "no SR-IOV virtual functions"),
        ({"type": "nic", "nictype": "physical", "parent": "lo"}, "loopback"),
        ({"type": "nic", "nictype": "routed", "ipv4.routes": "198.18.9.0/24"}, "as the next hop"),
        ({"type": "nic", "nictype": "bridged", "parent": "lo"}, "is not a bridge of this host"),
        ({**NIC2, "hwaddr": "01:00:00:00:00:00"}, "multicast"),
        ({**NIC2, "mtu": "12"}, "68 to 65535"),
        ({**NIC2, "vlan": "5000"}, "1 to 4094"),
        ({**NIC2, "vlan.tagged": "1-x"}, "such as 5,10-12"),
        ({**NIC2, "limits.egress": "10furlongs"}, "Invalid rate"),
        ({**NIC2, "ipv4.routes": "198.18.9.1/24"}, "invalid IPv4 subnet"),
        ({**NIC2, "ipv4.address": "fd42::1"}, "invalid IPv4 address"),
    ],
)
async def test_what_this_host_cannot_offer(home: House, entry: dict[str, str], message: str) -> None:
    home.host.nodes.by_path[Path("/dev/char")] = Node("c", 1, 3)
    before = state(home)
    with pytest.raises(FlexdError, match=message):
        await edit(home, x=entry)
    assert state(home) == before


@pytest.mark.parametrize("nictype", ["macvlan", "physical", "bridged", "ipvlan", "sriov"])
async def test_a_parent_that_vanished(home: House, nictype: str) -> None:
    """The start says which interface is missing, and leaves the instance as it was; it starts once that is back."""
    parent = Link("eth9", 99, "bridge" if nictype == "bridged" else "")
    home.host.links.add(parent)
    home.host.links.add(Link("eth9v0", 100))
    home.host.links.functions_of["eth9"] = {0: "eth9v0"}
    await home.act("stop", force=True)
    await edit(home, x={"type": "nic", "nictype": nictype, "parent": "eth9"})
    config, before = home.daemon.instances.show(PROJECT, "c1").config, home.host_state()
    del home.host.links.by_name["eth9"]
    with pytest.raises(FlexdError, match="eth9"):
        await home.act("start")
    assert home.status() == "Stopped"
    assert home.daemon.instances.show(PROJECT, "c1").config == config
    after = home.host_state()
    assert {**after, "links": sorted([*after["links"], "eth9"])} == before  # type: ignore[misc]
    home.host.links.add(parent)
    await home.act("start")
    assert home.status() == "Running"


async def test_what_the_kernel_lacks_is_said(home: House) -> None:
    home.host.links.add(Link("eth9", 99))
    home.host.processes.answer("unshare", Completed(2, b"", b"Error: Unknown device type.\n"))
    for nictype, option in (("ipvlan", "CONFIG_IPVLAN"), ("macvlan", "CONFIG_MACVLAN")):
        with pytest.raises(FlexdError, match=option):
            await edit(home, x={"type": "nic", "nictype": nictype, "parent": "eth9"})
    with pytest.raises(FlexdError, match="CONFIG_BRIDGE_VLAN_FILTERING"):
        await edit(home, x={**NIC2, "vlan": "5"})
    with pytest.raises(FlexdError, match="CONFIG_NET_SCH_TBF"):
        await edit(home, x={**NIC2, "limits.ingress": "1Mbit"})
    home.host.firewall.fault = "nft is not installed"
    with pytest.raises(FlexdError, match="needs nftables: nft is not installed"):
        await edit(home, x={**NIC2, "security.mac_filtering": "true"})


async def _until(check: Callable[[], bool]) -> None:
    for _ in range(2000):
        if check():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


async def test_hardware_comes_and_goes(home: House, tmp_path: Path) -> None:
    await edit(home, stick={"type": "unix-hotplug", "vendorid": "0403"})
    assert home.runtime.mounts_of("c1") == {}
    serial = {"/dev/ttyUSB0": Node("c", 188, 0), "/dev/bus/usb/001/002": Node("c", 189, 1)}
    home.host.nodes.usb["0403", "6001"] = serial
    home.host.nodes.changed()
    await _until(lambda: list(home.runtime.mounts_of("c1")) == ["dev/ttyUSB0"])
    home.host.nodes.usb["0403", "6001"] = {"/dev/ttyUSB0": Node("c", 188, 1)}
    await restart(home, tmp_path)  # while the daemon was away it was plugged in elsewhere
    made = [call for call in home.host.calls if call.method == "nodes.make"]
    assert made[-1].arguments[1] == Node("c", 188, 1)
    del home.host.nodes.usb["0403", "6001"]
    home.host.nodes.changed()
    await _until(lambda: home.runtime.mounts_of("c1") == {})
    await edit(home, stick=None)
    assert home.host.nodes.watches == []


async def test_a_node_made_by_hand(home: House) -> None:
    await edit(home, x={"type": "unix-char", "source": "/dev/late", "required": "false"})
    assert home.host.nodes.watches[0].directories == {Path("/dev")}
    home.host.nodes.by_path[Path("/dev/late")] = Node("c", 10, 1)
    home.host.nodes.changed()
    await _until(lambda: list(home.runtime.mounts_of("c1")) == ["dev/late"])
    await home.act("stop", force=True)
    assert home.host.nodes.watches == []


async def test_a_source_that_comes_later(home: House, tmp_path: Path) -> None:
    source = tmp_path / "a/b/data"
    await edit(home, late={"type": "disk", "source": str(source), "path": "/late", "required": "false"})
    assert home.host.nodes.watches[0].directories == {tmp_path}
    (tmp_path / "a").mkdir()
    home.host.nodes.changed()
    await _until(lambda: home.host.nodes.watches[0].directories == {tmp_path / "a"})
    assert "late" not in home.runtime.mounts_of("c1")
    source.mkdir(parents=True)
    await restart(home, tmp_path)  # it came while the daemon was away
    assert list(home.runtime.mounts_of("c1")) == ["late"]
    await edit(home, late=None)
    assert home.runtime.mounts_of("c1") == {}
    assert home.host.nodes.watches == []


async def test_a_source_that_comes_later_is_seen_at_once(home: House, tmp_path: Path) -> None:
    source = tmp_path / "data"
    await edit(home, late={"type": "disk", "source": str(source), "path": "/late", "optional": "true"})
    source.write_text("a single file")
    home.host.nodes.changed()
    await _until(lambda: list(home.runtime.mounts_of("c1")) == ["late"])
    await home.act("stop", force=True)
    assert home.host.nodes.watches == []


async def test_filters_give_the_instance_its_address_for_good(home: House) -> None:
    await edit(home, eth0={**NIC, "security.ipv4_filtering": "true", "security.ipv6_filtering": "true"})
    config = home.daemon.instances.show(PROJECT, "c1").config
    address = config["volatile.eth0.last_state.ip_addresses"]
    assert address.startswith("198.18.1.")
    (body,) = [body for (family, _), body in home.host.firewall.bodies.items() if family == "bridge"]
    assert f"ip saddr != {{ {address} }} drop" in body
    assert "ether type ip6 drop" in body  # the network has no IPv6
    assert f"ether saddr != {config['volatile.eth0.hwaddr']} drop" in body
    assert home.daemon.ports.ports()["flexbr0"][0].ipv4_address == address
    await edit(home, eth0={**NIC, "security.mac_filtering": "true"})
    (body,) = [body for (family, _), body in home.host.firewall.bodies.items() if family == "bridge"]
    assert "ip saddr" not in body
    await edit(home, eth0=None)
    assert not [family for family, _ in home.host.firewall.bodies if family == "bridge"]


async def test_a_nic_changes_in_place(home: House) -> None:
    created = [call for call in home.host.calls if call.method == "links.create_veth"]
    limited = {**NIC, "limits.max": "8Mbit", "limits.priority": "7", "ipv4.routes": "198.18.50.0/24"}
    await edit(home, eth0=limited)
    (body,) = [body for (family, _), body in home.host.firewall.bodies.items() if family == "netdev"]
    assert "limit rate over 1000000 bytes/second" in body
    assert "meta priority set 0:7" in body
    await edit(home, eth0={**limited, "security.port_isolation": "true", "ipv4.address": "198.18.1.9"})
    programs = [call.arguments for call in home.host.calls if call.method == "processes.run"]
    assert any(words[:2] == ("bridge", "link") and words[-1] == "on" for words in programs)
    assert any(words[:4] == ("ip", "-4", "route", "replace") and "198.18.50.0/24" in words for words in programs)
    await edit(home, eth0=None)
    assert [call for call in home.host.calls if call.method == "links.create_veth"] == created
    assert not [family for family, _ in home.host.firewall.bodies if family == "netdev"]


async def test_a_physical_nic_comes_home(home: House) -> None:
    home.host.links.add(Link("eth9", 99, hwaddr="02:00:00:00:99:99", mtu=1500))
    before = home.host_state()
    entry = {"type": "nic", "nictype": "physical", "parent": "eth9", "name": "eth5", "mtu": "1400"}
    await edit(home, eth9=entry)
    assert inside(home) == ["eth5"]
    config = home.daemon.instances.show(PROJECT, "c1").config
    assert config["volatile.eth9.last_state.mtu"] == "1500"
    await edit(home, eth9={**entry, "boot.priority": "3"})  # it is not on the host now, which is no fault
    await home.act("stop", force=True)
    assert home.host.links.by_name["eth9"].mtu == 1500
    await home.act("start")
    await edit(home, eth9=None)
    assert home.host_state() == before
    assert home.host.links.by_name["eth9"].mtu == 1500
