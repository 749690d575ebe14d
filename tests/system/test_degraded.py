# SPDX-License-Identifier: Apache-2.0
"""Hosts that lack things: flexd starts, containers start, and warnings say what is missing until it is there."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.images import tiny_image
from tests.system.machine import ApiError, Machine, wait_until

# A file without execute bits in a program's place: nobody finds the program any more.
_HIDE = 'for place do mount --bind /dev/null "$place" || exit 1; done'

# The host's may be there, not there, or dead.
_OWN_LXCFS = """umount --lazy /var/lib/lxcfs 2>/dev/null
mkdir -p /var/lib/lxcfs && mount --bind "$1" /var/lib/lxcfs"""


class Poor(Machine):
    """A daemon with a mount namespace of its own, in which programs are hidden and lxcfs is this test's."""

    def __init__(self, directory: Path, *hidden: str) -> None:
        self._hidden = [found for name in hidden if (found := shutil.which(name)) is not None]
        self.lxcfs = directory.parent / f"{directory.name}-lxcfs"
        self.lxcfs.mkdir()
        super().__init__(directory)

    def _open_namespaces(self) -> "subprocess.Popen[bytes]":
        anchor = super()._open_namespaces()
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sleep", "infinity"], stdin=subprocess.DEVNULL
        )
        own = os.readlink("/proc/self/ns/mnt")
        wait_until(lambda: os.readlink(f"/proc/{self._keeper.pid}/ns/mnt") != own)
        self.inside(_OWN_LXCFS, str(self.lxcfs))
        self.inside(_HIDE, *self._hidden)
        return anchor

    def inside(self, script: str, *arguments: str) -> None:
        """A shell script as root, in the daemon's mount namespace."""
        enter = ["nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt", "--"]
        subprocess.run([*enter, "sh", "-c", script, "sh", *arguments], check=True, stdin=subprocess.DEVNULL)

    def _daemon(self) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt", "--", *super()._daemon()]

    def _close_namespaces(self) -> None:
        super()._close_namespaces()
        self._keeper.kill()
        self._keeper.wait()

    def warnings(self) -> dict[str, dict[str, Any]]:
        return {warning["type"]: warning for warning in self.get("/1.0/warnings?recursion=1")}


@contextlib.contextmanager
def poor(place: Path, *hidden: str) -> Iterator[Poor]:
    made = Poor(place, *hidden)
    try:
        made.start()
        made.call("POST", "/1.0/storage-pools", {"name": "default", "driver": "overlay"})
        devices = {"root": {"type": "disk", "path": "/", "pool": "default"}}
        made.call("PUT", "/1.0/profiles/default", {"devices": devices})
        made.import_image(tiny_image(), "tiny")
        yield made
    finally:
        left = made.stop()
    assert left == [], left


def launch(machine: Machine, name: str, **fields: object) -> None:
    source = {"type": "image", "alias": "tiny"}
    machine.call("POST", "/1.0/instances", {"name": name, "source": source, **fields})
    machine.call("PUT", f"/1.0/instances/{name}/state", {"action": "start"})


def refreshed(machine: Poor) -> dict[str, dict[str, Any]]:
    """Warnings as a daemon sees them that has just started."""
    machine.restart()
    return machine.warnings()


def test_without_dnsmasq_nft_and_lxcfs(state_root: Path) -> None:
    with poor(state_root / "poor", "dnsmasq", "nft") as machine:
        found = machine.warnings()
        for name in ("dnsmasq", "nft", "lxcfs"):
            assert found[f"Missing {name}"]["status"] == "new"
            assert found[f"Missing {name}"]["severity"] == "low"
        listed = machine.lxc("warning", "list", "--format", "csv").stdout
        assert "Missing dnsmasq,NEW,LOW," in listed
        machine.lxc("warning", "acknowledge", found["Missing nft"]["uuid"])
        assert machine.warnings()["Missing nft"]["status"] == "acknowledged"
        launch(machine, "alone")
        assert machine.lxc("exec", "alone", "--", "hostname").stdout == "alone\n"
        with pytest.raises(ApiError, match=r'network "flexbr0".*dnsmasq'):
            machine.call("POST", "/1.0/networks", {"name": "flexbr0", "config": {"ipv4.address": "198.18.64.1/24"}})
        assert "flexbr0" not in str(machine.get("/1.0/networks"))
        machine.inside('for place do umount "$place" || exit 1; done', *machine._hidden)
        found = refreshed(machine)
        assert found["Missing dnsmasq"]["status"] == found["Missing nft"]["status"] == "resolved"
        assert found["Missing lxcfs"]["status"] == "new"
        machine.call("POST", "/1.0/networks", {"name": "flexbr0", "config": {"ipv4.address": "198.18.64.1/24"}})


def test_a_bridge_without_addresses_needs_neither(state_root: Path) -> None:
    with poor(state_root / "bare", "dnsmasq", "nft") as machine:
        config = {"ipv4.address": "none", "ipv6.address": "none"}
        machine.call("POST", "/1.0/networks", {"name": "flexbr0", "config": config})
        launch(machine, "plugged", devices={"eth0": {"type": "nic", "network": "flexbr0", "name": "eth0"}})
        assert "eth0" in machine.lxc("exec", "plugged", "--", "ip", "link").stdout


def test_dnsmasq_was_uninstalled(state_root: Path) -> None:
    """A network that cannot be served after a restart stops neither the daemon nor containers that do without it."""
    with poor(state_root / "gone") as machine:
        machine.call("POST", "/1.0/networks", {"name": "flexbr0", "config": {"ipv4.address": "198.18.66.1/24"}})
        nic = {"eth0": {"type": "nic", "network": "flexbr0", "name": "eth0"}}
        launch(machine, "plugged", devices=nic)
        machine.call("PUT", "/1.0/instances/plugged/state", {"action": "stop", "force": True})
        machine.kill()
        machine.inside(_HIDE, shutil.which("dnsmasq") or "")
        subprocess.run([*machine.enter(), "ip", "link", "delete", "flexbr0"], check=True)
        machine.start()
        assert machine.get("/1.0/networks/flexbr0")["status"] == "Unavailable"
        assert 'Network "flexbr0" is unavailable' in str(machine.warnings())
        launch(machine, "alone")
        with pytest.raises(ApiError, match=r'etwork "flexbr0" is unavailable.*dnsmasq'):
            machine.call("PUT", "/1.0/instances/plugged/state", {"action": "start"})
        machine.inside('umount "$1"', shutil.which("dnsmasq") or "")
        wait_until(lambda: machine.get("/1.0/networks/flexbr0")["status"] == "Created", 90)
        machine.call("PUT", "/1.0/instances/plugged/state", {"action": "start"})


def test_lxcfs_dies_and_comes_back(state_root: Path) -> None:
    program = shutil.which("lxcfs")
    if program is None or not os.path.exists("/dev/fuse"):
        pytest.skip("there is no lxcfs or no /dev/fuse")
    with poor(state_root / "lxcfs") as machine:
        process = _start_lxcfs(machine, program)
        try:
            assert refreshed(machine).get("Missing lxcfs", {"status": "resolved"})["status"] == "resolved"
            launch(machine, "seen")
            assert "fuse.lxcfs" in machine.lxc("exec", "seen", "--", "cat", "/proc/mounts").stdout
        finally:
            process.kill()
            process.wait()
        died = refreshed(machine)["Missing lxcfs"]
        assert died["status"] == "new"
        launch(machine, "unseen")
        assert "fuse.lxcfs" not in machine.lxc("exec", "unseen", "--", "cat", "/proc/mounts").stdout
        machine.inside("umount --lazy /var/lib/lxcfs")
        process = _start_lxcfs(machine, program)
        try:
            assert {warning["status"] for warning in refreshed(machine).values() if "lxcfs" in warning["type"]} == {
                "resolved"
            }
        finally:
            process.kill()
            process.wait()


def _start_lxcfs(machine: Poor, program: str) -> "subprocess.Popen[bytes]":
    enter = ["nsenter", f"--mount=/proc/{machine._keeper.pid}/ns/mnt", "--"]
    process = subprocess.Popen(
        [*enter, program, "--foreground", "--pidfile", f"{machine.lxcfs}.pid", "/var/lib/lxcfs"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: Path(f"/proc/{machine._keeper.pid}/root/var/lib/lxcfs/proc/uptime").exists())
    return process
