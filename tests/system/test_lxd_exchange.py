# SPDX-License-Identifier: Apache-2.0
"""Backups between us and Debian's lxd 5.0.2, both ways: instances and volumes, plain and in btrfs' own format."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.peers import remove_lxd_cgroups
from tests.bench.place import Place
from tests.system.images import tiny_image
from tests.system.machine import Machine, machine

pytestmark = pytest.mark.skipif(shutil.which("lxd") is None, reason="not installed: lxd")

PLAIN, OPTIMIZED = (), ("--optimized-storage",)


class Side:
    """A daemon and a command to drive it; where a path leads to in its mounts."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], root: str) -> None:
        self.name, self._command, self._environment, self._root = name, command, environment, root

    def wait_up(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self.run("query", "/1.0")
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def run(self, *arguments: str) -> str:
        argv = [*self._command, *arguments]
        done = subprocess.run(
            argv, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    def path(self, pool: str, folder: str, name: str) -> Path:
        return Path(f"{self._root}/storage-pools/{pool}/{folder}/{name}")

    def volume(self, pool: str, name: str) -> Path:
        """A volume's files, seen from here."""
        ours = self.path(pool, "custom", name) / "data"
        return self.path(pool, "custom", f"default_{name}") if self.name == "lxd" else ours


def _environment(environment: dict[str, str]) -> dict[str, str]:
    return environment | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


@pytest.fixture(scope="module")
def lxd(state_root: Path) -> Iterator[Side]:
    place = Place(state_root / "lxd")
    environment = _environment({"HOME": str(place.directory), "LXD_DIR": str(place.directory)})
    process = place.spawn("lxd", "--group", "root", env=environment)
    try:
        # Seen through a process that lives in its mount namespace.
        side = Side("lxd", ["lxc"], environment, f"/proc/{process.pid}/root{place.directory}")
        side.wait_up()
        side.run("storage", "create", "dir", "dir")
        side.run("storage", "create", "bt", "btrfs", "size=2GiB")
        side.run("image", "import", str(tiny_image()), "--alias", "tiny")
        yield side
    finally:
        place.close()
        process.wait()
        remove_lxd_cgroups()


@pytest.fixture(scope="module")
def flexd(state_root: Path) -> Iterator[Side]:

    with machine(state_root / "exchange") as made:
        for name, driver in (("dir", "dir"), ("bt", "btrfs")):
            config = {"size": "2GiB"} if driver == "btrfs" else {}
            made.call("POST", "/1.0/storage-pools", {"name": name, "driver": driver, "config": config})
        made.import_image(tiny_image(), "tiny")
        command = [*made.enter(), str(Path(sys.executable).parent / "flexc")]
        yield Side("flexd", command, _environment(made.environment()), _root_of(made))


def _root_of(made: Machine) -> str:
    return f"/proc/{made.pid}/root{made.directory}"


@pytest.fixture(params=["to us", "to lxd"])
def sides(request: pytest.FixtureRequest, lxd: Side, flexd: Side) -> tuple[Side, Side]:
    return (lxd, flexd) if request.param == "to us" else (flexd, lxd)


def _write_volume(side: Side, pool: str, name: str) -> None:
    side.run("storage", "volume", "create", pool, name, "user.kept=1")
    place = side.volume(pool, name)
    (place / "file").write_text("old")
    shutil.chown(place / "file", 5, 6)
    (place / "folder").mkdir(mode=0o750)
    side.run("storage", "volume", "snapshot", pool, name, "s0")
    (place / "file").write_text("new")
    (place / "later").write_text("later")


def _check_volume(side: Side, pool: str, name: str) -> None:
    place = side.volume(pool, name)
    found = (place / "file").stat()
    assert ((place / "file").read_text(), found.st_uid, found.st_gid) == ("new", 5, 6)
    assert (place / "folder").stat().st_mode & 0o777 == 0o750
    assert side.run("storage", "volume", "get", pool, name, "user.kept").strip() == "1"
    side.run("storage", "volume", "restore", pool, name, "s0")
    place = side.volume(pool, name)
    assert ((place / "file").read_text(), (place / "later").exists()) == ("old", False)


@pytest.mark.parametrize(("pool", "options"), [("dir", PLAIN), ("bt", PLAIN), ("bt", OPTIMIZED)])
def test_volumes(sides: tuple[Side, Side], pool: str, options: tuple[str, ...], tmp_path: Path):
    source, target = sides
    name = f"v-{pool}-{len(options)}-{source.name}"
    _write_volume(source, pool, name)
    file = str(tmp_path / "volume.tar")
    source.run("storage", "volume", "export", pool, name, file, *options)
    target.run("storage", "volume", "import", pool, file, name)
    _check_volume(target, pool, name)
    for side in sides:
        side.run("storage", "volume", "delete", pool, name)


@pytest.mark.parametrize(("pool", "options"), [("dir", PLAIN), ("bt", OPTIMIZED)])
def test_block_volumes(sides: tuple[Side, Side], pool: str, options: tuple[str, ...], tmp_path: Path):
    source, target = sides
    name = f"b-{pool}-{len(options)}-{source.name}"
    source.run("storage", "volume", "create", pool, name, "--type=block", "size=8MiB")
    with (source.volume(pool, name) / "root.img").open("r+b") as image:
        image.write(b"content")
    file = str(tmp_path / "volume.tar")
    source.run("storage", "volume", "export", pool, name, file, "--compression=none", *options)
    target.run("storage", "volume", "import", pool, file, name)
    image = target.volume(pool, name) / "root.img"
    assert (image.stat().st_size, image.read_bytes()[:7]) == (8 << 20, b"content")
    for side in sides:
        side.run("storage", "volume", "delete", pool, name)


def _make_instance(side: Side, name: str, pool: str) -> None:
    """Written to by a container that runs; with a subvolume of its own on btrfs."""
    side.run("init", "tiny", name, "-s", pool, "-c", "user.kept=1")
    side.run("start", name)
    side.run("exec", name, "--", "sh", "-c", "echo old >/root/file; mkdir /root/folder; chmod 750 /root/folder")
    side.run("snapshot", name, "s0")
    side.run("exec", name, "--", "sh", "-c", "echo new >/root/file; touch /root/later; ln /root/later /root/link")


def _nest(side: Side, pool: str, name: str) -> None:
    place = side.path(pool, "containers", name)
    root = place / ("rootfs" if side.name == "lxd" else "data")
    subprocess.run(["btrfs", "subvolume", "create", str(root / "nested")], check=True, capture_output=True)
    (root / "nested" / "inner").write_text("inner\n")


def _check_instance(side: Side, name: str, *, nested: bool) -> None:
    side.run("start", name)
    try:
        said = side.run("exec", name, "--", "sh", "-c", "cat /root/file; stat -c %a:%u /root/folder; ls /root")
        assert said.split() == ["new", "750:0", "file", "folder", "later", "link"]
        assert side.run("exec", name, "--", "stat", "-c", "%h", "/root/later").strip() == "2"
        if nested:
            assert side.run("exec", name, "--", "cat", "/nested/inner") == "inner\n"
    finally:
        side.run("stop", name, "--force")
    side.run("restore", name, "s0")
    side.run("start", name)
    try:
        assert side.run("exec", name, "--", "cat", "/root/file") == "old\n"
        assert "later" not in side.run("exec", name, "--", "ls", "/root")
    finally:
        side.run("delete", name, "--force")


@pytest.mark.parametrize(("pool", "options"), [("dir", PLAIN), ("bt", OPTIMIZED)])
def test_instances(sides: tuple[Side, Side], pool: str, options: tuple[str, ...], tmp_path: Path):
    source, target = sides
    name = f"c-{pool}-{len(options)}-{source.name}"
    _make_instance(source, name, pool)
    if options:
        _nest(source, pool, name)
    file = str(tmp_path / "instance.tar")
    source.run("export", name, file, *options)
    source.run("delete", name, "--force")
    target.run("import", file)
    _check_instance(target, name, nested=bool(options))
