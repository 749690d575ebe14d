# SPDX-License-Identifier: Apache-2.0
"""Each `restricted.*` key: what it keeps away, and with which value it doesn't."""

import pytest

from flexd.instances.restrictions import device_fault, disk_parent, faults, volatile_faults
from flexd.projects.keys import KEYS, Rules

Device = dict[str, str]
INTERCEPT = "security.syscalls.intercept."

# Key, configuration or device that it is about, other settings of the project, the value that allows it.
CONFIG: list[tuple[str, dict[str, str], dict[str, str], str]] = [
    ("containers.interception", {f"{INTERCEPT}mknod": "true"}, {}, "allow"),
    ("containers.interception", {f"{INTERCEPT}setxattr": "true"}, {}, "allow"),
    ("containers.interception", {f"{INTERCEPT}mount": "true"}, {}, "allow"),
    ("containers.interception", {f"{INTERCEPT}mount.allowed": "ext4"}, {}, "full"),
    ("containers.interception", {f"{INTERCEPT}mount.shift": "true"}, {}, "full"),
    ("containers.interception", {f"{INTERCEPT}sched_setscheduler": "true"}, {}, "full"),
    ("containers.lowlevel", {"raw.lxc": "lxc.environment=A=b"}, {}, "allow"),
    ("containers.lowlevel", {"raw.apparmor": "mount,"}, {}, "allow"),
    ("containers.lowlevel", {"raw.seccomp": "2"}, {}, "allow"),
    ("containers.lowlevel", {"raw.idmap": "both 1000 1000"}, {}, "allow"),
    ("containers.lowlevel", {"boot.host_shutdown_timeout": "9000"}, {}, "allow"),
    ("containers.lowlevel", {"limits.kernel.memlock": "unlimited"}, {}, "allow"),
    ("containers.lowlevel", {"linux.kernel_modules": "dummy"}, {}, "allow"),
    ("containers.lowlevel", {"security.devlxd.images": "true"}, {}, "allow"),
    ("containers.lowlevel", {"security.idmap.base": "0"}, {}, "allow"),
    ("containers.lowlevel", {"security.idmap.size": "1000000"}, {}, "allow"),
    ("containers.lowlevel", {"security.syscalls.deny_default": "false"}, {}, "allow"),
    ("containers.nesting", {"security.nesting": "true"}, {}, "allow"),
    ("containers.privilege", {"security.privileged": "true"}, {}, "allow"),
    ("idmap.uid", {"raw.idmap": "uid 1000 1000"}, {"idmap.gid": "5"}, "1000-1001"),
    ("idmap.gid", {"raw.idmap": "gid 1000 1000"}, {"idmap.uid": "5"}, "900-1000"),
]
DEVICES: list[tuple[str, Device, dict[str, str], str]] = [
    ("devices.disk", {"type": "disk", "path": "/x", "source": "/srv"}, {}, "allow"),
    ("devices.disk", {"type": "disk", "path": "/x", "source": "tmpfs:"}, {}, "allow"),
    ("devices.gpu", {"type": "gpu"}, {}, "allow"),
    ("devices.infiniband", {"type": "infiniband", "parent": "ib0"}, {}, "allow"),
    ("devices.nic", {"type": "nic", "nictype": "bridged", "parent": "br0"}, {}, "allow"),
    ("devices.nic", {"type": "nic", "nictype": "p2p"}, {}, "allow"),
    ("devices.nic", {"type": "nic", "network": "br0", "ipv4.routes": "192.0.2.0/24"}, {}, "allow"),
    ("devices.pci", {"type": "pci", "address": "00:00.0"}, {}, "allow"),
    ("devices.proxy", {"type": "proxy", "listen": "tcp:[::1]:1", "connect": "tcp:[::1]:2"}, {}, "allow"),
    ("devices.unix-block", {"type": "unix-block", "path": "/dev/sda"}, {}, "allow"),
    ("devices.unix-char", {"type": "unix-char", "path": "/dev/null"}, {}, "allow"),
    ("devices.unix-hotplug", {"type": "unix-hotplug", "vendorid": "1"}, {}, "allow"),
    ("devices.usb", {"type": "usb"}, {}, "allow"),
    ("devices.disk.paths", {"type": "disk", "path": "/x", "source": "/srv/a"}, {"devices.disk": "allow"}, "/srv"),
    ("networks.access", {"type": "nic", "network": "br0"}, {}, "br1, br0"),
    ("networks.access", {"type": "nic", "nictype": "bridged", "parent": "br0"}, {"devices.nic": "allow"}, "br0"),
    ("storage-pools.access", {"type": "disk", "path": "/", "pool": "ssd"}, {}, "ssd"),
]
# What forbids where nothing is set is a value of its own here.
FORBIDDING = {
    "devices.disk.paths": "/home",
    "idmap.gid": "5",
    "idmap.uid": "5",
    "networks.access": "br9",
    "storage-pools.access": "hdd",
}
# Tested elsewhere: by what they are asked for.
ASKED_ELSEWHERE = {
    "backups",
    "cluster.groups",
    "cluster.target",
    "images.servers",
    "snapshots",
}
# Nothing here can do what they forbid: there are no networks but bridges in `default`, and no virtual machines.
WITHOUT_OBJECT = {
    "networks.subnets",
    "networks.uplinks",
    "networks.zones",
    "virtual-machines.lowlevel",
    "virtual-machines.nesting",
}


def rules(**values: str) -> Rules:
    return Rules("p", {"restricted": "true", **{f"restricted.{key}": value for key, value in values.items() if value}})


def found(project: Rules, config: dict[str, str], devices: dict[str, Device], *, whole: bool = True) -> list[str]:
    return faults(project, 'container "c1"', config, devices, whole=whole)


def test_no_key_is_forgotten():
    known = {key.name.removeprefix("restricted.") for key in KEYS if key.name.startswith("restricted.")}
    tested = {row[0] for row in (*CONFIG, *DEVICES)}
    assert tested | ASKED_ELSEWHERE | WITHOUT_OBJECT == known


@pytest.mark.parametrize(("key", "config", "others", "allowing"), CONFIG)
def test_configuration(key: str, config: dict[str, str], others: dict[str, str], allowing: str):
    (message,) = found(rules(**{**others, key: FORBIDDING.get(key, "")}), config, {})
    assert 'on container "c1" of project "p"' in message
    assert f"restricted.{key}" in message
    assert found(rules(**{**others, key: allowing}), config, {}) == []
    assert faults(rules(**others), 'profile "x"', config, {}, whole=False)
    assert found(Rules("p", {}), config, {}) == []
    assert found(Rules("p", {"restricted": "false", f"restricted.{key}": "block"}), config, {}) == []


@pytest.mark.parametrize(("key", "device", "others", "allowing"), DEVICES)
def test_devices(key: str, device: Device, others: dict[str, str], allowing: str):
    (message,) = found(rules(**{**others, key: FORBIDDING.get(key, "")}), {}, {"d": device})
    assert message.startswith('Invalid device "d" on container "c1" of project "p": ')
    assert f"restricted.{key}" in message
    assert found(rules(**{**others, key: allowing}), {}, {"d": device}) == []
    assert found(Rules("p", {}), {}, {"d": device}) == []


@pytest.mark.parametrize(
    "config",
    [
        {"security.nesting": "false", "security.privileged": "0"},
        {f"{INTERCEPT}mknod": "false"},
        {"raw.lxc": "", "linux.kernel_modules": ""},
        {"limits.memory": "1GiB", "limits.cpu": "2", "boot.autostart": "true", "user.x": "y", "environment.A": "b"},
        {"linux.sysctl.net.ipv4.ip_forward": "1", "security.protection.delete": "true", "snapshots.schedule": "@daily"},
        {"volatile.uuid": "x", "image.os": "debian", "cloud-init.user-data": "#cloud-config"},
    ],
)
def test_what_is_harmless(config: dict[str, str]):
    assert found(rules(), config, {}) == []


@pytest.mark.parametrize(
    "device",
    [
        {"type": "none"},
        {"type": "tpm", "path": "/dev/tpm0"},
        {"type": "disk", "path": "/", "pool": "default"},
        {"type": "disk", "path": "/x", "pool": "default", "source": "data"},
        {"type": "nic", "network": "br0", "ipv4.address": "192.0.2.2"},
    ],
)
def test_devices_that_are_harmless(device: Device):
    assert found(rules(), {}, {"d": device}) == []


@pytest.mark.parametrize("kind", ["disk", "nic"])
def test_block_leaves_no_device_but_the_root(kind: str):
    project = rules(**{f"devices.{kind}": "block"})
    managed = {"disk": {"path": "/x", "pool": "p", "source": "v"}, "nic": {"network": "br0"}}[kind]
    assert device_fault(project, {"type": kind, **managed}) is not None
    assert device_fault(project, {"type": "disk", "path": "/", "pool": "p"}) is None


def test_a_kind_that_nobody_thought_of_is_forbidden():
    assert device_fault(rules(), {"type": "teleporter"}) is not None


def test_isolated_wants_every_instance_to_say_so():
    project = rules(**{"containers.privilege": "isolated"})
    assert found(project, {"security.idmap.isolated": "true"}, {}) == []
    for config in ({}, {"security.idmap.isolated": "false"}, {"security.privileged": "true"}):
        assert any("Non-isolated" in message for message in found(project, config, {}))
    assert found(project, {}, {}, whole=False) == []


def test_all_that_is_wrong_is_told_at_once():
    config = {"security.nesting": "true", "raw.lxc": "lxc.uts.name=x"}
    assert len(found(rules(), config, {"a": {"type": "gpu"}, "b": {"type": "usb"}})) == 4


@pytest.mark.parametrize(
    ("source", "parent"),
    [
        ("/srv/a", "/srv/a"),
        ("/srv/a/", "/srv/a"),
        ("/srv/a/b/c", "/srv/a"),
        ("//srv/./a/b", "/srv/a"),
        ("/srv/ab", None),
        ("/srv", None),
        ("/srv/a/../../etc", None),
        ("/home/x", "/home"),
        ("/etc", None),
    ],
)
def test_paths_that_disks_may_use(source: str, parent: str | None):
    project = rules(**{"devices.disk": "allow", "devices.disk.paths": "/srv/a,/home/"})
    assert disk_parent(project, source) == parent
    assert (device_fault(project, {"type": "disk", "path": "/x", "source": source}) is None) == (parent is not None)


def test_every_path_where_none_is_listed():
    assert disk_parent(rules(**{"devices.disk": "allow"}), "/etc") == "/"
    assert disk_parent(Rules("p", {"restricted.devices.disk.paths": "/srv"}), "/etc") == "/"
    assert disk_parent(rules(**{"devices.disk.paths": "/"}), "/etc") == "/"


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("uid 1000 0", True),
        ("uid 1000-1009 0-9", True),
        ("uid 1009-1010 0-1", False),
        ("uid 999 0", False),
        ("gid 50 0", True),
        ("gid 1000 0", False),
        ("both 1000 0", False),
    ],
)
@pytest.mark.parametrize("lowlevel", ["allow", "block"])
def test_host_ids_within_ranges(line: str, allowed: bool, lowlevel: str):
    """Where ranges are set they count, whatever low-level options are allowed."""
    project = rules(**{"idmap.uid": "1000-1009", "idmap.gid": "50", "containers.lowlevel": lowlevel})
    assert (found(project, {"raw.idmap": line}, {}) == []) == allowed


def test_volatile_keys_are_sent_back_but_not_set():
    known = {"volatile.eth0.hwaddr": "00:16:3e:00:00:01"}
    assert volatile_faults(rules(), "c", known | {"user.x": "1", "volatile.base_image": "f"}, known) == []
    for sent in ({"volatile.eth0.hwaddr": "00:16:3e:00:00:02"}, {"volatile.idmap.next": "[]"}):
        (message,) = volatile_faults(rules(), "c", sent, known)
        assert "is forbidden" in message
        assert volatile_faults(rules(**{"containers.lowlevel": "allow"}), "c", sent, known) == []
        assert volatile_faults(Rules("p", {}), "c", sent, known) == []
