# SPDX-License-Identifier: Apache-2.0
"""Templates, publishing, rebuilding and backups with Debian's `lxc`, and backups exchanged with a real lxd."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.system.machine import Machine

TEMPLATES = {
    "templates": {
        "/etc/name": {"when": ["create", "copy", "rename"], "template": "name.tpl"},
        "/etc/each": {"when": ["start"], "template": "each.tpl", "properties": {"colour": "red"}},
    }
}


def _exec(machine: Machine, name: str, *argv: str) -> str:
    return machine.lxc("exec", name, "--", *argv).stdout


def _dress(machine: Machine, name: str) -> None:
    """Give an instance templates, as `lxc config metadata` and `lxc config template` do."""
    shown = yaml.safe_load(machine.lxc("config", "metadata", "show", name).stdout)
    text = yaml.safe_dump(shown | TEMPLATES).encode()
    machine.lxc("config", "metadata", "edit", name, stdin=text)
    for template, source in (
        ("name.tpl", "{{ trigger }} {{ instance.name }}\n"),
        ("each.tpl", '{{ properties.colour }} {{ config_get("user.x", "none") }}\n'),
    ):
        machine.lxc("config", "template", "create", name, template)
        machine.lxc("config", "template", "edit", name, template, stdin=source.encode())


def test_templates(tiny: Machine):
    tiny.lxc("init", "tiny", "t1")
    _dress(tiny, "t1")
    assert "name.tpl" in tiny.lxc("config", "template", "list", "t1").stdout
    assert tiny.lxc("config", "template", "show", "t1", "name.tpl").stdout == "{{ trigger }} {{ instance.name }}\n"
    tiny.lxc("start", "t1")
    assert _exec(tiny, "t1", "cat", "/etc/name", "/etc/each") == "create t1\nred none\n"
    assert _exec(tiny, "t1", "stat", "-c", "%u:%g:%a", "/etc/name") == "0:0:644\n"
    tiny.lxc("config", "set", "t1", "user.x=1")
    tiny.lxc("restart", "-f", "t1")
    assert _exec(tiny, "t1", "cat", "/etc/name", "/etc/each") == "create t1\nred 1\n"
    tiny.lxc("stop", "-f", "t1")
    tiny.lxc("copy", "t1", "t2")
    tiny.lxc("start", "t2")
    assert _exec(tiny, "t2", "cat", "/etc/name") == "copy t2\n"
    tiny.lxc("config", "template", "delete", "t1", "name.tpl")
    assert "name.tpl" not in tiny.lxc("config", "template", "list", "t1").stdout
    tiny.lxc("delete", "-f", "t1", "t2")


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd", "squashfs"])
def test_publish(tiny: Machine, compression: str):
    tiny.lxc("launch", "tiny", "p1")
    _exec(tiny, "p1", "sh", "-c", "echo mine >/root/mine; chown 7:8 /root/mine; ln /root/mine /root/again")
    tiny.lxc("publish", "p1", "--force", "--alias", "published", "--compression", compression, "description=of mine")
    assert "description: of mine" in tiny.lxc("image", "show", "published").stdout
    tiny.lxc("launch", "published", "p2")
    assert _exec(tiny, "p2", "cat", "/root/mine") == "mine\n"
    assert _exec(tiny, "p2", "stat", "-c", "%u:%g:%h", "/root/mine") == "7:8:2\n"
    tiny.lxc("delete", "-f", "p1", "p2")
    tiny.lxc("image", "delete", "published")


def test_rebuild(tiny: Machine):
    tiny.lxc("launch", "tiny", "r1", "-c", "user.kept=1")
    _exec(tiny, "r1", "touch", "/root/gone")
    tiny.flexc("rebuild", "tiny", "r1", "--force")
    assert _exec(tiny, "r1", "ls", "/root") == ""
    assert tiny.lxc("config", "get", "r1", "user.kept").stdout == "1\n"
    tiny.lxc("delete", "-f", "r1")


def _prepare(machine: Machine, name: str) -> None:
    """An instance whose files have owners, links and a snapshot."""
    machine.lxc("launch", "tiny", name, "-c", "user.kept=1")
    _exec(machine, name, "sh", "-c", "echo old >/root/file; chown 7:8 /root/file; mkfifo /root/pipe")
    machine.lxc("snapshot", name, "s0")
    _exec(machine, name, "sh", "-c", "echo new >/root/file; ln /root/file /root/again; ln -s /etc /root/link")


def _check(machine: Machine, name: str, run: bool = True) -> None:
    if run:
        machine.lxc("start", name)
    assert _exec(machine, name, "cat", "/root/file") == "new\n"
    assert _exec(machine, name, "stat", "-c", "%u:%g:%h", "/root/file") == "7:8:2\n"
    assert _exec(machine, name, "readlink", "/root/link") == "/etc\n"
    assert machine.lxc("config", "get", name, "user.kept").stdout == "1\n"
    machine.lxc("copy", f"{name}/s0", f"{name}-then")
    machine.lxc("start", f"{name}-then")
    assert _exec(machine, f"{name}-then", "cat", "/root/file") == "old\n"
    machine.lxc("delete", "-f", name, f"{name}-then")


@pytest.mark.parametrize("compression", ["none", "gzip", "xz"])
def test_export_and_import(tiny: Machine, tmp_path: Path, compression: str):
    _prepare(tiny, "b1")
    file = tmp_path / "b1.tar"
    tiny.lxc("export", "b1", os.fspath(file), "--compression", compression)
    assert tiny.get("/1.0/instances/b1/backups") == []  # the client deletes it again
    taken = tiny.get("/1.0/instances/b1/snapshots/s0")["created_at"]
    tiny.lxc("delete", "-f", "b1")
    tiny.lxc("import", os.fspath(file))
    assert tiny.get("/1.0/instances/b1/snapshots/s0")["created_at"] == taken
    tiny.lxc("import", os.fspath(file), "b2")
    _check(tiny, "b1")
    _check(tiny, "b2")


def test_flexc_exports_and_imports(tiny: Machine, tmp_path: Path):
    _prepare(tiny, "f1")
    file = tmp_path / "f1.tar.gz"
    tiny.flexc("export", "f1", os.fspath(file), "--instance-only")
    tiny.flexc("import", os.fspath(file), "f2")
    assert tiny.get("/1.0/instances/f2/snapshots") == []
    refused = tiny.flexc("export", "f1", os.fspath(file), "--optimized-storage", check=False)
    assert "has no optimized format" in refused.stderr
    tiny.lxc("delete", "-f", "f1", "f2")


# --- a real lxd ---


class Lxd(Machine):
    """Debian's lxd beside ours, with a pool of its own and no network; the client part of a machine."""

    def start(self) -> None:
        self.directory.mkdir(parents=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.enter(), "lxd", "--group", "root"],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"lxd did not come up:\n{self.log_tail()}")
            time.sleep(0.1)
        self.call("POST", "/1.0/storage-pools", {"name": "default", "driver": "dir"})
        root = {"type": "disk", "path": "/", "pool": "default"}
        self.call("PUT", "/1.0/profiles/default", {"devices": {"root": root}})

    def end(self) -> None:
        with contextlib.suppress(Exception):
            self.clear()
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=60)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            mount = line.split()[4]
            if mount.startswith(os.fspath(self.directory)):
                subprocess.run(["umount", "-l", mount], check=False)
        self._anchor.kill()
        self._anchor.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture(scope="module")
def lxd(state_root: Path) -> Iterator[Lxd]:
    if shutil.which("lxd") is None:
        pytest.skip("lxd is not installed")
    made = Lxd(state_root / "lxd")
    try:
        made.start()
        yield made
    finally:
        made.end()


def test_a_backup_of_ours_is_restored_by_lxd(tiny: Machine, lxd: Lxd, tmp_path: Path):
    _prepare(tiny, "x1")
    _dress(tiny, "x1")
    file = tmp_path / "x1.tar.gz"
    tiny.lxc("config", "device", "add", "x1", "eth0", "none")
    tiny.lxc("export", "x1", os.fspath(file))
    lxd.lxc("import", os.fspath(file))
    assert lxd.lxc("config", "template", "show", "x1", "name.tpl").stdout == "{{ trigger }} {{ instance.name }}\n"
    _check(lxd, "x1")
    tiny.lxc("delete", "-f", "x1")


def test_a_backup_of_lxd_is_restored_here(tiny: Machine, lxd: Lxd, tmp_path: Path):
    image = tmp_path / "tiny"
    tiny.lxc("image", "export", "tiny", os.fspath(image))
    exported = next(tmp_path.glob("tiny*"))
    lxd.lxc("image", "import", os.fspath(exported), "--alias", "tiny")
    _prepare(lxd, "y1")
    file = tmp_path / "y1.backup"
    lxd.lxc("export", "y1", os.fspath(file))
    tiny.lxc("import", os.fspath(file), "y2")
    _check(tiny, "y2")
    lxd.lxc("delete", "-f", "y1")


def test_images_are_exchanged(tiny: Machine, lxd: Lxd, tmp_path: Path):
    """A published image has the same fingerprint there, so it is the same file."""
    tiny.lxc("init", "tiny", "z1")
    tiny.lxc("publish", "z1", "--alias", "z")
    tiny.lxc("image", "export", "z", os.fspath(tmp_path / "z"))
    lxd.lxc("image", "import", os.fspath(next(tmp_path.glob("z*"))), "--alias", "z")
    fingerprint = tiny.get("/1.0/images/aliases/z")["target"]
    assert lxd.get("/1.0/images/aliases/z")["target"] == fingerprint
    lxd.lxc("launch", "z", "z2")
    assert _exec(lxd, "z2", "cat", "/etc/passwd").startswith("root:")
    lxd.lxc("delete", "-f", "z2")
    tiny.lxc("delete", "z1")
    tiny.lxc("image", "delete", "z")
