# SPDX-License-Identifier: Apache-2.0
"""Layers of an overlay joined: what is seen stays the same, whatever was done to the files; and chains stay short."""

import asyncio
import os
import random
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flexd.host.contract import Layer
from flexd.host.linux import LinuxHost
from flexd.storage.contract import Driver
from flexd.storage.layers import Tangled, join
from tests.contract.storage.places import IDMAP, make_unpack

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

NAMES = ("a", "b", "c", "d")
# What overlays of the driver are mounted with.
OPTIONS = "index=off,metacopy=off,redirect_dir=on,xino=auto"


@contextmanager
def mounted(place: Path, lowers: list[Path], upper: Path | None = None) -> Iterator[Path]:
    target = place / "view"
    target.mkdir(exist_ok=True)
    options = f"lowerdir={':'.join(str(lower) for lower in lowers)},{OPTIONS}"
    if upper is not None:
        work = place / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        options += f",upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(target)], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)


def seen(tree: Path) -> dict[str, object]:
    """Everything that can be seen of a tree."""
    found: dict[str, object] = {}
    for place, folders, files in os.walk(tree):
        for name in (*folders, *files):
            path = Path(place) / name
            what = path.lstat()
            content = path.read_text() if stat.S_ISREG(what.st_mode) else sorted(os.listdir(path))
            found[str(path.relative_to(tree))] = (stat.S_IFMT(what.st_mode), stat.S_IMODE(what.st_mode), content)
    return found


def change(tree: Path, dice: random.Random, step: str) -> None:
    """One thing that somebody does to files."""
    paths = [tree / "/".join(dice.choices(NAMES, k=dice.randint(1, 3))) for _ in range(2)]
    one, two = paths
    what = dice.choice(("write", "write", "folder", "remove", "remove_tree", "rename", "rename", "mode"))
    if what == "write" and one.parent.is_dir() and not one.is_dir():
        one.write_text(step)
    elif what == "folder" and one.parent.is_dir() and not one.exists():
        one.mkdir()
    elif what == "remove" and one.is_file():
        one.unlink()
    elif what == "remove_tree" and one.is_dir():
        shutil.rmtree(one)
    elif what == "rename" and one.exists() and two.parent.is_dir() and not two.exists():
        if one not in two.parents:
            one.rename(two)
    elif what == "mode" and one.exists():
        one.chmod(dice.choice((0o700, 0o755)))


def _populate(tree: Path, depth: int = 3) -> None:
    for name in NAMES:
        if depth > 1:
            (tree / name).mkdir()
            _populate(tree / name, depth - 1)
        else:
            (tree / name).write_text("image")


@pytest.fixture
def scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="flexd-test-layers-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@needs_root
@pytest.mark.parametrize("seed", range(40))
def test_joined_layers_show_the_same(scratch: Path, seed: int):
    dice = random.Random(seed)
    base, lower, upper = (scratch / name for name in ("base", "lower", "upper"))
    for path in (base, lower, upper):
        path.mkdir()
    _populate(base)
    for layer, below in ((lower, [base]), (upper, [lower, base])):
        with mounted(scratch, below, layer) as view:
            for number in range(12):
                change(view, dice, f"{layer.name}{number}")
    with mounted(scratch, [upper, lower, base]) as view:
        before = seen(view)
    try:
        join(upper, lower)
    except Tangled:
        below = [upper, lower, base]
    else:
        below = [upper, base]
    with mounted(scratch, below) as view:
        assert seen(view) == before
    # Even the lower layer's own leftovers change nothing where the two stay together.
    with mounted(scratch, [upper, lower, base]) as view:
        assert seen(view) == before


@needs_root
def test_most_layers_can_be_joined(scratch: Path):
    """The random test above would pass if none ever was."""
    base, lower, upper = (scratch / name for name in ("base", "lower", "upper"))
    for path in (base, lower, upper):
        path.mkdir()
    _populate(base)
    with mounted(scratch, [base], lower) as view:
        shutil.rmtree(view / "a")
        (view / "a").mkdir()
        (view / "a" / "new").write_text("lower")
        (view / "b" / "b").rename(view / "moved")
        (view / "c" / "a" / "a").unlink()
    with mounted(scratch, [lower, base], upper) as view:
        (view / "a" / "newer").write_text("upper")
        (view / "c" / "a" / "b").unlink()
        (view / "d" / "a").rename(view / "d" / "other")
        before = seen(view)
    join(upper, lower)
    with mounted(scratch, [upper, base]) as view:
        assert seen(view) == before


@needs_root
@pytest.mark.parametrize("where", ["upper", "lower"])
def test_what_a_renamed_directory_keeps_apart(scratch: Path, where: str):
    base, lower, upper = (scratch / name for name in ("base", "lower", "upper"))
    for path in (base, lower, upper):
        path.mkdir()
    _populate(base)
    with mounted(scratch, [base], lower) as view:
        if where == "lower":
            (view / "a").rename(view / "moved")
        else:
            (view / "a" / "new").write_text("lower")
    with mounted(scratch, [lower, base], upper) as view:
        if where == "lower":
            (view / "moved" / "new").write_text("upper")
        else:
            (view / "a").rename(view / "moved")
        before = seen(view)
    with pytest.raises(Tangled):
        join(upper, lower)
    with mounted(scratch, [upper, lower, base]) as view:
        assert seen(view) == before


# --- the driver ---


async def _write(driver: Driver, name: str) -> None:
    root = await driver.mount_volume("container", "c1", IDMAP)
    await asyncio.to_thread((root / name).write_text, name)
    await driver.unmount_volume("container", "c1")


def _layers(path: Path) -> int:
    return len(os.listdir(path / "frozen"))


@pytest.mark.parametrize("driver_name", ["overlay"])
@pytest.mark.parametrize("order", ["the newest first", "the oldest first", "at once"])
async def test_a_hundred_snapshots_leave_no_layers(driver: Driver, path: Path, order: str):
    """Each with something written in between; afterwards the volume is one layer on its image again."""
    count = 100 if order == "at once" else 30
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    for number in range(count):
        await _write(driver, f"file{number}")
        await driver.create_snapshot("container", "c1", f"snap{number}")
        if order == "at once":
            await _write(driver, f"later{number}")
            await driver.delete_snapshot("container", "c1", f"snap{number}")
    names = [] if order == "at once" else [f"snap{number}" for number in range(count)]
    for name in reversed(names) if order == "the newest first" else names:
        await driver.delete_snapshot("container", "c1", name)
    await driver.settle()
    assert _layers(path) == 0
    root = await driver.mount_volume("container", "c1", IDMAP)
    assert {f"file{number}" for number in range(count)} <= set(os.listdir(root))
    assert (root / "etc" / "hostname").read_text() == "image\n"


@pytest.mark.parametrize("driver_name", ["overlay"])
async def test_what_a_snapshot_shows_outlives_the_others(driver: Driver, path: Path):
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    for number in range(5):
        await _write(driver, f"file{number}")
        await driver.create_snapshot("container", "c1", f"snap{number}")
    await _write(driver, "last")
    shown = await driver.mount_snapshot("container", "c1", "snap2", IDMAP)
    for number in (0, 1, 3):
        await driver.delete_snapshot("container", "c1", f"snap{number}")
    assert sorted(set(os.listdir(shown)) - {"bin", "etc"}) == ["file0", "file1", "file2"]
    await driver.unmount_snapshot("container", "c1", "snap2")
    await driver.restore_snapshot("container", "c1", "snap4")
    root = await driver.mount_volume("container", "c1", IDMAP)
    assert sorted(set(os.listdir(root)) - {"bin", "etc"}) == [f"file{number}" for number in range(5)]
    await driver.unmount_volume("container", "c1")
    await driver.delete_snapshot("container", "c1", "snap4")
    await driver.settle()
    shown = await driver.mount_snapshot("container", "c1", "snap2", IDMAP)
    assert sorted(set(os.listdir(shown)) - {"bin", "etc"}) == ["file0", "file1", "file2"]


@pytest.mark.parametrize("driver_name", ["overlay"])
async def test_layers_that_a_copy_lies_on_stay(driver: Driver):
    await driver.create_from_image("container", "c1", "f00", make_unpack(), size_bytes=0)
    for number in range(3):
        await _write(driver, f"file{number}")
        await driver.create_snapshot("container", "c1", f"snap{number}")
    await driver.copy_volume("container", "c1", "c2", snapshot="snap1")
    root = await driver.mount_volume("container", "c2", IDMAP)
    await _write(driver, "last")
    for number in range(3):
        await driver.delete_snapshot("container", "c1", f"snap{number}")
    await driver.settle()
    assert sorted(set(os.listdir(root)) - {"bin", "etc"}) == ["file0", "file1"]
    mine = await driver.mount_volume("container", "c1", IDMAP)
    assert sorted(set(os.listdir(mine)) - {"bin", "etc"}) == ["file0", "file1", "file2", "last"]


@needs_root
@pytest.mark.parametrize("fds", [True, False])
async def test_many_layers_are_mounted(scratch: Path, fds: bool):
    """As many as the driver stacks, and its image, also by paths: those have one page for all their names."""
    host = LinuxHost()
    try:
        host.mounts.layers_as_fds = None if fds else False
        layers = []
        for number in range(65):
            layer = scratch / f"a-name-as-long-as-that-of-a-frozen-layer-{number}"
            layer.mkdir()
            (layer / f"file{number}").touch()
            layers.append(Layer(layer, IDMAP))
        target = scratch / "target"
        target.mkdir()
        await host.mounts.overlay_layers(target, layers)
        assert len(os.listdir(target)) == len(layers)
        await host.mounts.unmount(target)
    finally:
        await host.close()
