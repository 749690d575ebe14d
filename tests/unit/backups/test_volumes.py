# SPDX-License-Identifier: Apache-2.0
"""Backups of custom volumes on a whole daemon with fakes; tar runs for real, confined, so as root."""

import asyncio
import io
import lzma
import os
import tarfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from flexd.api.errors import BadRequest, Conflict, FlexdError, NotFound
from flexd.api.storage_pool import StoragePoolsPost
from flexd.api.storage_volume import StorageVolumePost, StorageVolumeSnapshotsPost, StorageVolumesPost
from flexd.api.storage_volume_backup import StoragePoolVolumeBackupPost, StoragePoolVolumeBackupsPost
from flexd.api.times import now
from flexd.host.contract import HostError
from flexd.operations.contract import Plan, Step
from flexd.operations.operations import Operation
from flexd.storage.contract import VolumeRef
from tests.contract.images.house import chunks
from tests.unit.instances.house import PROJECT, House, house, restart

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="confining programs needs root")

RECORDED = Path(__file__).parent / "recorded"
POOLS = ("default", "other", "bt")


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    """Pools of every driver."""
    async with house(tmp_path) as made:
        made.host.processes.harmless |= {"unshare", "setpriv", "rsync", "find"}
        await made.daemon.pools.create(StoragePoolsPost(name="other", driver="dir"))
        await made.daemon.pools.create(StoragePoolsPost(name="bt", driver="btrfs", config={"size": "1GiB"}))
        yield made


def _where(name: str = "v1", pool: str = "default") -> tuple[str, str, str, str]:
    return pool, "custom", PROJECT, name


async def _directory(home: House, name: str = "v1", pool: str = "default") -> Path:
    return await home.daemon.pools.data_directory(VolumeRef(pool, "custom", name))


async def _made(home: House, pool: str = "default", content_type: str = "", name: str = "v1") -> None:
    """A volume with a snapshot and what changed since."""
    config = {"user.kept": "1", **({"size": "2MiB"} if content_type == "block" else {})}
    post = StorageVolumesPost(name=name, type="custom", content_type=content_type, config=config, description="mine")
    await home.daemon.volumes.create(pool, PROJECT, post)
    file = await _directory(home, name, pool) / ("root.img" if content_type else "file")
    await asyncio.to_thread(_write, file, b"old")
    expires = datetime(2040, 1, 2, tzinfo=UTC)
    snapshot = StorageVolumeSnapshotsPost(name="s0", expires_at=expires)
    await home.done(await home.daemon.volume_snapshots.create(_where(name, pool), snapshot))
    await asyncio.to_thread(_write, file, b"new")


def _write(file: Path, data: bytes) -> None:
    with file.open("r+b" if file.exists() else "xb") as opened:
        opened.write(data)


async def _backup(home: House, pool: str = "default", **fields: object) -> str:
    post = StoragePoolVolumeBackupsPost(**{"compression_algorithm": "none", **fields})  # type: ignore[arg-type]
    operation = await home.daemon.volume_backups.create(_where(pool=pool), post)
    await home.done(operation)
    return operation.render().resources["backups"][0].rpartition("/")[2]


async def _exported(home: House, pool: str = "default", **fields: object) -> bytes:
    name = await _backup(home, pool, **fields)
    return await asyncio.to_thread(home.daemon.volume_backups.file(_where(pool=pool), name).read_bytes)


async def _restore(home: House, data: bytes, name: str = "", pool: str = "default") -> None:
    await home.done(await home.daemon.volume_import.create(pool, PROJECT, name, chunks(data)))


def _members(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getnames()


def _files(home: House) -> list[str]:
    return sorted(os.listdir(home.daemon.directory / "volume-backups"))


def _state(home: House) -> object:
    """What a failure must leave as it was."""
    volumes = {pool: sorted(v.name for v in home.daemon.volumes.show_all(pool, PROJECT)) for pool in POOLS}
    places = {pool: home.daemon.directory / "storage-pools" / pool for pool in POOLS}
    on_disk = {
        pool: [sorted(os.listdir(place / folder)) for folder in ("custom", "frozen")]
        + [[name for name in os.listdir(place) if name.startswith(".creating")]]
        for pool, place in places.items()
    }
    return volumes, on_disk, home.host_state()["mounts"], _files(home)


async def _settle(home: House) -> None:
    for pool in POOLS:
        await home.daemon.pools.driver(pool).settle()


def recorded(name: str) -> bytes:
    return lzma.decompress((RECORDED / f"lxd-5.0.2-{name}.tar.xz").read_bytes())


# --- making ---


async def test_a_backup_has_lxds_layout(home: House):
    await _made(home)
    data = await _exported(home)
    assert _members(data) == [
        *("backup/index.yaml", "backup/volume-snapshots/s0", "backup/volume-snapshots/s0/file"),
        *("backup/volume", "backup/volume/file"),
    ]
    assert not any("snapshots" in name for name in _members(await _exported(home, volume_only=True)))


@pytest.mark.parametrize(("pool", "content_type", "name"), [("other", "", "dir-vol"), ("other", "block", "dir-blk")])
async def test_the_index_has_lxds_shape(home: House, pool: str, content_type: str, name: str):
    await _made(home, pool, content_type)
    ours, lxds = (
        yaml.safe_load(_content(data, "backup/index.yaml")) for data in (await _exported(home, pool), recorded(name))
    )

    def shape(value: object) -> object:
        if isinstance(value, dict):
            return {key: "texts" if key == "config" and "volume" not in item else shape(item)
                    for key, item in value.items()}  # fmt: skip
        return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__

    assert shape(ours) == shape(lxds)
    assert ours["type"] == lxds["type"]


def _content(data: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


async def test_a_block_volume_is_one_file(home: House):
    await _made(home, "other", "block")
    data = await _exported(home, "other")
    assert _members(data) == ["backup/index.yaml", "backup/volume-snapshots/s0.img", "backup/volume.img"]
    assert _content(data, "backup/volume.img") == b"new" + bytes((2 << 20) - 3)


async def test_streams_where_a_driver_has_them(home: House):
    await _made(home, "bt")
    data = await _exported(home, "bt", optimized_storage=True)
    names = ["index.yaml", "optimized_header.yaml", "volume-snapshots/s0.bin", "volume.bin"]
    assert _members(data) == [f"backup/{name}" for name in names]
    header = yaml.safe_load(_content(data, "backup/optimized_header.yaml"))
    assert [(s["path"], s["snapshot"], s["readonly"]) for s in header["subvolumes"]] == [
        ("/", "s0", True),
        ("/", "", False),
    ]


async def test_asked_for_where_there_are_none_they_are_left_out(home: House):
    """As LXD does: the backup is of the usual kind."""
    await _made(home, "other")
    data = await _exported(home, "other", optimized_storage=True)
    assert yaml.safe_load(_content(data, "backup/index.yaml"))["optimized"] is False
    await _restore(home, data, "v2")


async def test_listed_renamed_and_deleted(home: House):
    await _made(home)
    backups = home.daemon.volume_backups
    expires = datetime(2040, 1, 1, tzinfo=UTC)
    assert await _backup(home, expires_at=expires) == "backup0"
    assert await _backup(home, name="mine", volume_only=True) == "mine"
    shown = backups.show(_where(), "backup0")
    assert (shown.expires_at, shown.volume_only) == (expires, False)
    await home.done(backups.rename(_where(), "mine", StoragePoolVolumeBackupPost(name="yours")))
    assert backups.names(_where()) == ["backup0", "yours"]
    await home.done(backups.delete(_where(), "yours"))
    assert [backup.name for backup in backups.show_all(_where())] == ["backup0"]
    assert len(_files(home)) == 1
    with pytest.raises(NotFound, match="Storage volume backup not found"):
        backups.show(_where(), "yours")
    with pytest.raises(Conflict, match='Backup "v1/backup0" already exists'):
        await _backup(home, name="backup0")
    for fields, fault in (({"name": "a/b"}, "slashes"), ({"compression_algorithm": "foo"}, "compression algorithm")):
        with pytest.raises(BadRequest, match=fault):
            await _backup(home, **fields)


async def test_they_go_with_their_volume(home: House):
    await _made(home)
    await _backup(home)
    await home.daemon.volumes.rename(*_where(), StorageVolumePost(name="v2"))
    assert home.daemon.volume_backups.names(_where("v2")) == ["backup0"]
    await home.daemon.volumes.delete(*_where("v2"))
    await home.daemon.volume_backups.run_schedule(now())
    assert _files(home) == []
    await _made(home, name="v2")
    assert home.daemon.volume_backups.names(_where("v2")) == []


async def test_expired_ones_are_deleted(home: House):
    await _made(home)
    soon = now() + timedelta(hours=1)
    await _backup(home, name="short", expires_at=soon)
    await _backup(home, name="long")
    await home.daemon.volume_backups.run_schedule(soon)
    assert home.daemon.volume_backups.names(_where()) == ["long"]
    assert len(_files(home)) == 1


async def test_only_of_custom_volumes(home: House):
    await home.create()
    post = StoragePoolVolumeBackupsPost()
    with pytest.raises(BadRequest, match="volumes of type container belong to their owner"):
        await home.daemon.volume_backups.create(("default", "container", PROJECT, "c1"), post)


# --- restoring ---


async def _check(home: House, name: str, pool: str, file: str = "file", size: int = 3) -> None:
    """What `_made` made."""
    place = await _directory(home, name, pool)
    assert (place / file).read_bytes() == b"new" + bytes(size - 3)
    shown = home.daemon.volumes.show(pool, "custom", PROJECT, name)
    assert (shown.description, shown.config["user.kept"]) == ("mine", "1")
    snapshot = home.daemon.volume_snapshots.show(_where(name, pool), "s0")
    assert snapshot.expires_at == datetime(2040, 1, 2, tzinfo=UTC)
    await home.daemon.volume_snapshots.restore(_where(name, pool), "s0")
    assert (await _directory(home, name, pool) / file).read_bytes() == b"old" + bytes(size - 3)
    await home.daemon.volumes.delete(*_where(name, pool))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("content_type", ["", "block"])
async def test_restored_in_every_pool(home: House, pool: str, content_type: str):
    await _made(home, pool, content_type)
    data = await _exported(home, pool)
    for target in POOLS:
        await _restore(home, data, "v2", target)
        await _check(home, "v2", target, *(("root.img", 2 << 20) if content_type else ()))


@pytest.mark.parametrize("content_type", ["", "block"])
async def test_streams_restored(home: House, content_type: str):
    await _made(home, "bt", content_type)
    data = await _exported(home, "bt", optimized_storage=True)
    await _restore(home, data, "v2", "bt")
    await _check(home, "v2", "bt", *(("root.img", 2 << 20) if content_type else ()))
    with pytest.raises(BadRequest, match='driver "btrfs" differs from the target storage pool driver "overlay"'):
        await _restore(home, data, "v3")


async def test_under_its_own_name(home: House):
    await _made(home)
    data = await _exported(home)
    with pytest.raises(Conflict, match="already exists"):
        await _restore(home, data)
    await home.daemon.volumes.delete(*_where())
    await _restore(home, data)
    assert home.daemon.volumes.show(*_where()).name == "v1"


@pytest.mark.parametrize("pool", POOLS)
async def test_lxds_own(home: House, pool: str):
    await _restore(home, recorded("dir-vol"), "v9", pool)
    place = await _directory(home, "v9", pool)
    assert ((place / "f").read_text(), (place / "g").read_text()) == ("new\n", "more\n")
    assert os.getxattr(place / "f", "user.a") == b"b"
    await home.daemon.volume_snapshots.restore(_where("v9", pool), "s0")
    place = await _directory(home, "v9", pool)
    assert ((place / "f").read_text(), (place / "g").exists()) == ("old\n", False)
    await _restore(home, recorded("dir-blk"), "b9", pool)
    image = await _directory(home, "b9", pool) / "root.img"
    assert image.stat().st_size == 20 << 20
    assert image.read_bytes()[:6] == b"block\n"


async def test_what_is_empty_takes_no_space(home: House):
    await _made(home, "other", "block")
    await _restore(home, await _exported(home, "other", volume_only=True), "v2", "other")
    found = (await _directory(home, "v2", "other") / "root.img").stat()
    assert found.st_size == 2 << 20
    assert found.st_blocks * 512 < found.st_size


@pytest.mark.parametrize("data", [b"", b"junk" * 500, bytes(10_240)])
async def test_what_is_no_backup(home: House, data: bytes):
    before = _state(home)
    with pytest.raises(BadRequest, match=r"neither a tar|does not begin"):
        await _restore(home, data, "v2")
    assert _state(home) == before


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b"type: custom\nconfig", b"type: nonsen\nconfig", 'of type "nonsen"'),
        (b"content_type: filesystem", b"content_type: filesystex", '"filesystex" is not known'),
        (b"user.kept", b"nope.kept", "nope.kept"),
        (b"- s0\n", b"- s9\n", "volume-snapshots/s9 is missing"),
        (b"- s0\n", b"- ./\n", "Invalid snapshot name"),
    ],
)
async def test_an_index_of_unknown_things(home: House, old: bytes, new: bytes, fault: str):
    await _made(home)
    data = await _exported(home)
    before = _state(home)
    assert old in data
    with pytest.raises(FlexdError, match=fault):
        await _restore(home, data.replace(old, new), "v2")
    assert _state(home) == before


# --- faults ---


def _fail_at(home: House, plan_begins: str, position: int) -> None:
    async def fail(plan: Plan, number: int, _step: Step) -> None:
        if plan.description.startswith(plan_begins) and number == position:
            raise FlexdError("the test says no")

    home.daemon.journal.before_step = fail


@pytest.mark.parametrize("position", [0, 1])
async def test_a_failed_backup_leaves_nothing(home: House, position: int):
    await _made(home)
    before = _state(home)
    _fail_at(home, "back up", position)
    with pytest.raises(FlexdError, match="the test says no"):
        await _backup(home)
    assert _state(home) == before


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("position", [0, 1])
async def test_a_failed_restoration_leaves_nothing(home: House, position: int, optimized: bool):
    pool = "bt" if optimized else "other"
    await _made(home, pool)
    data = await _exported(home, pool, optimized_storage=optimized)
    before = _state(home)
    _fail_at(home, "restore", position)
    with pytest.raises(FlexdError, match="the test says no"):
        await _restore(home, data, "v2", pool)
    await _settle(home)
    assert _state(home) == before
    home.daemon.journal.before_step = None
    await _restore(home, data, "v2", pool)


@pytest.mark.parametrize("optimized", [False, True])
async def test_the_host_fails_at_each_of_its_calls(home: House, optimized: bool):
    """The k-th change of the host fails, for every k until it all succeeds: nothing is left each time."""
    pool = "bt" if optimized else "default"
    await _made(home, pool)
    data = await _exported(home, pool, optimized_storage=optimized)
    await _settle(home)
    before, failures = _state(home), 0
    for k in range(1, 200):
        home.host.fail(method="*", error=HostError("the test says no", 5), after=k - 1, times=1)
        try:
            await _restore(home, data, "v2", pool)
        except (FlexdError, OSError):
            failures += 1
        else:
            break
        finally:
            home.host.heal()
        await _settle(home)
        assert _state(home) == before, k
    assert failures > 3
    await _check(home, "v2", pool)


async def test_a_stream_cut_off_leaves_nothing(home: House):
    await _made(home, "bt")
    data = await _exported(home, "bt", optimized_storage=True)
    before = _state(home)
    position = data.rindex(b"ustar")  # what is in the last stream is a tar archive too: of the fake host's making
    broken = data[:position] + bytes(700) + data[position + 700 :]
    with pytest.raises(FlexdError):
        await _restore(home, broken, "v2", "bt")
    await _settle(home)
    assert _state(home) == before


async def test_cancelled_while_the_streams_arrive(home: House):
    await _made(home, "bt")
    data = await _exported(home, "bt", optimized_storage=True)
    before = _state(home)
    operation: Operation = await home.daemon.volume_import.create("bt", PROJECT, "v2", chunks(data))
    await operation.cancel()
    await operation.wait()
    await _settle(home)
    assert (operation.status, _state(home)) == ("Cancelled", before)


async def test_what_a_crash_left_is_cleared(home: House, tmp_path: Path):
    await _made(home)
    await _backup(home)
    directory = home.daemon.directory / "volume-backups"
    (directory / ".incoming-1").write_bytes(b"x")
    (directory / ".incoming-2").mkdir()
    (directory / "orphan").write_bytes(b"x")
    await restart(home, tmp_path)
    assert len(_files(home)) == 1
