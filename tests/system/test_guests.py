# SPDX-License-Identifier: Apache-2.0
"""Systems to boot: with systemd old and new, with sysvinit and OpenRC. Each starts, gets an address, runs commands,
reboots from inside and powers off when it is asked to."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.images import debian_image, split_body
from tests.system.init_images import init_image
from tests.system.machine import ApiError, Machine, wait_until

# What a guest's first process is called.
_INITS = {"debian/11": "systemd", "debian/12": "systemd", "debian/13": "systemd", "sysvinit": "init", "openrc": "init"}


@pytest.fixture(params=_INITS)
def guest(tiny: Machine, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a running instance; its image's alias is the parameter."""
    image: str = request.param
    files = debian_image(image) if image.startswith("debian/") else init_image(image)
    fingerprint = tiny.import_body(*split_body(*files))
    name = f"guest-{image.replace('/', '')}"
    try:
        tiny.call("POST", "/1.0/instances", {"name": name, "source": {"type": "image", "fingerprint": fingerprint}})
        tiny.call("PUT", f"/1.0/instances/{name}/state", {"action": "start"})
        yield name
    finally:
        with contextlib.suppress(ApiError):
            tiny.call("PUT", f"/1.0/instances/{name}/state", {"action": "stop", "force": True})
        with contextlib.suppress(ApiError):
            tiny.call("DELETE", f"/1.0/instances/{name}")
        tiny.call("DELETE", f"/1.0/images/{fingerprint}")


def address(machine: Machine, name: str) -> str:
    """Its IPv4 address; "" while it has none."""
    network = machine.get(f"/1.0/instances/{name}/state")["network"] or {}
    found = [each["address"] for each in network.get("eth0", {}).get("addresses", []) if each["family"] == "inet"]
    return str(found[0]) if found else ""


def said(machine: Machine, name: str, *command: str) -> str:
    return machine.lxc("exec", name, "--", *command, check=False).stdout.strip()


def test_a_guest(tiny: Machine, guest: str):
    assert said(tiny, guest, "cat", "/proc/1/comm") == _INITS[guest.removeprefix("guest-").replace("debian", "debian/")]
    assert wait_until(lambda: address(tiny, guest), 120).startswith("198.18.77.")
    assert said(tiny, guest, "hostname") == guest
    if said(tiny, guest, "cat", "/proc/1/comm") == "systemd":
        assert said(tiny, guest, "systemctl", "is-system-running", "--wait") == "running"
        assert said(tiny, guest, "systemctl", "--failed", "--no-legend") == ""
    pid = tiny.get(f"/1.0/instances/{guest}/state")["pid"]
    tiny.lxc("exec", guest, "--", "reboot", check=False)
    wait_until(lambda: tiny.get(f"/1.0/instances/{guest}/state")["pid"] not in (0, pid), 120)
    wait_until(lambda: address(tiny, guest), 120)
    # Not forced: it must end by itself, well within the time.
    tiny.call("PUT", f"/1.0/instances/{guest}/state", {"action": "stop", "timeout": 90})
    assert tiny.get(f"/1.0/instances/{guest}")["status"] == "Stopped"


@pytest.fixture
def old(tiny: Machine) -> Iterator[str]:
    """A root file system that says of itself that it has systemd 215, as Debian 8's does; what runs is busybox."""
    body = {"name": "jessie", "source": {"type": "image", "alias": "tiny"}}
    tiny.call("POST", "/1.0/instances", body)
    tiny.call("PUT", "/1.0/instances/jessie/state", {"action": "start"})
    # The shell does not read on after the second line.
    init = r"#!/bin/sh\nexec /bin/busybox init\n\0systemd 215\0"
    script = f"mkdir -p /lib/systemd; printf '{init}' >/lib/systemd/systemd; chmod 755 /lib/systemd/systemd; "
    script += "rm /sbin/init && ln -s /lib/systemd/systemd /sbin/init"
    tiny.lxc("exec", "jessie", "--", "sh", "-c", script)
    tiny.call("PUT", "/1.0/instances/jessie/state", {"action": "stop", "force": True})
    yield "jessie"
    tiny.lxc("delete", "-f", "jessie")


def test_a_guest_of_before_cgroup_v2(tiny: Machine, old: str):
    if "name=systemd" in Path("/proc/mounts").read_text():
        tiny.call("PUT", f"/1.0/instances/{old}/state", {"action": "start"})
        assert said(tiny, old, "hostname") == old
        return
    with pytest.raises(ApiError, match=r"needs a host with cgroup v1 \(it has systemd 215\)"):
        tiny.call("PUT", f"/1.0/instances/{old}/state", {"action": "start"})
    assert tiny.get(f"/1.0/instances/{old}")["status"] == "Stopped"
