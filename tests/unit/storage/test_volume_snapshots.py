# SPDX-License-Identifier: Apache-2.0
"""Snapshots and copies of custom volumes, block and ISO volumes, and what the clock does."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, Conflict, NotFound
from flexd.api.idmap import IdMap
from flexd.api.storage_pool import StoragePoolsPost
from flexd.api.storage_volume import (
    StorageVolumePost,
    StorageVolumePut,
    StorageVolumeSnapshotPost,
    StorageVolumeSnapshotPut,
    StorageVolumeSnapshotsPost,
    StorageVolumeSource,
    StorageVolumesPost,
)
from flexd.api.times import ZERO_TIME, now
from flexd.host.contract import HostError
from flexd.storage import drivers
from flexd.storage.contract import SnapshotNotFound, VolumeRef
from tests.unit.storage.conftest import Daemon

DATA = ("p", "custom", "default", "data")
REF = VolumeRef("p", "custom", "data")


@pytest.fixture(params=drivers.names())
async def made(daemon: Daemon, request: pytest.FixtureRequest) -> Daemon:
    """Pools `p` of every driver and `q`, and a volume."""
    await daemon.pools.create(StoragePoolsPost(name="p", driver=request.param))
    await daemon.pools.create(StoragePoolsPost(name="q", driver="dir"))
    await daemon.volumes.create("p", "default", StorageVolumesPost(name="data", type="custom"))
    for _ in range(3):
        await daemon.next_event()
    return daemon


async def write(daemon: Daemon, text: str, ref: VolumeRef = REF) -> None:
    path = await daemon.pools.mount(ref, IdMap())
    await asyncio.to_thread((path / "text").write_text, text)


async def read(daemon: Daemon, ref: VolumeRef = REF) -> str:
    path = await daemon.pools.mount(ref, IdMap())
    return await asyncio.to_thread((path / "text").read_text)


async def take(daemon: Daemon, name: str = "snap0") -> None:
    await daemon.finish(await daemon.snapshots.create(DATA, StorageVolumeSnapshotsPost(name=name)))


async def copy(daemon: Daemon, name: str, pool: str = "p", target: str = "more", **source: bool) -> None:
    given = StorageVolumeSource(type="copy", name=name, pool="p", **source)
    post = StorageVolumesPost(name=target, type="custom", source=given)
    await daemon.finish(await daemon.volumes.create(pool, "default", post))


async def test_a_snapshot_is_shown(made: Daemon) -> None:
    await made.volumes.update(*DATA, StorageVolumePut({"snapshots.expiry": "1d"}))
    await take(made)
    shown = made.snapshots.show(DATA, "snap0")
    assert (shown.name, shown.content_type) == ("snap0", "filesystem")
    assert shown.expires_at - shown.created_at == timedelta(days=1)
    assert made.snapshots.names(DATA) == ["snap0"]
    assert [found.name for found in made.snapshots.show_all(DATA)] == ["data/snap0"]
    assert [volume.name for volume in made.volumes.show_all("p", "default")] == ["data", "data/snap0"]
    assert (await made.next_event()).metadata["action"] == "storage-volume-updated"
    event = await made.next_event()
    assert event.metadata["action"] == "storage-volume-snapshot-created"
    assert event.metadata["source"] == "/1.0/storage-pools/p/volumes/custom/data/snapshots/snap0"


async def test_names_follow_a_pattern(made: Daemon) -> None:
    for _ in range(2):
        await made.finish(await made.snapshots.create(DATA, StorageVolumeSnapshotsPost()))
    await made.volumes.update(*DATA, StorageVolumePut({"snapshots.pattern": "daily%d"}))
    await made.finish(await made.snapshots.create(DATA, StorageVolumeSnapshotsPost()))
    assert made.snapshots.names(DATA) == ["snap0", "snap1", "daily0"]


async def test_a_name_is_taken_once(made: Daemon) -> None:
    await take(made)
    with pytest.raises(Conflict, match='Snapshot "snap0" of storage volume "data" already exists'):
        await made.snapshots.create(DATA, StorageVolumeSnapshotsPost(name="snap0"))
    with pytest.raises(BadRequest, match="Invalid snapshot name"):
        await made.snapshots.create(DATA, StorageVolumeSnapshotsPost(name="a/b"))


async def test_editing_renaming_deleting(made: Daemon) -> None:
    await take(made)
    end = datetime(2030, 1, 1, tzinfo=UTC)
    await made.snapshots.update(DATA, "snap0", StorageVolumeSnapshotPut("mine", end))
    shown = made.snapshots.show(DATA, "snap0")
    assert (shown.description, shown.expires_at) == ("mine", end)
    await made.finish(await made.snapshots.rename(DATA, "snap0", StorageVolumeSnapshotPost("before")))
    assert made.snapshots.show(DATA, "before").description == "mine"
    await made.finish(await made.snapshots.delete(DATA, "before"))
    assert made.snapshots.names(DATA) == []
    with pytest.raises(SnapshotNotFound, match="Storage volume snapshot not found"):
        await made.snapshots.delete(DATA, "before")


async def test_restoring(made: Daemon) -> None:
    await write(made, "one")
    await take(made)
    await write(made, "two")
    made.running["data"] = ["/1.0/instances/c1"]
    with pytest.raises(BadRequest, match="Cannot restore custom volume used by running instances"):
        await made.snapshots.restore(DATA, "snap0")
    made.running.clear()
    await made.snapshots.restore(DATA, "snap0")
    assert await read(made) == "one"
    with pytest.raises(SnapshotNotFound):
        await made.snapshots.restore(DATA, "snap1")


async def test_snapshots_go_along(made: Daemon) -> None:
    await take(made)
    await made.volumes.rename(*DATA, StorageVolumePost(name="more"))
    assert made.snapshots.names((*DATA[:3], "more")) == ["snap0"]
    await made.volumes.delete(*DATA[:3], "more")
    assert made.volumes.show_all("p", "default") == []
    await made.pools.delete("p")


async def test_a_snapshot_is_no_volume(made: Daemon) -> None:
    await take(made)
    for call in (made.volumes.delete(*DATA[:3], "data@snap0"), made.volumes.state(*DATA[:3], "data@snap0")):
        with pytest.raises(NotFound):
            await call
    assert made.snapshots.names(DATA) == ["snap0"]


@pytest.mark.parametrize("pool", ["p", "q"])
async def test_copies(made: Daemon, pool: str) -> None:
    await write(made, "one")
    await take(made)
    await write(made, "two")
    await copy(made, "data", pool)
    more = (pool, "custom", "default", "more")
    assert await read(made, VolumeRef(pool, "custom", "more")) == "two"
    assert made.snapshots.names(more) == ["snap0"]
    assert made.snapshots.show(more, "snap0").created_at == made.snapshots.show(DATA, "snap0").created_at
    await made.snapshots.restore(more, "snap0")
    assert await read(made, VolumeRef(pool, "custom", "more")) == "one"
    await copy(made, "data/snap0", pool, "third")
    assert await read(made, VolumeRef(pool, "custom", "third")) == "one"
    await copy(made, "data", pool, "fourth", volume_only=True)
    assert made.snapshots.names((pool, "custom", "default", "fourth")) == []
    with pytest.raises(Conflict, match="Volume by that name already exists"):
        await copy(made, "data", pool)


@pytest.mark.parametrize("pool", ["p", "q"])
async def test_refreshing(made: Daemon, pool: str) -> None:
    more = (pool, "custom", "default", "more")
    await write(made, "one")
    for name in ("snap0", "old"):
        await take(made, name)
    await copy(made, "data", pool)
    await write(made, "two")
    await take(made, "snap1")
    await made.finish(await made.snapshots.delete(DATA, "old"))
    await write(made, "three")
    await copy(made, "data", pool, refresh=True)
    assert await read(made, VolumeRef(pool, "custom", "more")) == "three"
    assert made.snapshots.names(more) == ["snap0", "snap1"]
    await made.snapshots.restore(more, "snap1")
    assert await read(made, VolumeRef(pool, "custom", "more")) == "two"


async def test_moving(made: Daemon) -> None:
    await write(made, "one")
    await take(made)
    await made.finish(await made.volumes.rename(*DATA, StorageVolumePost(name="there", pool="q")))
    assert made.volumes.show_all("p", "default") == []
    assert made.snapshots.names(("q", "custom", "default", "there")) == ["snap0"]
    assert await read(made, VolumeRef("q", "custom", "there")) == "one"
    assert made.rewritten == [("p/data", "q/there")]


async def test_a_block_volume(made: Daemon) -> None:
    post = StorageVolumesPost(name="disk", type="custom", content_type="block", config={"size": "1MiB"})
    await made.volumes.create("p", "default", post)
    where, ref = ("p", "custom", "default", "disk"), VolumeRef("p", "custom", "disk")
    with pytest.raises(BadRequest, match="Block volumes cannot be used on containers"):
        await made.pools.mount(ref, IdMap())
    file = await made.pools.data_directory(ref) / "root.img"
    assert file.stat().st_size == 1 << 20
    with pytest.raises(BadRequest, match="Block volumes cannot be shrunk"):
        await made.volumes.update(*where, StorageVolumePut({"size": "512KiB"}))
    await made.volumes.update(*where, StorageVolumePut({"size": "2MiB"}))
    assert file.stat().st_size == 2 << 20
    await copy(made, "disk", target="disk2")
    shown = made.volumes.show("p", "custom", "default", "disk2")
    assert (shown.content_type, shown.config) == ("block", {"size": "2MiB"})
    assert (await made.pools.data_directory(VolumeRef("p", "custom", "disk2")) / "root.img").stat().st_size == 2 << 20


async def test_a_block_volume_without_a_size(made: Daemon) -> None:
    await made.volumes.create("p", "default", StorageVolumesPost(name="disk", type="custom", content_type="block"))
    assert made.volumes.show("p", "custom", "default", "disk").config == {"size": "10GiB"}


async def chunks(*given: bytes | Exception) -> AsyncIterator[bytes]:
    for chunk in given:
        if isinstance(chunk, Exception):
            raise chunk
        yield chunk


async def test_an_iso_volume(made: Daemon) -> None:
    await made.finish(await made.volumes.import_iso("p", "default", "setup", chunks(b"ab", b"", b"c")))
    assert made.volumes.show("p", "custom", "default", "setup").content_type == "iso"
    ref = VolumeRef("p", "custom", "setup")
    assert (await made.pools.data_directory(ref) / "root.iso").read_bytes() == b"abc"
    with pytest.raises(Conflict):
        await made.volumes.import_iso("p", "default", "setup", chunks(b"x"))


async def test_an_iso_that_breaks_off_leaves_nothing(made: Daemon) -> None:
    with pytest.raises(ConnectionResetError):
        await made.volumes.import_iso("p", "default", "setup", chunks(b"ab", ConnectionResetError()))
    pool: Path = made.directory / "storage-pools" / "p"
    assert not [name for name in pool.iterdir() if name.name.startswith(".")]
    assert [volume.name for volume in made.volumes.show_all("p", "default")] == ["data"]


async def test_the_clock(made: Daemon) -> None:
    config = {"snapshots.schedule": "@hourly", "snapshots.expiry": "1H"}
    await made.volumes.update(*DATA, StorageVolumePut(config))
    await made.snapshots.run_schedule(datetime(2026, 1, 1, 10, 30, tzinfo=UTC))
    assert made.snapshots.names(DATA) == []
    await made.snapshots.run_schedule(datetime(2026, 1, 1, 11, 0, tzinfo=UTC))
    assert made.snapshots.names(DATA) == ["snap0"]
    await made.snapshots.run_schedule(now() + timedelta(minutes=59))
    assert "snap0" in made.snapshots.names(DATA)
    await made.volumes.update(*DATA, StorageVolumePut({}))
    await take(made, "kept")
    assert made.snapshots.show(DATA, "kept").expires_at == ZERO_TIME
    await made.snapshots.run_schedule(now() + timedelta(days=1))
    assert made.snapshots.names(DATA) == ["kept"]


async def test_a_snapshot_that_fails_is_not_there(made: Daemon) -> None:
    method = "btrfs.snapshot" if made.pools.record("p").driver == "btrfs" else "files.copy_tree"
    made.host.fail(method=method, error=HostError("no space"))
    operation = await made.snapshots.create(DATA, StorageVolumeSnapshotsPost(name="snap0"))
    await operation.wait(10)
    assert (operation.render().status, operation.render().err) == ("Failure", "no space")
    assert made.snapshots.names(DATA) == []
    made.host.heal()
    await take(made)
