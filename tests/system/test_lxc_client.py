# SPDX-License-Identifier: Apache-2.0
"""Debian's unmodified `lxc` client against a real daemon, command by command."""

import json
import os
import pty
import select
import struct
import subprocess
import time
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest
import yaml

from tests.system.machine import Machine, wait_until


@pytest.fixture(scope="module")
def running(tiny: Machine):
    """An instance that this module's tests share."""
    tiny.lxc("launch", "tiny", "shared")
    yield "shared"
    tiny.lxc("delete", "-f", "shared")


def _state(machine: Machine, name: str) -> str:
    listed = json.loads(machine.lxc("list", name, "--format", "json").stdout)
    return next(instance["status"] for instance in listed if instance["name"] == name)


def test_launch_list_stop_start_delete(tiny: Machine):
    tiny.lxc("launch", "tiny", "c1")
    assert _state(tiny, "c1") == "Running"
    assert "c1" in tiny.lxc("list").stdout
    tiny.lxc("stop", "c1", "--force")
    assert _state(tiny, "c1") == "Stopped"
    tiny.lxc("start", "c1")
    tiny.lxc("restart", "c1", "--force")
    assert _state(tiny, "c1") == "Running"
    refused = tiny.lxc("delete", "c1", check=False)
    assert refused.returncode == 1
    assert "running" in refused.stderr
    tiny.lxc("delete", "c1", "--force")
    assert "c1" not in tiny.lxc("list", "--format", "csv").stdout


def test_clean_stop_and_poweroff_from_inside(tiny: Machine):
    tiny.lxc("launch", "tiny", "c2")
    tiny.lxc("stop", "c2", "--timeout", "30")
    assert _state(tiny, "c2") == "Stopped"
    tiny.lxc("start", "c2")
    tiny.lxc("exec", "c2", "--", "poweroff", check=False)
    wait_until(lambda: _state(tiny, "c2") == "Stopped")
    tiny.lxc("delete", "c2")


def test_reboot_from_inside_starts_it_again(tiny: Machine):
    tiny.lxc("launch", "tiny", "c3")
    before = tiny.get("/1.0/instances/c3/state")["pid"]
    tiny.lxc("exec", "c3", "--", "reboot", check=False)

    def again() -> bool:
        state = tiny.get("/1.0/instances/c3/state")
        return state["status"] == "Running" and state["pid"] not in (0, before)

    wait_until(again)
    tiny.lxc("delete", "-f", "c3")


def test_pause(tiny: Machine, running: str):
    tiny.lxc("pause", running)
    assert _state(tiny, running) == "Frozen"
    refused = tiny.lxc("exec", running, "--", "true", check=False)
    assert "frozen" in refused.stderr.lower()
    tiny.lxc("start", running)
    assert _state(tiny, running) == "Running"


def test_exec_streams_and_status(tiny: Machine, running: str):
    done = tiny.lxc("exec", running, "--", "sh", "-c", "cat; echo wrong >&2; exit 7", stdin=b"typed in\n", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "typed in\n", "wrong\n")


@pytest.mark.parametrize(
    ("command", "status"),
    [("kill -TERM $$", 143), ("kill -KILL $$", 137), ("exit 0", 0), ("/nonexistent", 127), ("/etc", 126)],
)
def test_exec_status_of_signals_and_shell_errors(tiny: Machine, running: str, command: str, status: int):
    assert tiny.lxc("exec", running, "--", "sh", "-c", command, check=False).returncode == status


def test_exec_of_a_command_that_is_not_there(tiny: Machine, running: str):
    assert tiny.lxc("exec", running, "--", "/no/such/command", check=False).returncode == 127
    assert tiny.lxc("exec", running, "--", "/etc/passwd", check=False).returncode == 126


def test_exec_user_directory_and_environment(tiny: Machine, running: str):
    script = "id -u; id -g; pwd; echo $GREETING"
    argv = ["exec", running, "--user", "1000", "--group", "1001", "--cwd", "/tmp", "--env", "GREETING=hello"]
    assert tiny.lxc(*argv, "--", "sh", "-c", script).stdout.split() == ["1000", "1001", "/tmp", "hello"]


def test_configured_environment(tiny: Machine, running: str):
    tiny.lxc("config", "set", running, "environment.COLOUR", "blue")
    assert tiny.lxc("exec", running, "--", "sh", "-c", "echo $COLOUR").stdout == "blue\n"
    tiny.lxc("config", "unset", running, "environment.COLOUR")


def test_big_output_arrives_whole(tiny: Machine, running: str):
    done = tiny.lxc("exec", running, "--", "sh", "-c", "dd if=/dev/zero bs=1024 count=20000 2>/dev/null | tr '\\0' x")
    assert len(done.stdout) == 20000 * 1024


def test_terminal_and_its_size(tiny: Machine, running: str):
    """A person's terminal: the command sees it, its size, and a resize while it runs."""
    master, slave = pty.openpty()
    ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    script = "tty; stty size; read line; stty size; exit 3"
    argv = ["lxc", "exec", running, "--", "sh", "-c", script]
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=tiny.environment())
    os.close(slave)
    seen = _read_until(master, b"30 100")
    assert b"/dev/pts/" in seen or b"/dev/console" in seen
    ioctl(master, TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
    process.send_signal(28)  # SIGWINCH, as a terminal emulator causes it
    time.sleep(0.3)
    os.write(master, b"\n")
    _read_until(master, b"50 132")
    assert process.wait(timeout=30) == 3
    os.close(master)


def test_console(tiny: Machine, running: str):
    """What init writes arrives, and `<ctrl>+a q` detaches."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["lxc", "console", running], stdin=slave, stdout=slave, stderr=slave, env=tiny.environment()
    )
    os.close(slave)
    _read_until(master, b"<ctrl>+a q")
    tiny.lxc("exec", running, "--", "sh", "-c", "echo from inside > /dev/console")
    _read_until(master, b"from inside")
    for key in (b"\x01", b"q"):  # as a person types: lxc takes them from reads of their own
        os.write(master, key)
        time.sleep(0.2)
    assert process.wait(timeout=30) == 0
    os.close(master)
    assert "from inside" in tiny.lxc("console", running, "--show-log").stdout


def _read_until(fd: int, wanted: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + 30
    while wanted not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([fd], [], [], 1)[0]:
            seen += os.read(fd, 4096)
    return seen


def test_files(tiny: Machine, running: str, tmp_path: Path):
    source = tmp_path / "file"
    source.write_bytes(os.urandom(300_000))
    nowhere = tiny.lxc("file", "push", str(source), f"{running}/srv/a/b", check=False)
    assert "No such file or directory" in nowhere.stderr
    tiny.lxc(
        "file", "push", "-p", "--uid", "1000", "--gid", "1001", "--mode", "0640", str(source), f"{running}/srv/a/b"
    )
    assert tiny.lxc("exec", running, "--", "stat", "-c", "%u %g %a", "/srv/a/b").stdout.split() == [
        "1000",
        "1001",
        "640",
    ]
    back = tmp_path / "back"
    tiny.lxc("file", "pull", f"{running}/srv/a/b", str(back))
    assert back.read_bytes() == source.read_bytes()
    tiny.lxc("file", "delete", f"{running}/srv/a/b")
    missing = tiny.lxc("file", "pull", f"{running}/srv/a/b", str(back), check=False)
    assert missing.returncode == 1


def test_files_recursive(tiny: Machine, running: str, tmp_path: Path):
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "deep" / "er" / "file").write_text("down here")
    (tree / "link").symlink_to("deep/er/file")
    tiny.lxc("file", "push", "-r", str(tree), f"{running}/root")
    tiny.lxc("file", "pull", "-r", f"{running}/root/tree", str(tmp_path / "out"))
    out = tmp_path / "out" / "tree"
    if not out.exists():
        out = tmp_path / "out"
    assert (out / "deep" / "er" / "file").read_text() == "down here"
    assert os.readlink(out / "link") == "deep/er/file"


def test_files_of_a_stopped_instance(tiny: Machine, tmp_path: Path):
    tiny.lxc("init", "tiny", "still")
    source = tmp_path / "file"
    source.write_text("before the first start")
    tiny.lxc("file", "push", str(source), "still/root/file")
    tiny.lxc("file", "pull", "still/root/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == source.read_text()
    tiny.lxc("start", "still")
    assert tiny.lxc("exec", "still", "--", "cat", "/root/file").stdout == source.read_text()
    assert tiny.lxc("exec", "still", "--", "stat", "-c", "%u", "/root/file").stdout.strip() == "0"
    tiny.lxc("delete", "-f", "still")


def test_config_of_a_running_instance(tiny: Machine, running: str):
    tiny.lxc("config", "set", running, "user.colour", "red")
    assert tiny.lxc("config", "get", running, "user.colour").stdout.strip() == "red"
    shown = yaml.safe_load(tiny.lxc("config", "show", running).stdout)
    assert shown["config"]["user.colour"] == "red"
    tiny.lxc("config", "unset", running, "user.colour")
    refused = tiny.lxc("config", "set", running, "no.such.key", "1", check=False)
    assert refused.returncode == 1
    assert "no.such.key" in refused.stderr


def test_profiles(tiny: Machine):
    tiny.lxc("profile", "create", "extra")
    tiny.lxc("profile", "set", "extra", "user.from", "profile")
    tiny.lxc("init", "tiny", "p1", "-p", "default", "-p", "extra")
    shown = yaml.safe_load(tiny.lxc("config", "show", "p1", "--expanded").stdout)
    assert shown["config"]["user.from"] == "profile"
    assert tiny.lxc("profile", "delete", "extra", check=False).returncode == 1
    tiny.lxc("profile", "rename", "extra", "other")
    assert yaml.safe_load(tiny.lxc("config", "show", "p1").stdout)["profiles"] == ["default", "other"]
    tiny.lxc("profile", "remove", "p1", "other")
    tiny.lxc("profile", "delete", "other")
    tiny.lxc("delete", "p1")


def test_rename(tiny: Machine):
    tiny.lxc("launch", "tiny", "old")
    assert tiny.lxc("rename", "old", "new", check=False).returncode == 1
    tiny.lxc("exec", "old", "--", "sh", "-c", "echo kept > /root/kept")
    tiny.lxc("stop", "-f", "old")
    tiny.lxc("rename", "old", "new")
    tiny.lxc("start", "new")
    assert tiny.lxc("exec", "new", "--", "cat", "/root/kept").stdout == "kept\n"
    assert tiny.lxc("exec", "new", "--", "hostname").stdout.strip() == "new"
    tiny.lxc("delete", "-f", "new")


def test_ephemeral(tiny: Machine):
    tiny.lxc("launch", "tiny", "brief", "--ephemeral")
    tiny.lxc("restart", "-f", "brief")
    assert _state(tiny, "brief") == "Running"
    tiny.lxc("stop", "-f", "brief")
    wait_until(lambda: "brief" not in tiny.lxc("list", "--format", "csv").stdout)


def test_disk_device(tiny: Machine, tmp_path: Path):
    (tmp_path / "hello").write_text("from the host")
    os.chmod(tmp_path, 0o755)
    tiny.lxc("init", "tiny", "disk")
    tiny.lxc("config", "device", "add", "disk", "data", "disk", f"source={tmp_path}", "path=/mnt/data", "shift=true")
    tiny.lxc("start", "disk")
    assert tiny.lxc("exec", "disk", "--", "cat", "/mnt/data/hello").stdout == "from the host"
    tiny.lxc("exec", "disk", "--", "sh", "-c", "echo hi > /mnt/data/back")
    assert (tmp_path / "back").stat().st_uid == 0
    tiny.lxc("stop", "-f", "disk")
    tiny.lxc("config", "device", "remove", "disk", "data")
    tiny.lxc("delete", "disk")


def test_images(tiny: Machine, tmp_path: Path):
    listed = json.loads(tiny.lxc("image", "list", "--format", "json").stdout)
    assert any(alias["name"] == "tiny" for image in listed for alias in image["aliases"])
    tiny.lxc("image", "alias", "create", "also", listed[0]["fingerprint"])
    tiny.lxc("image", "info", "also")
    tiny.lxc("image", "set-property", "also", "colour", "green")
    assert tiny.lxc("image", "get-property", "also", "colour").stdout.strip() == "green"
    tiny.lxc("image", "export", "also", str(tmp_path / "out"))
    tiny.lxc("image", "alias", "delete", "also")


def test_network_and_storage_shown(tiny: Machine):
    assert "flexbr0" in tiny.lxc("network", "list").stdout
    assert "198.18.77.1/24" in tiny.lxc("network", "show", "flexbr0").stdout
    assert "default" in tiny.lxc("storage", "list").stdout
    tiny.lxc("storage", "info", "default")
    tiny.lxc("network", "info", "flexbr0")


def test_info_and_logs(tiny: Machine, running: str):
    info = tiny.lxc("info", running).stdout
    assert "Status: RUNNING" in info.upper().replace("STATUS", "Status") or "RUNNING" in info
    assert "Processes" in info
    tiny.lxc("info")
    tiny.lxc("info", running, "--show-log")
    tiny.lxc("operation", "list")


def test_privileged_and_isolated(tiny: Machine):
    tiny.lxc("launch", "tiny", "priv", "-c", "security.privileged=true")
    assert tiny.lxc("exec", "priv", "--", "cat", "/proc/self/uid_map").stdout.split() == ["0", "0", "4294967295"]
    tiny.lxc("delete", "-f", "priv")
    for name in ("iso1", "iso2"):
        tiny.lxc("launch", "tiny", name, "-c", "security.idmap.isolated=true")
    maps = [tiny.lxc("exec", name, "--", "cat", "/proc/self/uid_map").stdout.split() for name in ("iso1", "iso2")]
    assert maps[0][1] != maps[1][1]
    assert maps[0][2] == maps[1][2] == "65536"
    tiny.lxc("delete", "-f", "iso1", "iso2")
