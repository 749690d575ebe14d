# SPDX-License-Identifier: Apache-2.0
"""`flexc` against a real daemon, beside Debian's `lxc` where both have the same to say."""

import os
import pty
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest

from tests.system.machine import Machine, wait_until

FLEXC = str(Path(sys.executable).parent / "flexc")


@pytest.fixture(scope="module")
def running(tiny: Machine) -> Iterator[str]:
    """An instance that this module's tests share."""
    tiny.flexc("launch", "tiny", "flexed")
    yield "flexed"
    tiny.flexc("delete", "-f", "flexed")


def state_of(machine: Machine, name: str) -> str:
    return machine.flexc("list", f"^{name}$", "-f", "csv", "-c", "s").stdout.strip()


def test_a_life(tiny: Machine) -> None:
    assert tiny.flexc("launch", "tiny", "life", "-c", "user.a=b").stdout == "Creating life\nStarting life\n"
    assert state_of(tiny, "life") == "RUNNING"
    tiny.flexc("pause", "life")
    assert state_of(tiny, "life") == "FROZEN"
    tiny.flexc("start", "life")
    tiny.flexc("restart", "-f", "life")
    refused = tiny.flexc("delete", "life", check=False)
    assert (refused.returncode, "flexc stop life" in refused.stderr) == (1, True)
    tiny.flexc("stop", "-f", "life")
    tiny.flexc("rename", "life", "death")
    assert tiny.flexc("config", "get", "death", "user.a").stdout == "b\n"
    tiny.flexc("delete", "death")
    assert state_of(tiny, "death") == ""


@pytest.mark.parametrize(
    "words",
    [
        "list -c ns46tS",
        "list -f compact",
        "list -c nF,user.none:NONE",
        "config show flexed",
        "config device list flexed",
        "config device show flexed",
        "profile list",
        "profile show default",
        "network list",
        "network show flexbr0",
        "network list-leases flexbr0",
        "storage list",
        "storage show default",
        "storage info default",
        "storage volume list default",
        "image alias list",
        "image show tiny",
        "operation list -f csv",
    ],
)
def test_the_same_as_lxc(tiny: Machine, running: str, words: str) -> None:
    # What changes by itself between two readings may differ once, not each time.
    assert wait_until(lambda: tiny.flexc(*words.split()).stdout == tiny.lxc(*words.split()).stdout)


def test_exec_streams_and_status(tiny: Machine, running: str) -> None:
    script = "cat; echo wrong >&2; exit 7"
    done = tiny.flexc("exec", running, "--", "sh", "-c", script, stdin=b"typed in\n", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "typed in\n", "wrong\n")
    assert tiny.flexc("exec", running, "--", "/no/such/command", check=False).returncode == 127


def test_much_more_than_every_buffer_both_ways(tiny: Machine, running: str) -> None:
    content = b"0123456789abcde\n" * 400_000
    done = tiny.flexc("exec", running, "--", "cat", stdin=content)
    assert done.stdout.encode() == content


class Terminal:
    """A person's terminal with a command on it."""

    def __init__(self, machine: Machine, *words: str) -> None:
        self.master, slave = pty.openpty()
        ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen([FLEXC, *words], env=machine.environment(), **streams)
        os.close(slave)

    def read_until(self, wanted: bytes) -> bytes:
        seen = b""
        while wanted not in seen:
            assert select.select([self.master], [], [], 30)[0], seen
            seen += os.read(self.master, 4096)
        return seen

    def write(self, data: bytes) -> None:
        os.write(self.master, data)

    def resize(self, lines: int, columns: int) -> None:
        ioctl(self.master, TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)  # as a terminal emulator causes it

    def end(self) -> int:
        return self.process.wait(timeout=30)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_a_terminal_its_size_and_its_keys(tiny: Machine, running: str) -> None:
    wait, trap = "until stty size | grep '50 132'; do :; done", "trap 'echo got it; exit 3' INT"
    script = f"stty size; {wait}; {trap}; echo go; while :; do sleep 0.1; done"
    with Terminal(tiny, "exec", running, "--", "sh", "-c", script) as terminal:
        terminal.read_until(b"30 100")
        terminal.resize(50, 132)
        terminal.read_until(b"go\r\n")
        terminal.write(b"\x03")
        terminal.read_until(b"got it")
        assert terminal.end() == 3


def test_a_signal_for_the_command(tiny: Machine, running: str) -> None:
    script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    argv = [FLEXC, "exec", running, "--", "sh", "-c", script]
    with subprocess.Popen(argv, env=tiny.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(timeout=30) == 5


def test_the_console(tiny: Machine, running: str) -> None:
    with Terminal(tiny, "console", running) as terminal:
        terminal.read_until(b"<ctrl>+a q")
        terminal.write(b"\r\x01q")
        assert terminal.end() == 0
    assert "Console log" in tiny.flexc("console", running, "--show-log").stdout


def test_files_and_trees(tiny: Machine, running: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "deep" / "er" / "file").write_bytes(os.urandom(300_000))
    (tree / "link").symlink_to("deep/er/file")
    tiny.flexc("file", "push", "-rp", str(tree), f"{running}/srv/", "--uid=1000", "--gid=1001")
    shown = tiny.flexc("exec", running, "--", "stat", "-c", "%u %g", "/srv/tree/deep/er/file").stdout
    assert shown == "1000 1001\n"
    tiny.flexc("file", "pull", "-r", f"{running}/srv/tree", str(tmp_path / "back"))
    back = tmp_path / "back" / "tree"
    assert (back / "deep" / "er" / "file").read_bytes() == (tree / "deep" / "er" / "file").read_bytes()
    assert os.readlink(back / "link") == "deep/er/file"
    tiny.flexc("file", "edit", f"{running}/srv/tree/deep/er/file", stdin=b"edited")
    assert tiny.flexc("file", "pull", f"{running}/srv/tree/deep/er/file", "-").stdout == "edited"
    tiny.flexc("file", "delete", "-r", f"{running}/srv/tree")
    assert tiny.flexc("exec", running, "--", "ls", "/srv").stdout == ""


def test_configuration_while_it_runs(tiny: Machine, running: str, state_root: Path) -> None:
    place = state_root / "place"  # pytest's own directories can be read by nobody else
    place.mkdir(mode=0o755)
    (place / "here").write_text("")
    tiny.flexc("config", "device", "add", running, "place", "disk", f"source={place}", "path=/mnt/place")
    assert "here" in tiny.flexc("exec", running, "--", "ls", "/mnt/place").stdout
    tiny.flexc("config", "device", "remove", running, "place")
    tiny.flexc("config", "edit", running, stdin=b"config:\n  user.edited: 1\nprofiles: [default]\n")
    assert tiny.flexc("config", "get", running, "user.edited").stdout == "1\n"
    assert state_of(tiny, running) == "RUNNING"


def test_images_come_and_go(tiny: Machine, tmp_path: Path) -> None:
    tiny.flexc("image", "export", "tiny", str(tmp_path / "tiny"))
    (exported,) = tmp_path.glob("tiny.*")
    again = tiny.flexc("image", "import", str(exported), "--alias", "again", check=False)
    assert "already exists" in again.stderr
    fingerprint = tiny.flexc("image", "list", "tiny", "-f", "csv", "-c", "F").stdout.strip()
    tiny.flexc("image", "alias", "create", "again", fingerprint[:12])
    assert tiny.flexc("image", "info", "again").stdout.startswith(f"Fingerprint: {fingerprint}\n")
    tiny.flexc("image", "alias", "delete", "again")


def test_events_are_told(tiny: Machine) -> None:
    argv = [FLEXC, "monitor", "--pretty", "--type=lifecycle"]
    with subprocess.Popen(argv, env=tiny.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as monitor:
        assert monitor.stdout is not None
        fd = monitor.stdout.fileno()
        heard = b""

        def told() -> bool:
            # Again and again: it is not told when the monitor begins to listen.
            nonlocal heard
            tiny.flexc("profile", "create", "loud")
            tiny.flexc("profile", "delete", "loud")
            while select.select([fd], [], [], 0.1)[0]:
                heard += os.read(fd, 65536)
            return b" profile-created /1.0/profiles/loud" in heard

        try:
            wait_until(told)
        finally:
            monitor.terminate()


def test_setting_up_an_empty_machine(state_root: Path) -> None:
    bare = Machine(state_root / "bare")
    try:
        bare.start()
        assert bare.flexc("admin", "init", "--auto").stdout == (
            "Network flexbr0 created\nStorage pool default created\nProfile default updated\n"
        )
        assert bare.flexc("admin", "init", "--auto").stdout == ""
        dumped = bare.flexc("admin", "init", "--dump").stdout
        bare.flexc("admin", "init", "--preseed", stdin=dumped.encode())
        assert bare.flexc("admin", "init", "--dump").stdout == dumped
        assert bare.flexc("storage", "list", "-f", "csv").stdout.startswith("default,overlay,")
    finally:
        left = bare.stop()
    assert left == []
