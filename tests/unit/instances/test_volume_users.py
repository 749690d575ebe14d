# SPDX-License-Identifier: Apache-2.0
"""Who attaches a custom volume, and how devices follow it to another name or pool."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from flexd.instances.record import InstanceRecord, ProfileRecord
from flexd.instances.registry import Registry
from flexd.instances.volume_users import VolumeUsers
from flexd.operations.locks import Locks
from flexd.projects.projects import Projects
from flexd.storage.contract import VolumeRecord
from flexd.store.mirror import StoreMirror
from flexd.store.sqlite import SqliteStore

DATA = VolumeRecord("data", "p", "custom")
DISK = {"type": "disk", "pool": "p", "source": "data", "path": "/data"}
OTHER = {"type": "disk", "pool": "q", "source": "data", "path": "/other"}


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    store = await SqliteStore.open(tmp_path / "store.db")
    mirror = await StoreMirror.open(store)
    projects = Projects(mirror, Locks())
    await projects.start()
    registry = Registry(mirror, projects)
    profile = msgspec.convert({"name": "shared", "devices": {"data": DISK}}, ProfileRecord)
    await registry.profiles.create(("default", "shared"), profile)
    entries: dict[str, dict[str, object]] = {
        "own": {"devices": {"data": DISK, "other": OTHER}},
        "by-profile": {"profiles": ["shared"]},
        "nobody": {},
    }
    for name, more in entries.items():
        known = {"name": name, "pool": "p", "architecture": "x86_64", "config": {}, "devices": {}, "profiles": []}
        await registry.instances.create(("default", name), msgspec.convert({**known, **more}, InstanceRecord))
    yield registry
    await mirror.close()
    await store.close()


async def test_running_users(registry: Registry) -> None:
    running = {"own", "by-profile", "nobody"}
    users = VolumeUsers(
        registry=registry, projects=registry._projects, is_running=lambda record: record.name in running
    )
    assert users.running(DATA) == ["/1.0/instances/by-profile", "/1.0/instances/own"]
    running.clear()
    assert users.running(DATA) == []
    assert users.running(msgspec.structs.replace(DATA, project="web")) == []


async def test_devices_follow(registry: Registry) -> None:
    users = VolumeUsers(registry=registry, projects=registry._projects, is_running=lambda _record: False)
    new = msgspec.structs.replace(DATA, name="more", pool="r")
    for _ in range(2):
        await users.rewrite(DATA, new)
    moved = {**DISK, "pool": "r", "source": "more"}
    assert registry.instance("default", "own").devices == {"data": moved, "other": OTHER}
    assert registry.find_profile("default", "shared").value.devices == {"data": moved}
    await users.rewrite(new, DATA)
    assert registry.instance("default", "own").devices == {"data": DISK, "other": OTHER}
