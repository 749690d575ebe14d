# SPDX-License-Identifier: Apache-2.0
"""Custom volumes with Debian's `lxc`: snapshots, copies, moves, shared by containers, on every pool driver."""

import json
from collections.abc import Iterator

import pytest

from tests.system.machine import ApiError, Machine

POOLS = {
    "vols-overlay": {"driver": "overlay"},
    "vols-dir": {"driver": "dir"},
    "vols-btrfs": {"driver": "btrfs", "config": {"size": "512MiB"}},
}


@pytest.fixture(params=sorted(POOLS))
def pool(tiny: Machine, request: pytest.FixtureRequest) -> Iterator[str]:
    name: str = request.param
    try:
        tiny.call("POST", "/1.0/storage-pools", {"name": name, **POOLS[name]})
    except ApiError as error:
        pytest.skip(f"no {POOLS[name]['driver']} pool here: {error}")
    yield name
    for instance in tiny.get("/1.0/instances?recursion=1"):
        if instance["name"].startswith("vol-"):
            tiny.lxc("delete", "-f", instance["name"])
    for volume in tiny.get(f"/1.0/storage-pools/{name}/volumes/custom"):
        if "/snapshots/" not in volume:
            tiny.call("DELETE", volume)
    tiny.call("DELETE", f"/1.0/storage-pools/{name}")


def _run(machine: Machine, name: str, script: str) -> str:
    return machine.lxc("exec", name, "--", "sh", "-c", script).stdout.strip()


def test_a_volume_is_shared_snapshotted_and_restored(tiny: Machine, pool: str):
    tiny.lxc("storage", "volume", "create", pool, "data")
    for name in ("vol-a", "vol-b"):
        tiny.lxc("launch", "tiny", name)
        tiny.lxc("config", "device", "add", name, "data", "disk", f"pool={pool}", "source=data", "path=/data")
        if _run(tiny, name, "grep -c ' /data ' /proc/mounts || true") == "0":
            tiny.lxc("restart", "-f", name)
    _run(tiny, "vol-a", "echo one >/data/text; mkdir /data/dir; chown 5:6 /data/dir")
    assert _run(tiny, "vol-b", "cat /data/text; stat -c %u:%g /data/dir") == "one\n5:6"
    tiny.lxc("storage", "volume", "snapshot", pool, "data")
    _run(tiny, "vol-b", "echo two >/data/text; rmdir /data/dir")
    refused = tiny.lxc("storage", "volume", "restore", pool, "data", "snap0", check=False)
    assert "used by running instances" in refused.stderr
    tiny.lxc("stop", "-f", "vol-a", "vol-b")
    tiny.lxc("storage", "volume", "restore", pool, "data", "snap0")
    tiny.lxc("storage", "volume", "rename", pool, "data", "renamed")
    tiny.lxc("start", "vol-a", "vol-b")
    assert _run(tiny, "vol-a", "cat /data/text; stat -c %u:%g /data/dir") == "one\n5:6"
    assert _run(tiny, "vol-b", "cat /data/text") == "one"


def test_copies_and_moves(tiny: Machine, pool: str):
    tiny.lxc("storage", "volume", "create", pool, "data", "user.x=1")
    tiny.lxc("storage", "volume", "snapshot", pool, "data", "first")
    tiny.lxc("storage", "volume", "copy", f"{pool}/data", f"{pool}/near")
    tiny.lxc("storage", "volume", "copy", f"{pool}/data", "default/far")
    tiny.lxc("storage", "volume", "copy", f"{pool}/data/first", f"{pool}/past")
    tiny.lxc("storage", "volume", "snapshot", pool, "data", "second")
    tiny.lxc("storage", "volume", "copy", f"{pool}/data", f"{pool}/near", "--refresh")
    listed = json.loads(tiny.lxc("storage", "volume", "list", pool, "--format", "json").stdout)
    assert sorted(volume["name"] for volume in listed) == [
        "data", "data/first", "data/second", "near", "near/first", "near/second", "past",
    ]  # fmt: skip
    tiny.lxc("storage", "volume", "move", "default/far", f"{pool}/far")
    assert tiny.get(f"/1.0/storage-pools/{pool}/volumes/custom/far")["config"]["user.x"] == "1"
    assert tiny.get("/1.0/storage-pools/default/volumes/custom") == []
    tiny.lxc("storage", "volume", "delete", pool, "data/first")
    assert "second" in tiny.lxc("storage", "volume", "info", pool, "data").stdout


def test_a_block_volume_is_not_for_containers(tiny: Machine, pool: str):
    tiny.lxc("storage", "volume", "create", pool, "disk", "--type=block", "size=16MiB")
    shown = tiny.get(f"/1.0/storage-pools/{pool}/volumes/custom/disk")
    assert (shown["content_type"], shown["config"]["size"]) == ("block", "16MiB")
    tiny.lxc("init", "tiny", "vol-c")
    device = ("config", "device", "add", "vol-c", "disk", "disk", f"pool={pool}", "source=disk", "path=/d")
    refused = tiny.lxc(*device, check=False)
    assert refused.returncode != 0
    assert "block" in refused.stderr
