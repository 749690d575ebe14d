# SPDX-License-Identifier: Apache-2.0
"""Publishing, backups and their restoration on a whole daemon with fakes; tar runs for real, confined, so as root."""

import asyncio
import io
import os
import tarfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, Conflict, FlexdError, NotFound
from flexd.api.image import ImageAlias, ImageMetadata, ImageMetadataTemplate, ImagesPost, ImagesPostSource
from flexd.api.instance import InstancePost, InstanceSource, InstancesPost
from flexd.api.instance_backup import InstanceBackupPost, InstanceBackupsPost
from flexd.api.instance_snapshot import InstanceSnapshotsPost
from flexd.api.storage_pool import StoragePoolsPost
from flexd.api.times import now
from flexd.host.contract import HostError
from flexd.instances.backup_import import Overrides, parse_overrides
from flexd.instances.firstboot import APPLY_TEMPLATE, INSTANCE_ID
from flexd.operations.contract import Plan, Step
from tests.contract.images.house import chunks
from tests.unit.instances.house import PROJECT, House, house, restart

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="confining programs needs root")


def _let_tar_run(home: House) -> None:
    home.host.processes.harmless |= {"unshare", "setpriv", "rsync", "find"}


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        _let_tar_run(made)
        await made.daemon.pools.create(StoragePoolsPost(name="other", driver="dir"))
        await made.daemon.pools.create(StoragePoolsPost(name="bt", driver="btrfs", config={"size": "1GiB"}))
        yield made


async def _put(home: House, path: str, text: str, name: str = "c1") -> None:
    async with home.daemon.files.open(PROJECT, name) as files:
        fd = await files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)


async def _text(home: House, path: str, name: str = "c1") -> str | None:
    async with home.daemon.files.open(PROJECT, name) as files:
        try:
            fd = await files.open(path, 0)
        except NotFound:
            return None
        with open(fd, encoding="utf-8") as file:
            return file.read()


async def _snapshot(home: House, snapshot: str, expires_at: datetime | None = None) -> None:
    post = InstanceSnapshotsPost(name=snapshot, expires_at=expires_at)
    await home.done(await home.daemon.snapshots.create(PROJECT, "c1", post))


async def _prepared(home: House) -> None:
    """An instance with a snapshot, a template, and a file that changed since."""
    await home.create(config={"user.kept": "1"}, description="mine")
    template = ImageMetadataTemplate(when=["create", "copy"], template="t.tpl")
    metadata = ImageMetadata(
        architecture="x86_64", creation_date=1, properties={"os": "Tiny"}, templates={"/name": template}
    )
    await home.daemon.metadata.update(PROJECT, "c1", metadata)
    await home.daemon.metadata.write_template(PROJECT, "c1", "t.tpl", b"{{ instance.name }}")
    await _put(home, "/file", "old")
    await _snapshot(home, "s0", datetime(2040, 1, 2, 3, 4, 5, tzinfo=UTC))
    await _put(home, "/file", "new")


async def _backup(home: House, **fields: object) -> str:
    post = InstanceBackupsPost(**{"compression_algorithm": "none", **fields})  # type: ignore[arg-type]
    operation = await home.daemon.backups.create(PROJECT, "c1", post)
    await home.done(operation)
    return operation.render().resources["backups"][0].rpartition("/")[2]


async def _exported(home: House, **fields: object) -> bytes:
    name = await _backup(home, **fields)
    return await asyncio.to_thread(home.daemon.backups.file(PROJECT, "c1", name).read_bytes)


async def _restore(home: House, data: bytes, **overrides: object) -> None:
    body = Overrides(**overrides)  # type: ignore[arg-type]
    await home.done(await home.daemon.backup_import.create(PROJECT, chunks(data), body))


def _members(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getnames()


def _files(home: House) -> list[str]:
    return sorted(os.listdir(home.daemon.directory / "backups"))


# --- making ---


async def test_a_backup_has_lxds_layout(home: House):
    await _prepared(home)
    found = _members(await _exported(home))
    assert found[0] == "backup/index.yaml"
    for base in ("backup/snapshots/s0", "backup/container"):
        position = found.index(base)
        rest = ["backup.yaml", "metadata.yaml", "rootfs", "rootfs/file", "templates", "templates/t.tpl"]
        assert found[position + 1 : position + 7] == [f"{base}/{name}" for name in rest]
    alone = _members(await _exported(home, instance_only=True))
    assert not any(name.startswith("backup/snapshots") for name in alone)


async def test_backups_are_listed_renamed_and_deleted(home: House):
    await _prepared(home)
    expires = datetime(2040, 1, 1, tzinfo=UTC)
    assert await _backup(home, expires_at=expires) == "backup0"
    assert await _backup(home, name="mine", instance_only=True) == "mine"
    assert await _backup(home) == "backup1"
    shown = home.daemon.backups.show(PROJECT, "c1", "backup0")
    assert (shown.expires_at, shown.instance_only) == (expires, False)
    assert home.daemon.backups.show(PROJECT, "c1", "mine").instance_only
    await home.done(home.daemon.backups.rename(PROJECT, "c1", "mine", InstanceBackupPost(name="yours")))
    assert home.daemon.backups.names(PROJECT, "c1") == ["backup0", "yours", "backup1"]
    full = (await home.daemon.states.show_full(PROJECT, "c1")).backups
    assert [backup.name for backup in full] == ["backup0", "yours", "backup1"]
    await home.done(home.daemon.backups.delete(PROJECT, "c1", "yours"))
    assert home.daemon.backups.names(PROJECT, "c1") == ["backup0", "backup1"]
    assert len(_files(home)) == 2
    with pytest.raises(NotFound, match="Instance backup not found"):
        home.daemon.backups.show(PROJECT, "c1", "yours")


async def test_they_go_with_their_instance(home: House):
    await _prepared(home)
    await _backup(home)
    await home.done(await home.daemon.instances.rename(PROJECT, "c1", InstancePost(name="c2")))
    assert home.daemon.backups.names(PROJECT, "c2") == ["backup0"]
    assert len(_files(home)) == 1
    await home.delete("c2")
    await home.daemon.backups.run_schedule(now())
    assert _files(home) == []


async def test_expired_ones_are_deleted(home: House):
    await _prepared(home)
    soon = now() + timedelta(hours=1)
    await _backup(home, name="short", expires_at=soon)
    await _backup(home, name="long")
    await home.daemon.backups.run_schedule(now())
    assert home.daemon.backups.names(PROJECT, "c1") == ["short", "long"]
    await home.daemon.backups.run_schedule(soon)
    assert home.daemon.backups.names(PROJECT, "c1") == ["long"]
    assert len(_files(home)) == 1


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"name": "a/b"}, "may not contain slashes"),
        ({"compression_algorithm": "foo"}, 'Invalid compression algorithm "foo"'),
        ({"compression_algorithm": "squashfs"}, "Invalid compression algorithm"),
    ],
)
async def test_bad_requests(home: House, fields: dict, fault: str):
    await home.create()
    with pytest.raises(BadRequest, match=fault):
        await home.daemon.backups.create(PROJECT, "c1", InstanceBackupsPost(**fields))
    assert _files(home) == []


async def test_a_name_is_taken_once(home: House):
    await _prepared(home)
    first = await home.daemon.backups.create(PROJECT, "c1", InstanceBackupsPost(name="b", compression_algorithm="none"))
    with pytest.raises(Conflict, match='Backup "c1/b" already exists'):
        await home.daemon.backups.create(PROJECT, "c1", InstanceBackupsPost(name="b"))
    await home.done(first)
    with pytest.raises(Conflict):
        await home.daemon.backups.create(PROJECT, "c1", InstanceBackupsPost(name="b"))


async def test_a_backup_while_it_runs(home: House):
    await _prepared(home)
    await home.act("start")
    data = await _exported(home)
    assert home.status() == "Running"
    await _restore(home, data, name="c2")
    assert await _text(home, "/file", "c2") == "new"


@pytest.mark.parametrize("position", [0, 1])
async def test_a_failed_backup_leaves_nothing(home: House, position: int):
    await _prepared(home)
    before = home.host_state()
    _fail_at(home, "back up", position)
    with pytest.raises(FlexdError, match="the test says no"):
        await _backup(home)
    assert (home.host_state(), _files(home), home.daemon.backups.names(PROJECT, "c1")) == (before, [], [])


async def test_a_compressor_that_fails(home: House):
    await _prepared(home)
    home.host.processes.harmless.remove("setpriv")
    home.host.processes.harmless.discard("gzip")
    before = home.host_state()
    operation = await home.daemon.backups.create(PROJECT, "c1", InstanceBackupsPost(compression_algorithm="gzip"))
    await operation.cancel()  # the fake compressor never ends
    await operation.wait()
    assert operation.status == "Cancelled"
    assert (home.host_state(), _files(home)) == (before, [])


async def test_what_a_crash_left_is_cleared(home: House, tmp_path: Path):
    await _prepared(home)
    await _backup(home)
    directory = home.daemon.directory / "backups"
    (directory / ".incoming-1").write_bytes(b"x")
    (directory / ".incoming-2").mkdir()
    (directory / "orphan").write_bytes(b"x")
    await restart(home, tmp_path)
    assert len(_files(home)) == 1


# --- restoring ---


@pytest.mark.parametrize("pool", ["default", "other"])
async def test_restored_with_its_snapshots(home: House, pool: str):
    await _prepared(home)
    data = await _exported(home)
    old, snapshot = home.daemon.registry.instance(PROJECT, "c1"), home.daemon.snapshots.show(PROJECT, "c1", "s0")
    await home.delete()
    await _restore(home, data, pool=pool)
    record = home.daemon.registry.instance(PROJECT, "c1")
    assert (record.pool, record.description, record.created_at) == (pool, "mine", old.created_at)
    assert record.config["user.kept"] == "1"
    assert record.config[INSTANCE_ID] == old.config[INSTANCE_ID]
    assert record.config["volatile.eth0.hwaddr"] == old.config["volatile.eth0.hwaddr"]
    assert record.metadata == old.metadata
    assert home.daemon.snapshots.show(PROJECT, "c1", "s0").created_at == snapshot.created_at
    assert home.daemon.snapshots.show(PROJECT, "c1", "s0").expires_at == snapshot.expires_at
    assert await _text(home, "/file") == "new"
    source = InstanceSource(type="copy", source="c1/s0")
    await home.done(await home.daemon.instances.create(PROJECT, InstancesPost(name="c2", source=source)))
    assert await _text(home, "/file", "c2") == "old"
    await home.act("start")


async def test_restored_beside_the_original(home: House):
    await _prepared(home)
    await _restore(home, await _exported(home), name="c2")
    one, two = (home.daemon.registry.instance(PROJECT, name) for name in ("c1", "c2"))
    for key in ("volatile.uuid", "volatile.eth0.hwaddr", INSTANCE_ID):
        assert one.config[key] != two.config[key]
    assert two.config[APPLY_TEMPLATE] in ("create", "rename")
    with pytest.raises(Conflict, match="already exists"):
        await _restore(home, await _exported(home))


async def test_overrides(home: House):
    await _prepared(home)
    data = await _exported(home)
    headers = {"name": "c2", "pool": "other", "devices": "eth0=type%3Dnone", "config": "user.kept=2"}
    body = await home.daemon.backup_import.create(PROJECT, chunks(data), parse_overrides(headers))
    await home.done(body)
    shown = home.daemon.instances.show(PROJECT, "c2")
    assert shown.devices["eth0"] == {"type": "none"}
    assert shown.expanded_devices["root"]["pool"] == "other"
    assert shown.config["user.kept"] == "2"


async def test_a_pool_that_is_not_there(home: House):
    await _prepared(home)
    data = await _exported(home)
    with pytest.raises(NotFound, match="Storage pool not found"):
        await _restore(home, data, name="c2", pool="nope")
    # One that the backup was on, but this host does not have: the default profile's.
    moved = data.replace(b"pool: default\n", b"pool: elsewhe\n")
    await _restore(home, moved, name="c2")
    assert home.daemon.registry.instance(PROJECT, "c2").pool == "default"


@pytest.mark.parametrize(
    ("data", "fault"),
    [(b"", "neither a tar"), (b"junk" * 500, "neither a tar"), (bytes(10_240), "neither a tar|does not begin")],
)
async def test_what_is_no_backup(home: House, data: bytes, fault: str):
    with pytest.raises(BadRequest, match=fault):
        await _restore(home, data)
    assert _files(home) == []


async def test_a_backup_of_unknown_things(home: House):
    """A profile or a key that this daemon does not have: told, nothing made."""
    await _prepared(home)
    data = await _exported(home)
    before = home.host_state()
    for old, new, fault in (
        (b"- default\n    stateful", b"- missing\n    stateful", 'profile "missing" doesn\'t exist'),
        (b"user.kept:", b"nope.kept:", "nope.kept"),
    ):
        with pytest.raises(FlexdError, match=fault):
            await _restore(home, data.replace(old, new), name="c2")
        assert home.host_state() == before


def _fail_at(home: House, plan_begins: str, position: int) -> None:
    async def fail(plan: Plan, number: int, _step: Step) -> None:
        if plan.description.startswith(plan_begins) and number == position:
            raise FlexdError("the test says no")

    home.daemon.journal.before_step = fail


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_failed_restoration_leaves_nothing(home: House, position: int):
    await _prepared(home)
    data = await _exported(home)
    before = (home.host_state(), _files(home))
    _fail_at(home, "restore", position)
    with pytest.raises(FlexdError, match="the test says no"):
        await _restore(home, data, name="c2")
    assert (home.host_state(), _files(home)) == before
    home.daemon.journal.before_step = None
    await _restore(home, data, name="c2")


async def test_an_archive_cut_off_leaves_nothing(home: House):
    await _prepared(home)
    data = await _exported(home)
    before = (home.host_state(), _files(home))
    with pytest.raises(FlexdError, match="Invalid backup"):
        await _restore(home, data.rstrip(b"\0")[:-700], name="c2")
    assert (home.host_state(), _files(home)) == before


# --- in a driver's own format ---


async def _prepared_on_btrfs(home: House) -> None:
    await _prepared(home)
    data = await _exported(home)
    await home.delete()
    await _restore(home, data, pool="bt")
    await home.daemon.backups.run_schedule(now())


async def test_streams_where_a_driver_has_them(home: House):
    await _prepared_on_btrfs(home)
    found = _members(await _exported(home, optimized_storage=True))
    names = ("index.yaml", "optimized_header.yaml", "snapshots/s0.bin", "container.bin")
    assert found == [f"backup/{name}" for name in names]
    assert home.daemon.backups.show_all(PROJECT, "c1")[0].optimized_storage
    found = _members(await _exported(home, optimized_storage=True, instance_only=True))
    assert found[1:] == ["backup/optimized_header.yaml", "backup/container.bin"]


async def test_asked_for_where_there_are_none_they_are_left_out(home: House):
    """As LXD does: the backup is of the usual kind."""
    await _prepared(home)
    assert "backup/container/rootfs/file" in _members(await _exported(home, optimized_storage=True))


@pytest.mark.parametrize("running", [False, True])
async def test_streams_restored(home: House, running: bool):
    await _prepared_on_btrfs(home)
    old = home.daemon.registry.instance(PROJECT, "c1")
    if running:
        await home.act("start")
    data = await _exported(home, optimized_storage=True)
    await _restore(home, data, name="c2")
    record = home.daemon.registry.instance(PROJECT, "c2")
    assert (record.pool, record.metadata, record.config["user.kept"]) == ("bt", old.metadata, "1")
    assert await _text(home, "/file", "c2") == "new"
    snapshot = home.daemon.snapshots.show(PROJECT, "c2", "s0")
    assert snapshot.expires_at == datetime(2040, 1, 2, 3, 4, 5, tzinfo=UTC)
    await home.done(await home.daemon.snapshots.restore(PROJECT, "c2", "s0", stateful=False))
    assert await _text(home, "/file", "c2") == "old"
    rootfs = home.daemon.directory / "storage-pools" / "bt" / "containers" / "c2" / "data"
    assert sorted(os.listdir(rootfs)) == ["file"]
    with pytest.raises(BadRequest, match='driver "btrfs" differs from the target storage pool driver "overlay"'):
        await _restore(home, data, name="c3", pool="default")


async def test_the_host_fails_at_each_of_its_calls(home: House):
    """The k-th change of the host fails, for every k until it all succeeds: nothing is left each time."""
    await _prepared_on_btrfs(home)
    data = await _exported(home, optimized_storage=True, instance_only=True)
    pool = home.daemon.pools.driver("bt")
    await pool.settle()
    frozen = home.daemon.directory / "storage-pools" / "bt" / "frozen"
    before, failures = (home.host_state(), _files(home), sorted(os.listdir(frozen))), 0
    for k in range(200):
        home.host.fail(method="*", error=HostError("the test says no", 5), after=k, times=1)
        try:
            await _restore(home, data, name="c2", pool="bt")
        except (FlexdError, OSError):
            failures += 1
        else:
            break
        finally:
            home.host.heal()
        await pool.settle()
        assert (home.host_state(), _files(home), sorted(os.listdir(frozen))) == before, k
    assert failures > 3
    assert await _text(home, "/file", "c2") == "new"


# --- publishing ---


async def _publish(home: House, kind: str = "instance", name: str = "c1", **fields: object) -> str:
    post = ImagesPost(source=ImagesPostSource(type=kind, name=name), **{"compression_algorithm": "none", **fields})
    operation = await home.daemon.publishing.publish(PROJECT, PROJECT, post)
    await home.done(operation)
    fingerprint: str = operation.metadata["fingerprint"]
    return fingerprint


async def test_publish(home: House):
    await _prepared(home)
    fingerprint = await _publish(home, public=True, aliases=[ImageAlias(name="mine", description="d")])
    shown = home.daemon.images.show(PROJECT, fingerprint)
    assert (shown.public, shown.properties, shown.aliases[0].name) == (True, {"os": "Tiny"}, "mine")
    path = home.daemon.directory / "images" / fingerprint
    data = await asyncio.to_thread(path.read_bytes)
    assert _members(data) == ["metadata.yaml", "templates", "templates/t.tpl", "rootfs", "rootfs/file"]
    source = InstanceSource(type="image", alias="mine")
    await home.done(await home.daemon.instances.create(PROJECT, InstancesPost(name="c2", source=source)))
    assert await _text(home, "/file", "c2") == "new"
    assert home.daemon.metadata.template(PROJECT, "c2", "t.tpl") == "{{ instance.name }}"


async def test_publish_a_snapshot_with_properties(home: House):
    await _prepared(home)
    await home.act("start")
    expires = datetime(2040, 1, 1, tzinfo=UTC)
    fingerprint = await _publish(home, "snapshot", "c1/s0", properties={"a": "b"}, expires_at=expires)
    shown = home.daemon.images.show(PROJECT, fingerprint)
    assert (shown.properties, shown.expires_at) == ({"a": "b"}, expires)
    source = InstanceSource(type="image", fingerprint=fingerprint)
    await home.done(await home.daemon.instances.create(PROJECT, InstancesPost(name="c2", source=source)))
    assert await _text(home, "/file", "c2") == "old"


@pytest.mark.parametrize(
    ("kind", "name", "fault"),
    [
        ("instance", "", "No source provided"),
        ("instance", "nope", "Instance not found"),
        ("snapshot", "c1/nope", "snapshot not found"),
        ("snapshot", "c1", "not the name of a snapshot"),
        ("instance", "c1/s0", "not the name of a instance"),
        ("instance", "c1", "Cannot export a running instance"),
    ],
)
async def test_what_cannot_be_published(home: House, kind: str, name: str, fault: str):
    await _prepared(home)
    await home.act("start")
    with pytest.raises(FlexdError, match=fault):
        await _publish(home, kind, name)


async def test_a_published_image_that_is_there_already(home: House):
    await home.create()
    with pytest.raises(BadRequest, match="Invalid compression"):
        await _publish(home, compression_algorithm="foo")
    await _publish(home, aliases=[ImageAlias(name="x")])
    with pytest.raises(FlexdError, match=r"lready exists"):
        await _publish(home, aliases=[ImageAlias(name="x")])
