# SPDX-License-Identifier: Apache-2.0
"""What a migration does with volumes, from every driver to every other: real mounts, real programs."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from flexd.api.idmap import IdMap
from flexd.host.contract import Host
from flexd.instances.migration.trees import receive_listing, receive_tree, send_listing, send_tree
from flexd.storage import drivers
from flexd.storage.contract import Driver
from tests.contract.storage.places import IDMAP, make_unpack
from tests.unit.instances.wires import Scissors, pair

OTHER = IdMap.single(2000000, 65536)


def writing(driver: Driver, idmap: IdMap) -> IdMap:
    """As `Pools.writing_idmap`."""
    return idmap if driver.shifted_on_disk else IdMap()


@pytest.fixture(params=["real"])
def real() -> bool:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    return True


@pytest.fixture(params=drivers.names())
async def target(request: pytest.FixtureRequest, place: Path, driver: Driver, host: Host) -> Driver:
    """A pool `q` of each driver that can be on the same file system."""
    kind = drivers.load(request.param)
    directory = place / "flexd" / "storage-pools" / "q"
    config = {"source": str(place / "q")} if request.param == "btrfs" else {}
    if request.param == "btrfs":
        if driver.name != "btrfs":
            pytest.skip("the other pool is not on btrfs")
        (place / "q").mkdir()
    made = kind(host=host, pool="q", directory=directory, config=config)
    await made.create_pool()
    return made


@pytest.fixture
async def source(driver: Driver) -> Driver:
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    idmap = writing(driver, IDMAP)
    root = await driver.mount_volume("container", "c1", idmap)
    (root / "etc/new").write_text("new")
    os.chown(root / "etc/new", idmap.host_uid(1000) or 0, idmap.host_gid(1001) or 0)
    (root / "etc/hostname").unlink()
    (root / "srv").mkdir()
    await driver.unmount_volume("container", "c1")
    return driver


def nothing(_count: int) -> None:
    pass


async def transfer(host: Host, tree: Path, root: Path, idmap: IdMap, place: Path, *, base: bool) -> None:
    here, there = pair(Scissors())
    known: Path | None = None
    if base:
        known = place / "known"
        await asyncio.gather(send_listing(host, root, idmap, there, nothing), receive_listing(here, known, nothing))
    await asyncio.gather(
        send_tree(host, tree, here, nothing, known=known, note=place / "note"),
        receive_tree(host, root, idmap, there, nothing),
    )


async def same(source: Driver, target: Driver) -> str:
    async with source.view("container", "c1", IdMap()) as one, target.view("container", "c1", IdMap()) as other:
        argv = ["rsync", "-naHAXi", "--numeric-ids", "--delete", "--modify-window=-1", f"{one}/", f"{other}/"]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, check=True, text=True)
    return done.stdout


async def test_onto_the_image(source: Driver, target: Driver, host: Host, place: Path) -> None:
    """What the container changed travels, and belongs to the other map's ids there."""
    await target.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    idmap = writing(target, OTHER)
    root = await target.mount_volume("container", "c1", idmap)
    async with source.view("container", "c1", IdMap()) as tree:
        await transfer(host, tree, root, idmap, place, base=True)
    root = await target.mount_volume("container", "c1", OTHER)
    assert (root / "etc/new").stat().st_uid == 2001000
    assert not (root / "etc/hostname").exists()
    await target.unmount_volume("container", "c1")
    assert await same(source, target) == ""
    for made in (source, target):
        await made.delete_volume("container", "c1")
    await target.delete_pool()


async def test_onto_nothing(source: Driver, target: Driver, host: Host, place: Path) -> None:
    async def fill(root: Path) -> None:
        async with source.view("container", "c1", IdMap()) as tree:
            await transfer(host, tree, root, IdMap(), place, base=False)

    await target.create_from_tree("container", "c1", fill, size_bytes=0)
    assert await same(source, target) == ""
    root = await target.mount_volume("container", "c1", OTHER)
    assert (root / "etc/new").stat().st_uid == 2001000
    await target.unmount_volume("container", "c1")
    for made in (source, target):
        await made.delete_volume("container", "c1")
    await target.delete_pool()


async def test_while_it_changes(driver: Driver, source: Driver, host: Host, place: Path) -> None:
    """A first pass beside a container that writes, a second one when it has stopped writing: only the changes."""
    await driver.create_volume("container", "copy", size_bytes=0)
    root = await source.mount_volume("container", "c1", writing(source, IDMAP))
    idmap = writing(driver, OTHER)
    copy = await driver.mount_volume("container", "copy", idmap)
    (root / "large").write_bytes(bytes(2_000_000))
    here, there = pair(Scissors())
    async with source.changing_view("container", "c1", IdMap()) as tree:
        assert (tree / "etc/new").stat().st_uid == 1000
        await transfer(host, tree, copy, idmap, place, base=True)
    (root / "etc/later").write_text("later")
    (root / "srv").rmdir()
    sent = 0

    def count(number: int) -> None:
        nonlocal sent
        sent += number

    async with source.changing_view("container", "c1", IdMap()) as tree:
        await asyncio.gather(
            send_tree(host, tree, here, count, known=place / "note", exact=True),
            receive_tree(host, copy, idmap, there, nothing),
        )
    assert (copy / "etc/later").read_text() == "later"
    assert not (copy / "srv").exists()
    for name in ("c1", "copy"):
        await driver.unmount_volume("container", name)
    async with driver.view("container", "c1", IdMap()) as one, driver.view("container", "copy", IdMap()) as other:
        argv = ["rsync", "-naHAXi", "--numeric-ids", "--delete", "--modify-window=-1", f"{one}/", f"{other}/"]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, check=True, text=True)
    assert done.stdout == ""
    for name in ("c1", "copy"):
        await driver.delete_volume("container", name)
