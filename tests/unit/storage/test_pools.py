# SPDX-License-Identifier: Apache-2.0
"""Pools as the API and the instances package see them."""

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest

from flexd.api.errors import BadRequest, Conflict
from flexd.api.idmap import IdMap
from flexd.api.storage_pool import StoragePool, StoragePoolPut, StoragePoolsPost
from flexd.host.contract import HostError
from flexd.storage.contract import (
    PoolNotFound,
    PoolUnavailable,
    QuotaUnsupported,
    VolumeNotFound,
    VolumeRef,
)
from tests.unit.storage.conftest import Daemon

C1 = VolumeRef("p", "container", "c1")


async def unpack(target: Path) -> None:
    await asyncio.to_thread((target / "etc").mkdir)


@pytest.fixture
async def pooled(daemon: Daemon) -> Daemon:
    await daemon.pools.create(StoragePoolsPost(name="p", driver="overlay"))
    await daemon.next_event()
    return daemon


async def test_a_new_pool_is_shown(daemon: Daemon) -> None:
    await daemon.pools.create(
        StoragePoolsPost(name="p", driver="dir", description="fast", config={"user.x": "1", "volume.size": ""})
    )
    source = str(daemon.directory / "storage-pools" / "p")
    assert daemon.pools.names() == ["p"]
    assert daemon.pools.show_all() == [
        StoragePool(
            config={"user.x": "1", "source": source},
            description="fast",
            driver="dir",
            locations=["none"],
            name="p",
            status="Created",
            used_by=[],
        )
    ]
    event = await daemon.next_event()
    assert event.metadata["action"] == "storage-pool-created"
    assert event.metadata["source"] == "/1.0/storage-pools/p"


@pytest.mark.parametrize(
    ("post", "words"),
    [
        (StoragePoolsPost(driver="dir"), "No name provided"),
        (StoragePoolsPost(name="a/b", driver="dir"), "Invalid storage pool name"),
        (StoragePoolsPost(name="p"), "No driver provided"),
        (StoragePoolsPost(name="p", driver="../dir"), 'Unsupported storage pool driver "../dir"'),
        (StoragePoolsPost(name="p", driver="dir", config={"zfs.x": "1"}), "config.zfs.x: unknown configuration key"),
        (StoragePoolsPost(name="p", driver="dir", config={"volume.size": "much"}), "config.volume.size: Invalid size"),
        (StoragePoolsPost(name="p", driver="dir", config={"volatile.initial_source": "/x"}), "set by the daemon"),
        (
            StoragePoolsPost(name="p", driver="dir", config={"source": "/nowhere"}),
            "Source path '/nowhere' doesn't exist",
        ),
    ],
)
async def test_what_is_no_pool(daemon: Daemon, post: StoragePoolsPost, words: str) -> None:
    with pytest.raises(BadRequest) as raised:
        await daemon.pools.create(post)
    assert words in str(raised.value)
    assert daemon.pools.names() == []


async def test_all_faults_of_a_pool_are_told_at_once(daemon: Daemon) -> None:
    config = {"nonsense": "1", "volume.size": "x"}
    with pytest.raises(BadRequest, match=r"config\.nonsense.*config\.volume\.size"):
        await daemon.pools.create(StoragePoolsPost(name="p", driver="dir", config=config))


async def test_a_name_is_taken_once(pooled: Daemon) -> None:
    with pytest.raises(Conflict, match='Storage pool "p" already exists'):
        await pooled.pools.create(StoragePoolsPost(name="p", driver="dir"))
    assert pooled.pools.show("p").driver == "overlay"


async def test_a_pool_where_something_lies_already(daemon: Daemon) -> None:
    kept = daemon.directory / "storage-pools" / "p" / "containers" / "c1"
    kept.mkdir(parents=True)
    with pytest.raises(BadRequest, match="isn't empty"):
        await daemon.pools.create(StoragePoolsPost(name="p", driver="overlay"))
    assert kept.exists()


async def test_editing(pooled: Daemon) -> None:
    await pooled.pools.update("p", StoragePoolPut({"user.a": "1", "volume.size": "1GiB"}, "new"))
    await pooled.pools.update("p", StoragePoolPut({"volume.size": "1GiB", "user.b": "2", "user.a": ""}, "new"))
    shown = pooled.pools.show("p")
    source = str(pooled.directory / "storage-pools" / "p")
    assert (shown.config, shown.description) == ({"source": source, "volume.size": "1GiB", "user.b": "2"}, "new")
    assert pooled.pools.default_size("p") == 1 << 30
    assert (await pooled.next_event()).metadata["action"] == "storage-pool-updated"


async def test_a_source_is_for_ever(pooled: Daemon) -> None:
    with pytest.raises(BadRequest, match=r'config\.source: the key "source" can\'t be changed'):
        await pooled.pools.update("p", StoragePoolPut({"source": "/elsewhere"}))


async def test_deleting(pooled: Daemon) -> None:
    await pooled.pools.delete("p")
    assert pooled.pools.names() == []
    assert not (pooled.directory / "storage-pools" / "p").exists()
    assert (await pooled.next_event()).metadata["action"] == "storage-pool-deleted"
    for call in (pooled.pools.show, pooled.pools.driver):
        with pytest.raises(PoolNotFound, match="Storage pool not found"):
            call("p")


async def test_a_pool_in_use_is_not_deleted(pooled: Daemon) -> None:
    pooled.users["p"] = ["/1.0/profiles/default"]
    with pytest.raises(BadRequest, match="The storage pool is currently in use"):
        await pooled.pools.delete("p")
    pooled.users.clear()
    await pooled.pools.create_instance(C1, "default", image=("f00", unpack), size_bytes=0)
    with pytest.raises(BadRequest, match="The storage pool is currently in use"):
        await pooled.pools.delete("p")
    await pooled.pools.delete_volume(C1)
    assert pooled.pools.used_by("p") == ["/1.0/images/f00"]
    await pooled.pools.delete("p")


async def test_who_uses_a_pool(pooled: Daemon) -> None:
    pooled.users["p"] = ["/1.0/profiles/default", "/1.0/instances/c1"]
    await pooled.pools.create_instance(C1, "default", image=("f00", unpack), size_bytes=0)
    other = VolumeRef("p", "container", "web_c2")
    await pooled.pools.create_instance(other, "web", image=("f00", unpack), size_bytes=0)
    assert pooled.pools.used_by("p") == [
        "/1.0/images/f00",
        "/1.0/instances/c1",
        "/1.0/instances/c2?project=web",
        "/1.0/profiles/default",
    ]


async def test_an_instance_volume_through_its_life(pooled: Daemon) -> None:
    pools = pooled.pools
    for _ in range(2):
        await pools.create_instance(C1, "default", image=("f00", unpack), size_bytes=0)
    path = await pools.mount(C1, IdMap())
    assert path == pooled.directory / "storage-pools" / "p" / "containers" / "c1" / "rootfs"
    await pools.unmount(C1)
    for _ in range(2):
        await pools.rename_volume(C1, "c2")
    assert [volume.name for volume in pooled.volumes.show_all("p", "default", "container")] == ["c2"]
    for _ in range(2):
        await pools.delete_volume(VolumeRef("p", "container", "c2"))
    assert pooled.volumes.show_all("p", "default", "container") == []


async def test_a_volume_of_a_project_is_renamed_in_it(pooled: Daemon) -> None:
    ref = VolumeRef("p", "container", "web_c1")
    await pooled.pools.create_instance(ref, "web", image=None, size_bytes=0)
    await pooled.pools.rename_volume(ref, "web_c2")
    assert [volume.name for volume in pooled.volumes.show_all("p", "web")] == ["c2"]


async def test_an_image_is_dropped_from_every_pool(pooled: Daemon) -> None:
    await pooled.pools.create_instance(C1, "default", image=("f00", unpack), size_bytes=0)
    await pooled.pools.delete_image("f00")
    await pooled.pools.delete_image("f00")
    assert pooled.volumes.show_all("p", "default", "image") == []
    await pooled.pools.mount(C1, IdMap())


async def test_a_volume_on_a_pool_that_is_gone_is_gone(daemon: Daemon) -> None:
    await daemon.pools.delete_volume(C1)
    with pytest.raises(PoolNotFound):
        await daemon.pools.mount(C1, IdMap())


async def test_a_missing_volume_is_named(pooled: Daemon) -> None:
    with pytest.raises(VolumeNotFound, match='"c1"'):
        await pooled.pools.mount(C1, IdMap())


async def test_a_default_size_counts_as_a_size(pooled: Daemon) -> None:
    await pooled.pools.update("p", StoragePoolPut({"volume.size": "1GiB"}))
    await pooled.pools.create_instance(C1, "default", image=None, size_bytes=0)
    assert list(pooled.host.quotas.limits.values()) == [1 << 30]


async def test_drivers(daemon: Daemon) -> None:
    assert [(found.Name, found.Remote) for found in await daemon.pools.drivers()] == [
        ("btrfs", False),
        ("dir", False),
        ("overlay", False),
    ]


async def test_resources(pooled: Daemon) -> None:
    assert (await pooled.pools.resources("p")).space.total > 0


async def test_a_restart_finds_the_pools(pooled: Daemon) -> None:
    await pooled.pools.create_instance(C1, "default", image=("f00", unpack), size_bytes=0)
    await pooled.stop()
    await pooled.start()
    assert pooled.pools.show("p").status == "Created"
    await pooled.pools.mount(C1, IdMap())


async def test_a_pool_that_cannot_be_mounted_does_not_stop_the_daemon(daemon: Daemon, tmp_path: Path) -> None:
    source = tmp_path.with_name(tmp_path.name + "-disk")
    source.mkdir()
    await daemon.pools.create(StoragePoolsPost(name="p", driver="dir", config={"source": str(source)}))
    await daemon.pools.create(StoragePoolsPost(name="q", driver="dir"))
    await daemon.stop()
    await daemon.host.reboot()
    shutil.rmtree(source)
    await daemon.start()
    assert [pool.status for pool in daemon.pools.show_all()] == ["Unavailable", "Created"]
    with pytest.raises(PoolUnavailable, match=r'Storage pool "p" is unavailable: .*doesn\'t exist'):
        await daemon.pools.mount(C1, IdMap())
    await daemon.pools.delete("p")
    assert daemon.pools.names() == ["q"]


# --- hosts that can do less -------------------------------------------------------------------------------------------


async def test_an_old_kernel_has_no_overlay_pools(daemon: Daemon) -> None:
    features = msgspec.structs.replace(daemon.host.machine.features_value, overlay_idmapped_lower=False)
    daemon.host.machine.features_value = features
    assert [found.Name for found in await daemon.pools.drivers()] == ["btrfs", "dir"]
    with pytest.raises(BadRequest, match=r"Linux 5\.19 or newer; this is 6\.12\.0.*the dir driver works without"):
        await daemon.pools.create(StoragePoolsPost(name="p", driver="overlay"))
    assert daemon.pools.names() == []


async def test_a_pool_that_a_host_can_no_longer_use(pooled: Daemon) -> None:
    features = msgspec.structs.replace(pooled.host.machine.features_value, overlay_idmapped_lower=False)
    pooled.host.machine.features_value = features
    await pooled.stop()
    await pooled.start()
    assert pooled.pools.show("p").status == "Unavailable"


async def test_a_dir_pool_without_idmapped_mounts(daemon: Daemon) -> None:
    """Owners on disk are rewritten, once, and never under somebody's feet."""
    features = msgspec.structs.replace(daemon.host.machine.features_value, idmapped_mounts=False)
    daemon.host.machine.features_value = features
    await daemon.pools.create(StoragePoolsPost(name="p", driver="dir"))
    await daemon.pools.create_instance(C1, "default", image=("f00", unpack), size_bytes=0)
    first, second = IdMap.single(1000000, 65536), IdMap.single(2000000, 65536)
    for _ in range(2):
        await daemon.pools.mount(C1, first)
        await daemon.pools.unmount(C1)
    await daemon.pools.mount(C1, second)
    await daemon.pools.mount(C1, IdMap())
    assert rewritten(daemon) == [(IdMap(), first), (first, second), (second, IdMap())]


async def test_a_rewrite_that_was_cut_short_is_finished(daemon: Daemon) -> None:
    features = msgspec.structs.replace(daemon.host.machine.features_value, idmapped_mounts=False)
    daemon.host.machine.features_value = features
    await daemon.pools.create(StoragePoolsPost(name="p", driver="dir"))
    await daemon.pools.create_instance(C1, "default", image=("f00", unpack), size_bytes=0)
    idmap = IdMap.single(1000000, 65536)
    daemon.host.fail(method="files.shift_tree", error=HostError("power cut"))
    with pytest.raises(HostError):
        await daemon.pools.mount(C1, idmap)
    daemon.host.heal()
    await daemon.pools.mount(C1, IdMap())
    # Ids that are in the map's range already are left alone.
    assert rewritten(daemon) == [(IdMap.single(0, 1000000), idmap), (idmap, IdMap())]


def rewritten(daemon: Daemon) -> list[tuple[IdMap, IdMap]]:
    return [(shifted.old, shifted.new) for shifted in daemon.host.files.shifted]


async def test_a_size_where_there_are_no_quotas(pooled: Daemon) -> None:
    pooled.host.quotas.fault = "ext4 is mounted without prjquota"
    assert await pooled.pools.has_quota("p") == "ext4 is mounted without prjquota"
    with pytest.raises(QuotaUnsupported, match=r'"p" \(/.*/storage-pools/p\): ext4 is mounted without prjquota'):
        await pooled.pools.create_instance(C1, "default", image=None, size_bytes=1 << 30)
    await pooled.pools.create_instance(C1, "default", image=None, size_bytes=0)
    assert await pooled.pools.usage(C1) is None


async def test_a_size_is_a_quota_on_the_volume(pooled: Daemon) -> None:
    await pooled.pools.create_instance(C1, "default", image=None, size_bytes=1 << 30)
    assert list(pooled.host.quotas.limits.values()) == [1 << 30]
    await pooled.pools.resize(C1, 2 << 30)
    assert list(pooled.host.quotas.limits.values()) == [2 << 30]
    await pooled.pools.delete_volume(C1)
    assert pooled.host.quotas.limits == {}
