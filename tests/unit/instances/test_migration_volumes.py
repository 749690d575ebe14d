# SPDX-License-Identifier: Apache-2.0
"""Custom volumes between two whole daemons on fakes."""

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, Conflict
from flexd.api.storage_volume import StorageVolumePost, StorageVolumeSource, StorageVolumesPost
from flexd.operations.operations import Operation
from flexd.storage.contract import VolumeRef
from tests.unit.instances.house import PROJECT, House, house
from tests.unit.instances.wires import Scissors, join

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="receiving trees needs root (chown, chroot)")
REF = VolumeRef("default", "custom", "v1")


@pytest.fixture
async def a(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "a") as home:
        home.host.processes.harmless.add(sys.executable)
        await home.daemon.volumes.create("default", PROJECT, StorageVolumesPost(name="v1", type="custom"))
        yield home


@pytest.fixture
async def b(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "b") as home:
        home.host.processes.harmless.add(sys.executable)
        yield home


async def data(home: House) -> Path:
    return await home.daemon.pools.data_directory(REF)


def wish(*, refresh: bool = False) -> StorageVolumesPost:
    source = StorageVolumeSource(type="migration", mode="push", refresh=refresh)
    return StorageVolumesPost(name="v1", type="custom", source=source)


async def copy(a: House, b: House, scissors: Scissors, *, refresh: bool = False) -> tuple[Operation, Operation]:
    sink = await b.daemon.volume_migration.create("default", PROJECT, wish(refresh=refresh))
    post = StorageVolumePost(name="v1", migration=True)
    source = a.daemon.volume_migration.start("default", "custom", PROJECT, "v1", post)
    join(source, sink, scissors)
    await sink.wait()
    await source.wait()
    return source, sink


async def test_a_copy_and_its_refresh(a: House, b: House) -> None:
    place = await data(a)
    (place / "file").write_text("one")
    await a.daemon.pools.create_snapshot(REF, "s0", PROJECT)
    (place / "file").write_text("two")
    for refresh in (False, True):
        source, sink = await copy(a, b, Scissors(), refresh=refresh)
        assert (source.err, sink.err) == ("", "")
        assert (await data(b) / "file").read_text() == (place / "file").read_text()
        (place / "file").write_text("three!")
    dates = [[record.created_at for record in home.daemon.pools.list_snapshots(REF)] for home in (a, b)]
    assert dates[0] == dates[1]


async def test_wherever_the_link_breaks(a: House, b: House) -> None:
    (await data(a) / "file").write_text("one")
    scissors = Scissors()
    await copy(a, b, scissors)
    await b.daemon.volumes.delete("default", "custom", PROJECT, "v1")
    for after in range(scissors.sent):
        _, sink = await copy(a, b, Scissors(after))
        if sink.status == "Success":
            await b.daemon.volumes.delete("default", "custom", PROJECT, "v1")
        assert b.daemon.volumes.show_all("default", PROJECT, "custom") == [], f"after {after} messages"
        assert (await data(a) / "file").read_text() == "one"


async def test_what_is_refused_at_once(a: House) -> None:
    with pytest.raises(Conflict, match="already exists"):
        await a.daemon.volume_migration.create("default", PROJECT, wish())
    block = StorageVolumesPost(name="b1", type="custom", content_type="block", config={"size": "1MiB"})
    await a.daemon.volumes.create("default", PROJECT, block)
    post = StorageVolumePost(name="b1", migration=True)
    with pytest.raises(BadRequest, match='volumes of content type "block" stay on their server'):
        a.daemon.volume_migration.start("default", "custom", PROJECT, "b1", post)
