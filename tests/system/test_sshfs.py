# SPDX-License-Identifier: Apache-2.0
"""`flexc file mount` and Debian's `lxc file mount`, with sshfs."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.system.machine import Machine, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("sshfs") is None or not os.path.exists("/dev/fuse"), reason="needs sshfs and /dev/fuse"
)
NAME = "mounted"
FLEXC = os.fspath(Path(sys.executable).parent / "flexc")


@pytest.fixture(scope="module")
def box(tiny: Machine) -> Iterator[Machine]:
    tiny.lxc("launch", "tiny", NAME)
    yield tiny
    tiny.lxc("delete", "-f", NAME)


@contextmanager
def mounted(box: Machine, command: str, target: Path) -> "Iterator[subprocess.Popen[str]]":
    """The command while it has the instance's /root mounted."""
    argv = [command, "file", "mount", f"{NAME}/root", os.fspath(target)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(argv, env=box.environment(), text=True, **pipes)  # type: ignore[call-overload]
    try:
        wait_until(lambda: target.is_mount() or process.poll() is not None)
        assert process.poll() is None, "it ended at once"
        yield process
    finally:
        subprocess.run(["umount", "-l", os.fspath(target)], check=False, capture_output=True)
        process.kill()
        process.communicate()


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Its status and what it said."""
    status = process.wait(60)
    assert process.stdout is not None
    return status, process.stdout.read()


@pytest.mark.parametrize("command", [FLEXC, "lxc"])
def test_files_are_used_as_if_they_were_here(box: Machine, tmp_path: Path, command: str) -> None:
    with mounted(box, command, tmp_path):
        (tmp_path / "sub").mkdir()
        (tmp_path / "x").write_text("from outside\n")
        (tmp_path / "x").rename(tmp_path / "sub/y")
        (tmp_path / "sub/y").chmod(0o600)
        (tmp_path / "sub/link").symlink_to("y")
        blob = os.urandom(8 << 20)
        (tmp_path / "blob").write_bytes(blob)
        assert (tmp_path / "blob").read_bytes() == blob
        assert (tmp_path / "sub/link").read_text() == "from outside\n"
        inside = "cd /root; cat sub/link; stat -c '%a %u' sub/y; rm -r sub blob"
        assert box.lxc("exec", NAME, "--", "sh", "-c", inside).stdout == "from outside\n600 0\n"


def test_interrupted_it_unmounts(box: Machine, tmp_path: Path) -> None:
    with mounted(box, FLEXC, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        status, said = end(process)
        assert (status, said.splitlines()[-1]) == (0, "sshfs has stopped")
        assert not tmp_path.is_mount()


def test_unmounted_by_somebody_else_it_ends(box: Machine, tmp_path: Path) -> None:
    with mounted(box, FLEXC, tmp_path) as process:
        subprocess.run(["umount", os.fspath(tmp_path)], check=True)
        assert end(process)[0] == 0


def test_the_instance_stops_meanwhile(box: Machine, tmp_path: Path) -> None:
    """The session ends with it, and nothing keeps its mounts."""
    with mounted(box, FLEXC, tmp_path) as process:
        fd = os.open(tmp_path / "open", os.O_WRONLY | os.O_CREAT)
        box.lxc("stop", "-f", NAME)
        status, said = end(process)
        assert status == 1
        assert "is it still running?" in said
        assert not tmp_path.is_mount()
        with suppress(OSError):  # its mount is gone
            os.close(fd)
    box.lxc("start", NAME)
