# SPDX-License-Identifier: Apache-2.0
"""What every driver must do with snapshots and copies."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, Conflict
from flexd.api.idmap import IdMap
from flexd.host.contract import Host
from flexd.storage.contract import Driver, SnapshotNotFound, VolumeKind, VolumeNotFound
from tests.contract.storage.places import IDMAP, MakeDriver, make_unpack, tidy

OTHER = IdMap.single(2000000, 65536)
# Up, down, from the middle.
ORDERS = [(0, 1, 2), (2, 1, 0), (1, 2, 0)]
KINDS: tuple[VolumeKind, ...] = ("container", "custom")


@pytest.fixture(params=KINDS)
async def kind(request: pytest.FixtureRequest, driver: Driver) -> VolumeKind:
    """A volume `c1` of each kind, in the pool."""
    kind: VolumeKind = request.param
    await make_volume(driver, kind, "c1")
    return kind


async def make_volume(driver: Driver, kind: VolumeKind, name: str) -> None:
    if kind == "custom":
        await driver.create_volume(kind, name, size_bytes=0)
    else:
        await driver.create_from_image(kind, name, "f00", make_unpack(), size_bytes=0)


@asynccontextmanager
async def mounted(driver: Driver, kind: VolumeKind, name: str, idmap: IdMap = IDMAP) -> AsyncIterator[Path]:
    """The volume's files; its users have gone at the end."""
    path = await driver.mount_volume(kind, name, IdMap() if kind == "custom" else idmap)
    yield path
    await driver.unmount_volume(kind, name)


async def write(driver: Driver, kind: VolumeKind, name: str, text: str) -> None:
    async with mounted(driver, kind, name) as root:
        # As what the container writes: a new file every time, and one that changes.
        await asyncio.to_thread(write_as_owner, root, text)


def write_as_owner(root: Path, text: str) -> None:
    """By the owner of the tree: where ids are shifted by the mount, the host's root has none in there."""
    owner, script = root.stat().st_uid, f"printf %s {text} >{root}/text; touch {root}/made-{text}"
    prefix = [] if owner == os.geteuid() else ["setpriv", f"--reuid={owner}", f"--regid={owner}", "--clear-groups"]
    subprocess.run([*prefix, "sh", "-ec", script], check=True)


async def read(driver: Driver, kind: VolumeKind, name: str, idmap: IdMap = IDMAP) -> tuple[str, list[str]]:
    """(what the file says, the files that were made)."""
    async with mounted(driver, kind, name, idmap) as root:
        return content(root)


def content(root: Path) -> tuple[str, list[str]]:
    text = (root / "text").read_text() if (root / "text").exists() else ""
    return text, sorted(name.removeprefix("made-") for name in os.listdir(root) if name.startswith("made-"))


def wanted(*texts: str) -> tuple[str, list[str]]:
    """What `content` gives after these were written."""
    return texts[-1] if texts else "", sorted(texts)


async def shown(driver: Driver, kind: VolumeKind, name: str, snapshot: str) -> tuple[str, list[str]]:
    async with driver.view(kind, name, IdMap(), snapshot=snapshot) as root:
        return content(root)


async def test_a_snapshot_keeps_what_was(driver: Driver, kind: VolumeKind) -> None:
    await write(driver, kind, "c1", "one")
    for _ in range(2):
        await driver.create_snapshot(kind, "c1", "snap0")
    await write(driver, kind, "c1", "two")
    assert await driver.list_snapshots(kind, "c1") == ["snap0"]
    assert await shown(driver, kind, "c1", "snap0") == wanted("one")
    assert await read(driver, kind, "c1") == wanted("one", "two")
    assert [found for found in await driver.list_volumes() if found[0] != "image"] == [(kind, "c1")]


@pytest.mark.parametrize("times", [1, 3])
async def test_a_restored_volume_is_what_it_was(driver: Driver, kind: VolumeKind, times: int) -> None:
    await write(driver, kind, "c1", "one")
    await driver.create_snapshot(kind, "c1", "snap0")
    for number in range(times):
        await write(driver, kind, "c1", f"later{number}")
        await driver.restore_snapshot(kind, "c1", "snap0")
        assert await read(driver, kind, "c1") == wanted("one")
    assert await shown(driver, kind, "c1", "snap0") == wanted("one")


async def test_a_snapshot_of_an_untouched_volume(driver: Driver, kind: VolumeKind) -> None:
    await driver.create_snapshot(kind, "c1", "snap0")
    await write(driver, kind, "c1", "one")
    await driver.restore_snapshot(kind, "c1", "snap0")
    assert await read(driver, kind, "c1") == wanted()


async def test_a_live_snapshot_leaves_the_mount_alone(driver: Driver, kind: VolumeKind, host: Host) -> None:
    if driver.name == "overlay" and kind == "container" and type(host).__name__ == "FakeHost":
        pytest.skip("the fake host writes to the upper layer when it unmounts")
    root = await driver.mount_volume(kind, "c1", IdMap())
    await asyncio.to_thread(write_as_owner, root, "one")
    before = root.stat().st_dev
    await driver.create_snapshot(kind, "c1", "snap0", live=True)
    assert root.stat().st_dev == before
    await asyncio.to_thread(write_as_owner, root, "two")
    assert await shown(driver, kind, "c1", "snap0") == wanted("one")
    await driver.delete_snapshot(kind, "c1", "snap0")
    assert content(root) == wanted("one", "two")


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("order", ORDERS)
async def test_snapshots_go_in_any_order(
    driver: Driver, kind: VolumeKind, order: tuple[int, ...], live: bool, path: Path
) -> None:
    texts = ["a", "b", "c"]
    for number, text in enumerate(texts):
        await write(driver, kind, "c1", text)
        await driver.create_snapshot(kind, "c1", f"snap{number}", live=live)
    await write(driver, kind, "c1", "now")
    left = {number: wanted(*texts[: number + 1]) for number in range(3)}
    for number in order:
        for _ in range(2):
            await driver.delete_snapshot(kind, "c1", f"snap{number}")
        del left[number]
        for other, files in left.items():
            assert await shown(driver, kind, "c1", f"snap{other}") == files
        assert await read(driver, kind, "c1") == wanted(*texts, "now")
    await driver.delete_volume(kind, "c1")
    await driver.settle()
    assert os.listdir(path / "frozen") == []
    assert tidy(path)


@pytest.mark.parametrize("order", ORDERS)
async def test_snapshots_are_restored_in_any_order(driver: Driver, kind: VolumeKind, order: tuple[int, ...]) -> None:
    texts = ["a", "b", "c"]
    for number, text in enumerate(texts):
        await write(driver, kind, "c1", text)
        await driver.create_snapshot(kind, "c1", f"snap{number}")
    for number in order:
        await driver.restore_snapshot(kind, "c1", f"snap{number}")
        before = wanted(*texts[: number + 1])
        assert await read(driver, kind, "c1") == before
        await write(driver, kind, "c1", "x")
        assert await read(driver, kind, "c1") == wanted(*texts[: number + 1], "x")
    for number in order:
        assert await shown(driver, kind, "c1", f"snap{number}") == wanted(*texts[: number + 1])


async def test_restoring_an_old_snapshot_after_newer_ones_went(driver: Driver, kind: VolumeKind, path: Path) -> None:
    for text in ("a", "b", "c"):
        await write(driver, kind, "c1", text)
        await driver.create_snapshot(kind, "c1", f"snap-{text}")
    await driver.restore_snapshot(kind, "c1", "snap-a")
    await driver.delete_snapshot(kind, "c1", "snap-c")
    await driver.delete_snapshot(kind, "c1", "snap-b")
    await write(driver, kind, "c1", "d")
    await driver.delete_snapshot(kind, "c1", "snap-a")
    assert await read(driver, kind, "c1") == wanted("a", "d")
    await driver.settle()
    assert len(os.listdir(path / "frozen")) <= 1


async def test_snapshots_that_come_and_go_leave_nothing(driver: Driver, kind: VolumeKind, path: Path) -> None:
    await write(driver, kind, "c1", "one")
    before = sorted(os.listdir(path / ("custom" if kind == "custom" else "containers") / "c1"))
    for number in range(3):
        await driver.create_snapshot(kind, "c1", f"snap{number}")
        await driver.delete_snapshot(kind, "c1", f"snap{number}")
    await driver.settle()
    assert os.listdir(path / "frozen") == []
    after = sorted(os.listdir(path / ("custom" if kind == "custom" else "containers") / "c1"))
    assert [name for name in after if name != "snapshots"] == before
    assert await read(driver, kind, "c1") == wanted("one")


async def test_many_snapshots_without_an_end(driver: Driver, kind: VolumeKind) -> None:
    """Deeper than a stack of layers may become."""
    texts = [f"t{number:02}" for number in range(20)]
    for text in texts:
        await write(driver, kind, "c1", text)
        await driver.create_snapshot(kind, "c1", text)
    assert await read(driver, kind, "c1") == wanted(*texts)
    for number in (0, 9, 19):
        assert await shown(driver, kind, "c1", texts[number]) == wanted(*texts[: number + 1])


async def test_deleted_files_are_deleted_in_a_snapshot(driver: Driver, real: bool) -> None:
    """And directories that were replaced do not let through what they had."""
    await make_volume(driver, "container", "c1")
    async with mounted(driver, "container", "c1", IdMap()) as root:
        (root / "bin" / "tool").unlink()
        (root / "etc" / "hostname").unlink()
        (root / "etc").rmdir()
        (root / "etc").mkdir()
    await driver.create_snapshot("container", "c1", "snap0")
    async with mounted(driver, "container", "c1", IdMap()) as root:
        (root / "bin" / "tool").touch()
        if real:
            (root / "bin").rename(root / "sbin")
    await driver.create_snapshot("container", "c1", "snap1")
    async with driver.view("container", "c1", IDMAP, snapshot="snap0") as root:
        assert os.listdir(root / "bin") == os.listdir(root / "etc") == []
    async with driver.view("container", "c1", IDMAP, snapshot="snap1") as root:
        assert os.listdir(root / ("sbin" if real else "bin")) == ["tool"]
        assert os.listdir(root / "etc") == []
    await driver.restore_snapshot("container", "c1", "snap0")
    async with mounted(driver, "container", "c1", IDMAP) as root:
        assert os.listdir(root / "bin") == os.listdir(root / "etc") == []


async def test_a_snapshot_is_renamed(driver: Driver, kind: VolumeKind) -> None:
    await write(driver, kind, "c1", "one")
    await driver.create_snapshot(kind, "c1", "snap0")
    await driver.mount_snapshot(kind, "c1", "snap0", IdMap())
    for _ in range(2):
        await driver.rename_snapshot(kind, "c1", "snap0", "before")
    assert await driver.list_snapshots(kind, "c1") == ["before"]
    assert await shown(driver, kind, "c1", "before") == wanted("one")
    await driver.create_snapshot(kind, "c1", "snap0")
    with pytest.raises(Conflict, match='"before" exists'):
        await driver.rename_snapshot(kind, "c1", "snap0", "before")


async def test_snapshots_go_along_with_their_volume(driver: Driver, kind: VolumeKind, path: Path) -> None:
    await write(driver, kind, "c1", "one")
    await driver.create_snapshot(kind, "c1", "snap0")
    await driver.mount_snapshot(kind, "c1", "snap0", IdMap())
    await driver.rename_volume(kind, "c1", "c2")
    assert await driver.list_snapshots(kind, "c2") == ["snap0"]
    await driver.restore_snapshot(kind, "c2", "snap0")
    assert await read(driver, kind, "c2") == wanted("one")
    await driver.mount_snapshot(kind, "c2", "snap0", IdMap())
    await driver.delete_volume(kind, "c2")
    await driver.settle()
    assert os.listdir(path / "frozen") == []
    assert tidy(path)


async def test_a_mounted_snapshot_is_read_only(driver: Driver, kind: VolumeKind, host: Host, real: bool) -> None:
    await write(driver, kind, "c1", "one")
    await driver.create_snapshot(kind, "c1", "snap0")
    path = await driver.mount_snapshot(kind, "c1", "snap0", IdMap())
    assert await driver.mount_snapshot(kind, "c1", "snap0", IdMap()) == path
    assert content(path) == wanted("one")
    (info,) = await host.mounts.below(path)
    assert "ro" in info.options.split(",")
    if real:
        with pytest.raises(OSError, match="Read-only"):
            (path / "x").touch()
    for _ in range(2):
        await driver.unmount_snapshot(kind, "c1", "snap0")
    assert await host.mounts.below(path) == []


async def test_what_is_not_there(driver: Driver, kind: VolumeKind) -> None:
    for call in (
        driver.restore_snapshot(kind, "c1", "none"),
        driver.rename_snapshot(kind, "c1", "none", "more"),
        driver.mount_snapshot(kind, "c1", "none", IdMap()),
        driver.copy_volume(kind, "c1", "c2", snapshot="none"),
    ):
        with pytest.raises(SnapshotNotFound, match=r'Snapshot not found: "none" of "c1" in storage pool "p"'):
            await call
    with pytest.raises(VolumeNotFound):
        await driver.create_snapshot(kind, "c9", "snap0")
    await driver.delete_snapshot(kind, "c1", "none")
    await driver.delete_snapshot(kind, "c9", "none")
    assert not [found for found in await driver.list_volumes() if found[1] == "c2"]


@pytest.mark.parametrize("name", ["", "../c1", "a/b", ".hidden"])
async def test_names_do_not_leave_the_volume(driver: Driver, kind: VolumeKind, name: str) -> None:
    with pytest.raises(BadRequest, match="Invalid snapshot name"):
        await driver.create_snapshot(kind, "c1", name)


async def test_usage_of_a_snapshot(driver: Driver, kind: VolumeKind) -> None:
    await driver.create_snapshot(kind, "c1", "snap0")
    assert await driver.snapshot_usage(kind, "c1", "snap0") >= 0


# --- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot", [None, "snap0"])
async def test_a_copy_goes_its_own_way(driver: Driver, kind: VolumeKind, snapshot: str | None) -> None:
    await write(driver, kind, "c1", "one")
    await driver.create_snapshot(kind, "c1", "snap0")
    await write(driver, kind, "c1", "two")
    for _ in range(2):
        await driver.copy_volume(kind, "c1", "c2", snapshot=snapshot)
    before = wanted("one") if snapshot else wanted("one", "two")
    await write(driver, kind, "c1", "three")
    assert await read(driver, kind, "c2", OTHER) == before
    await write(driver, kind, "c2", "mine")
    assert await read(driver, kind, "c1") == wanted("one", "two", "three")
    assert await driver.list_snapshots(kind, "c2") == []


async def test_a_copy_outlives_its_source(driver: Driver, kind: VolumeKind, path: Path) -> None:
    await write(driver, kind, "c1", "one")
    await driver.create_snapshot(kind, "c1", "snap0")
    await driver.copy_volume(kind, "c1", "c2")
    for _ in range(2):
        await driver.copy_snapshot(kind, "c1", "snap0", "c2")
    await driver.delete_volume(kind, "c1")
    await driver.delete_image("f00")
    assert await read(driver, kind, "c2") == wanted("one")
    await write(driver, kind, "c2", "two")
    await driver.restore_snapshot(kind, "c2", "snap0")
    assert await read(driver, kind, "c2") == wanted("one")
    await driver.delete_volume(kind, "c2")
    await driver.settle()
    assert os.listdir(path / "frozen") == os.listdir(path / "images") == []


async def test_copying_a_stopped_volume_leaves_it_as_it_was(driver: Driver, kind: VolumeKind, path: Path) -> None:
    await write(driver, kind, "c1", "one")
    async with driver.view(kind, "c1", IdMap()) as root:
        assert content(root) == wanted("one")
    await driver.copy_volume(kind, "c1", "c2")
    await driver.delete_volume(kind, "c2")
    async with driver.view(kind, "c1", IdMap()) as root:
        assert content(root) == wanted("one")
    await driver.settle()
    assert os.listdir(path / "frozen") == []
    assert tidy(path)
    assert not [name for name in os.listdir(path) if name.startswith(".view-")]


async def test_the_content_of_another_volume(driver: Driver, kind: VolumeKind) -> None:
    await make_volume(driver, kind, "c2")
    await write(driver, kind, "c1", "one")
    await write(driver, kind, "c2", "other")
    for _ in range(2):
        await driver.replace_content(kind, "c2", "c1")
    await write(driver, kind, "c1", "two")
    assert await read(driver, kind, "c2") == wanted("one")


async def test_a_volume_from_a_tree(driver: Driver, kind: VolumeKind) -> None:
    unpack = make_unpack()
    for _ in range(2):
        await driver.create_from_tree(kind, "c2", unpack, size_bytes=0)
    assert unpack.calls == 1
    for idmap in (IDMAP, OTHER):
        async with mounted(driver, kind, "c2", idmap) as root:
            assert (root / "etc" / "hostname").read_text() == "image\n"
            assert (root / "bin" / "tool").stat().st_mode & 0o7777 == 0o4755
    await write(driver, kind, "c2", "one")
    await driver.create_snapshot(kind, "c2", "snap0")
    await write(driver, kind, "c2", "two")
    await driver.restore_snapshot(kind, "c2", "snap0")
    assert await read(driver, kind, "c2") == wanted("one")


async def test_a_tree_that_fails_leaves_nothing(driver: Driver, kind: VolumeKind, path: Path) -> None:
    with pytest.raises(RuntimeError, match="torn"):
        await driver.create_from_tree(kind, "c2", make_unpack(RuntimeError("torn")), size_bytes=0)
    assert (kind, "c2") not in await driver.list_volumes()
    await driver.settle()
    assert os.listdir(path / "frozen") == []
    assert tidy(path)


async def test_a_refreshed_volume(driver: Driver, kind: VolumeKind) -> None:
    await make_volume(driver, kind, "c2")
    await write(driver, kind, "c1", "one")
    await write(driver, kind, "c2", "other")
    for _ in range(2):
        await driver.refresh_volume(kind, "c2", lambda idmap: driver.view(kind, "c1", idmap))
    assert await read(driver, kind, "c2") == wanted("one")
    assert await read(driver, kind, "c1") == wanted("one")


async def test_a_restarted_daemon_sweeps_what_nothing_refers_to(
    driver: Driver, kind: VolumeKind, make: MakeDriver, path: Path
) -> None:
    await write(driver, kind, "c1", "one")
    await driver.create_snapshot(kind, "c1", "snap0")
    (path / "frozen" / "0123").mkdir()
    (path / ".view-0123").mkdir()
    again = make("p")
    await again.mount_pool()
    await again.settle()
    assert "0123" not in os.listdir(path / "frozen")
    assert not (path / ".view-0123").exists()
    await again.restore_snapshot(kind, "c1", "snap0")
    assert await read(again, kind, "c1") == wanted("one")


@pytest.mark.parametrize("moved", [False, True], ids=["before the swap", "inside the swap"])
async def test_a_swap_that_a_crash_cut_short(driver: Driver, kind: VolumeKind, path: Path, moved: bool) -> None:
    await write(driver, kind, "c1", "one")
    here = path / ("custom" if kind == "custom" else "containers") / "c1"
    part = "layer" if (here / "layer").exists() else "data"
    if moved:
        (here / part).rename(here / f"{part}.old")
    else:
        (here / f"{part}.new").mkdir()
    await driver.create_snapshot(kind, "c1", "snap0")
    assert not (here / f"{part}.new").exists()
    assert await read(driver, kind, "c1") == wanted("one")
