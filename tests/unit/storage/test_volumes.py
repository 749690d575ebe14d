# SPDX-License-Identifier: Apache-2.0
"""Custom volumes, and every volume listed."""

import asyncio
import itertools
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from flexd.api.errors import BadRequest, Conflict, FlexdError, NotSupported
from flexd.api.idmap import IdMap
from flexd.api.storage_pool import StoragePoolsPost
from flexd.api.storage_volume import (
    StorageVolume,
    StorageVolumePost,
    StorageVolumePut,
    StorageVolumeSnapshotsPost,
    StorageVolumeSource,
    StorageVolumesPost,
)
from flexd.operations.contract import Plan, Step
from flexd.storage import drivers
from flexd.storage.contract import PoolNotFound, VolumeNotFound, VolumeRef
from tests.unit.storage.conftest import Daemon

DATA = ("p", "custom", "default", "data")


@pytest.fixture(params=drivers.names())
async def pooled(daemon: Daemon, request: pytest.FixtureRequest) -> Daemon:
    await daemon.pools.create(StoragePoolsPost(name="p", driver=request.param))
    await daemon.next_event()
    return daemon


@pytest.fixture
async def made(pooled: Daemon) -> Daemon:
    await pooled.volumes.create("p", "default", StorageVolumesPost(name="data", type="custom", config={"user.x": "1"}))
    await pooled.next_event()
    return pooled


async def unpack(target: Path) -> None:
    await asyncio.to_thread((target / "etc").mkdir)


async def test_a_new_volume_is_shown(pooled: Daemon) -> None:
    post = StorageVolumesPost(name="data", type="custom", description="mine", config={"user.x": "1", "size": ""})
    await pooled.volumes.create("p", "default", post)
    shown = pooled.volumes.show(*DATA)
    assert shown == StorageVolume(
        config={"user.x": "1"},
        content_type="filesystem",
        created_at=shown.created_at,
        description="mine",
        location="none",
        name="data",
        project="default",
        type="custom",
    )
    assert pooled.volumes.show_all("p", "default") == pooled.volumes.show_all("p", "default", "custom") == [shown]
    event = await pooled.next_event()
    assert event.metadata["action"] == "storage-volume-created"
    assert event.metadata["source"] == "/1.0/storage-pools/p/volumes/custom/data"


@pytest.mark.parametrize(
    ("post", "words"),
    [
        (StorageVolumesPost(type="custom"), "No name provided"),
        (StorageVolumesPost(name="a/b", type="custom"), "may not contain slashes"),
        (StorageVolumesPost(name="data", type="container"), "not allowed to create storage volumes of type container"),
        (
            StorageVolumesPost(name="data", type="custom", content_type="tape"),
            '"tape" cannot be made empty',
        ),
        (StorageVolumesPost(name="data", type="custom", content_type="iso"), 'an "iso" volume is imported'),
        (StorageVolumesPost(name="data", type="custom", config={"snapshots.schedule": "often"}), "invalid schedule"),
        (StorageVolumesPost(name="data", type="custom", config={"snapshots.expiry": "soon"}), "invalid expiry"),
        (
            StorageVolumesPost(name="data", type="custom", config={"block.mount_options": "x"}),
            "unknown configuration key",
        ),
        (
            StorageVolumesPost(name="data", type="custom", source=StorageVolumeSource(type="migration")),
            '"migration" is not supported',
        ),
        (
            StorageVolumesPost(name="data", type="custom", source=StorageVolumeSource(type="copy")),
            "No source volume name provided",
        ),
        (
            StorageVolumesPost(name="data", type="custom", source=StorageVolumeSource(type="copy", name="none")),
            "Storage volume not found",
        ),
    ],
)
async def test_what_is_no_volume(pooled: Daemon, post: StorageVolumesPost, words: str) -> None:
    with pytest.raises((BadRequest, NotSupported, VolumeNotFound)) as raised:
        await pooled.volumes.create("p", "default", post)
    assert words in str(raised.value)
    assert pooled.volumes.show_all("p", "default") == []


async def test_a_name_is_taken_once(made: Daemon) -> None:
    with pytest.raises(Conflict, match="Volume by that name already exists"):
        await made.volumes.create("p", "default", StorageVolumesPost(name="data", type="custom"))
    assert made.volumes.show(*DATA).config == {"user.x": "1"}


async def test_projects_do_not_see_each_others(made: Daemon) -> None:
    await made.volumes.create("p", "web", StorageVolumesPost(name="data", type="custom"))
    assert [volume.project for volume in made.volumes.show_all("p", "web")] == ["web"]
    await made.volumes.delete("p", "custom", "web", "data")
    assert [volume.project for volume in made.volumes.show_all("p", "default")] == ["default"]


async def test_what_cannot_be_made_leaves_no_document(pooled: Daemon) -> None:
    path = pooled.directory / "storage-pools" / "p" / "custom"
    path.rmdir()
    path.touch()
    with pytest.raises((OSError, FlexdError)):
        await pooled.volumes.create("p", "default", StorageVolumesPost(name="data", type="custom"))
    assert pooled.volumes.show_all("p", "default") == []


async def test_editing(made: Daemon) -> None:
    await made.volumes.update(*DATA, StorageVolumePut({"user.y": "2"}, "new"))
    shown = made.volumes.show(*DATA)
    assert (shown.config, shown.description) == ({"user.y": "2"}, "new")
    assert (await made.next_event()).metadata["action"] == "storage-volume-updated"
    with pytest.raises(BadRequest, match=r"config\.nonsense: unknown configuration key"):
        await made.volumes.update(*DATA, StorageVolumePut({"nonsense": "1"}))


async def test_renaming(made: Daemon) -> None:
    path = await made.pools.mount(VolumeRef("p", "custom", "data"), IdMap())
    (path / "x").touch()
    await made.volumes.rename(*DATA, StorageVolumePost(name="more"))
    assert [volume.name for volume in made.volumes.show_all("p", "default")] == ["more"]
    path = await made.pools.mount(VolumeRef("p", "custom", "more"), IdMap())
    assert (path / "x").exists()
    event = await made.next_event()
    assert event.metadata["context"] == {"type": "custom", "old_name": "data"}


async def test_renaming_onto_another_volume(made: Daemon) -> None:
    await made.volumes.create("p", "default", StorageVolumesPost(name="more", type="custom"))
    with pytest.raises(Conflict, match="Volume by that name already exists"):
        await made.volumes.rename(*DATA, StorageVolumePost(name="more"))


async def test_what_is_no_move(made: Daemon) -> None:
    with pytest.raises(PoolNotFound):
        await made.volumes.rename(*DATA, StorageVolumePost(name="x", pool="q"))


async def test_deleting(made: Daemon) -> None:
    await made.volumes.delete(*DATA)
    assert made.volumes.show_all("p", "default") == []
    assert (await made.next_event()).metadata["action"] == "storage-volume-deleted"
    with pytest.raises(VolumeNotFound, match="Storage volume not found"):
        await made.volumes.delete(*DATA)


async def test_a_volume_in_use_stays(made: Daemon) -> None:
    made.users["p/default/data"] = ["/1.0/instances/c1"]
    assert made.volumes.show(*DATA).used_by == ["/1.0/instances/c1"]
    with pytest.raises(BadRequest, match="The storage volume is still in use"):
        await made.volumes.delete(*DATA)
    with pytest.raises(BadRequest, match="The storage volume is still in use"):
        await made.volumes.rename(*DATA, StorageVolumePost(name="more", project="web"))


async def test_users_follow_a_volume_to_its_new_name(made: Daemon) -> None:
    made.users["p/default/data"] = ["/1.0/instances/c1"]
    made.running["data"] = ["/1.0/instances/c1"]
    with pytest.raises(BadRequest, match="Volume is still in use by running instances"):
        await made.volumes.rename(*DATA, StorageVolumePost(name="more"))
    made.running.clear()
    await made.volumes.rename(*DATA, StorageVolumePost(name="more"))
    assert made.rewritten == [("p/data", "p/more")]


async def test_instance_volumes_are_shown_and_belong_to_their_instance(pooled: Daemon) -> None:
    ref = VolumeRef("p", "container", "c1")
    await pooled.pools.create_instance(ref, "default", image=("f00", unpack), size_bytes=0)
    assert pooled.volumes.show("p", "container", "default", "c1").used_by == ["/1.0/instances/c1"]
    for call in (
        pooled.volumes.delete("p", "container", "default", "c1"),
        pooled.volumes.rename("p", "container", "default", "c1", StorageVolumePost(name="c2")),
        pooled.volumes.update("p", "container", "default", "c1", StorageVolumePut({"size": "1GiB"})),
    ):
        with pytest.raises(BadRequest):
            await call
    await pooled.volumes.update("p", "container", "default", "c1", StorageVolumePut(description="root"))
    assert pooled.volumes.show("p", "container", "default", "c1").description == "root"


async def test_what_a_pool_keeps_of_an_image_can_be_dropped(pooled: Daemon) -> None:
    ref = VolumeRef("p", "container", "c1")
    await pooled.pools.create_instance(ref, "default", image=("f00", unpack), size_bytes=0)
    if pooled.pools.record("p").driver == "dir":
        with pytest.raises(VolumeNotFound):
            await pooled.volumes.delete("p", "image", "default", "f00")
        return
    await pooled.volumes.delete("p", "image", "web", "f00")
    assert pooled.volumes.show_all("p", "default", "image") == []
    assert (await pooled.pools.mount(ref, IdMap()) / "etc").is_dir()


async def test_usage(made: Daemon) -> None:
    state = await made.volumes.state(*DATA)
    assert state.usage is not None
    assert state.usage.used >= 0


async def test_unknown_pools_and_kinds(pooled: Daemon) -> None:
    with pytest.raises(PoolNotFound):
        pooled.volumes.show_all("q", "default")
    with pytest.raises(BadRequest, match='Invalid storage volume type "bucket"'):
        pooled.volumes.show_all("p", "default", "bucket")


async def test_volumes_survive_a_restart(made: Daemon) -> None:
    await made.stop()
    await made.start()
    assert (await made.pools.mount(VolumeRef("p", "custom", "data"), IdMap())).is_dir()


# --- a crash at any step ----------------------------------------------------------------------------------------------


async def restart_as_if_dead_at(daemon: Daemon, step: int, snapshot: Path, change: Coroutine[Any, Any, None]) -> None:
    """Make a change, then start again from what was on disk when this step of it began."""

    begun = itertools.count()

    async def keep(_plan: Plan, _position: int, _step: Step) -> None:
        if next(begun) == step:
            await asyncio.to_thread(shutil.copytree, daemon.directory, snapshot, symlinks=True)

    daemon.journal.before_step = keep
    await change
    await daemon.stop()
    shutil.rmtree(daemon.directory)
    snapshot.rename(daemon.directory)
    await daemon.start()
    assert await daemon.journal.failed() == []


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    return tmp_path.with_name(tmp_path.name + "-snapshot")


@pytest.mark.parametrize("step", [0, 1])
async def test_a_crash_while_creating(pooled: Daemon, snapshot: Path, step: int) -> None:
    post = StorageVolumesPost(name="data", type="custom")
    await restart_as_if_dead_at(pooled, step, snapshot, pooled.volumes.create("p", "default", post))
    assert pooled.volumes.show_all("p", "default") == []
    assert list((pooled.directory / "storage-pools" / "p" / "custom").iterdir()) == []
    await pooled.volumes.create("p", "default", post)


async def test_a_crash_while_deleting(made: Daemon, snapshot: Path) -> None:
    await restart_as_if_dead_at(made, 0, snapshot, made.volumes.delete(*DATA))
    assert made.volumes.show_all("p", "default") == []
    assert list((made.directory / "storage-pools" / "p" / "custom").iterdir()) == []


async def test_a_crash_while_renaming(made: Daemon, snapshot: Path) -> None:
    change = made.volumes.rename(*DATA, StorageVolumePost(name="more"))
    await restart_as_if_dead_at(made, 0, snapshot, change)
    assert [volume.name for volume in made.volumes.show_all("p", "default")] == ["data"]
    assert (await made.pools.mount(VolumeRef("p", "custom", "data"), IdMap())).is_dir()


async def with_a_second_pool(daemon: Daemon) -> None:
    """A pool `q`, and a snapshot of the volume with something in it."""
    await daemon.pools.create(StoragePoolsPost(name="q", driver="dir"))
    path = await daemon.pools.mount(VolumeRef("p", "custom", "data"), IdMap())
    (path / "x").write_text("one")
    await daemon.finish(await daemon.snapshots.create(DATA, StorageVolumeSnapshotsPost(name="snap0")))
    (path / "x").write_text("two")


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("pool", ["p", "q"])
async def test_a_crash_while_copying(made: Daemon, snapshot: Path, step: int, pool: str) -> None:
    await with_a_second_pool(made)
    source = StorageVolumeSource(type="copy", name="data", pool="p")
    post = StorageVolumesPost(name="more", type="custom", source=source)

    async def copy() -> None:
        await made.finish(await made.volumes.create(pool, "default", post))

    await restart_as_if_dead_at(made, step, snapshot, copy())
    assert [v.name for v in made.volumes.show_all("p", "default")] == ["data", "data/snap0"]
    assert made.volumes.show_all("q", "default") == []
    await copy()
    path = await made.pools.mount(VolumeRef(pool, "custom", "more"), IdMap())
    assert (path / "x").read_text() == "two"


@pytest.mark.parametrize("step", [0, 1, 2, 3])
async def test_a_crash_while_moving(made: Daemon, snapshot: Path, step: int) -> None:
    await with_a_second_pool(made)

    async def move() -> None:
        await made.finish(await made.volumes.rename(*DATA, StorageVolumePost(name="data", pool="q")))

    await restart_as_if_dead_at(made, step, snapshot, move())
    names = {pool: [v.name for v in made.volumes.show_all(pool, "default")] for pool in ("p", "q")}
    # Copying is undone, deleting what was copied is finished.
    both = ["data", "data/snap0"]
    assert names == ({"p": [], "q": both} if step == 3 else {"p": both, "q": []})


@pytest.mark.parametrize("driver", drivers.names())
async def test_a_crash_while_a_pool_is_made(daemon: Daemon, snapshot: Path, driver: str) -> None:
    change = daemon.pools.create(StoragePoolsPost(name="p", driver=driver))
    await restart_as_if_dead_at(daemon, 0, snapshot, change)
    assert daemon.pools.names() == []
    await daemon.pools.create(StoragePoolsPost(name="p", driver=driver))


async def test_a_crash_while_a_pool_is_deleted(pooled: Daemon, snapshot: Path) -> None:
    await restart_as_if_dead_at(pooled, 0, snapshot, pooled.pools.delete("p"))
    assert pooled.pools.names() == []
    assert not (pooled.directory / "storage-pools" / "p").exists()
