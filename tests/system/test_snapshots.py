# SPDX-License-Identifier: Apache-2.0
"""Snapshots, restore and copies with Debian's `lxc`, on every pool driver that this host can run."""

import json
from collections.abc import Iterator

import pytest

from tests.system.machine import ApiError, Machine


@pytest.fixture(params=["default", "plain", "tree"])
def pool(tiny: Machine, request: pytest.FixtureRequest) -> Iterator[str]:
    """A pool of each driver: overlay, dir, btrfs (on a loop file)."""
    drivers = {"plain": {"driver": "dir"}, "tree": {"driver": "btrfs", "config": {"size": "1GiB"}}}
    if request.param in drivers:
        try:
            tiny.call("POST", "/1.0/storage-pools", {"name": request.param, **drivers[request.param]})
        except ApiError as error:
            pytest.skip(f"no {drivers[request.param]['driver']} pool here: {error}")
    yield request.param
    for instance in tiny.get("/1.0/instances?recursion=1"):
        if instance["name"].startswith("snap-"):
            tiny.lxc("delete", "-f", instance["name"])
    if request.param in drivers:
        tiny.call("DELETE", f"/1.0/storage-pools/{request.param}")


def _read(machine: Machine, name: str) -> str:
    return machine.lxc("exec", name, "--", "cat", "/root/state").stdout.strip()


def _write(machine: Machine, name: str, text: str) -> None:
    machine.lxc("exec", name, "--", "sh", "-c", f"echo {text} > /root/state")


def test_snapshots_of_a_running_instance(tiny: Machine, pool: str):
    name = f"snap-{pool}"
    tiny.lxc("launch", "tiny", name, "-s", pool)
    _write(tiny, name, "one")
    tiny.lxc("exec", name, "--", "rm", "/etc/hosts", check=False)
    tiny.lxc("snapshot", name)
    _write(tiny, name, "two")
    tiny.lxc("exec", name, "--", "sh", "-c", "echo new > /root/new; mkdir /root/dir")
    tiny.lxc("snapshot", name, "second")
    _write(tiny, name, "three")
    listed = json.loads(tiny.lxc("list", name, "--format", "json").stdout)[0]
    assert [snapshot["name"] for snapshot in listed["snapshots"]] == ["snap0", "second"]
    tiny.lxc("restore", name, "snap0")
    assert _read(tiny, name) == "one"
    assert tiny.lxc("exec", name, "--", "test", "-e", "/root/new", check=False).returncode == 1
    tiny.lxc("restore", name, "second")
    assert _read(tiny, name) == "two"
    tiny.lxc("delete", f"{name}/snap0")
    tiny.lxc("restore", name, "second")
    assert (_read(tiny, name), tiny.lxc("exec", name, "--", "cat", "/root/new").stdout) == ("two", "new\n")


def test_copies(tiny: Machine, pool: str):
    name, copy, past = f"snap-{pool}", f"snap-{pool}-copy", f"snap-{pool}-past"
    tiny.lxc("launch", "tiny", name, "-s", pool)
    _write(tiny, name, "one")
    tiny.lxc("snapshot", name, "s")
    _write(tiny, name, "two")
    tiny.lxc("copy", name, copy)
    tiny.lxc("copy", f"{name}/s", past)
    tiny.lxc("start", copy, past)
    assert (_read(tiny, copy), _read(tiny, past)) == ("two", "one")
    _write(tiny, copy, "changed")
    assert _read(tiny, name) == "two"
    tiny.lxc("restore", copy, "s")
    assert _read(tiny, copy) == "one"
    owner = tiny.lxc("exec", past, "--", "stat", "-c", "%u:%g", "/root/state").stdout.strip()
    assert owner == "0:0"


def test_copy_to_another_pool(tiny: Machine, pool: str):
    if pool == "default":
        pytest.skip("the same pool")
    tiny.lxc("launch", "tiny", "snap-there")
    _write(tiny, "snap-there", "one")
    tiny.lxc("snapshot", "snap-there", "s")
    _write(tiny, "snap-there", "two")
    tiny.lxc("copy", "snap-there", "snap-here", "-s", pool)
    tiny.lxc("start", "snap-here")
    assert _read(tiny, "snap-here") == "two"
    tiny.lxc("restore", "snap-here", "s")
    assert _read(tiny, "snap-here") == "one"
    tiny.lxc("stop", "-f", "snap-here")
    tiny.lxc("copy", "snap-there", "snap-here", "-s", pool, "--refresh", "--instance-only")
    tiny.lxc("start", "snap-here")
    assert _read(tiny, "snap-here") == "two"
