# SPDX-License-Identifier: Apache-2.0
"""Namespaces of a peer's own. Its mounts, bridges and firewall go when its processes go, whatever happened."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

# A mount namespace in which /sys shows the new network namespace, but still holds the host's cgroups.
_ISOLATE = """
ip link set lo up
mkdir -p "$0/cgroup"
mount --rbind /sys/fs/cgroup "$0/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$0/cgroup" /sys/fs/cgroup
umount -l "$0/cgroup"
rmdir "$0/cgroup"
"""
_WAIT = """
: >"$0/ready"
exec sleep infinity
"""
_GONE_TIMEOUT_S = 30.0


class Place:
    """A directory and the namespaces around it; `run` and `spawn` work inside them. `online`: on the host's network."""

    def __init__(self, directory: Path, *, online: bool = False) -> None:
        self.directory = directory
        directory.mkdir(mode=0o711)
        namespaces = ["--mount"] if online else ["--mount", "--net"]
        script = "set -e" + ("" if online else _ISOLATE) + _WAIT
        argv = ["unshare", *namespaces, "--propagation", "private", "sh", "-c", script, str(directory)]
        self._anchor = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not (directory / "ready").exists():
            if self._anchor.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"no namespaces for {directory}")
            time.sleep(0.005)
        self._namespace = os.readlink(f"/proc/{self._anchor.pid}/ns/mnt")

    def argv(self, *argv: str) -> list[str]:
        where = f"/proc/{self._anchor.pid}/ns"
        return ["nsenter", f"--mount={where}/mnt", f"--net={where}/net", "--", *argv]

    def run(self, *argv: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            self.argv(*argv), env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: {done.returncode} {done.stdout}{done.stderr}")
        return done.stdout

    def spawn(self, *argv: str, env: dict[str, str]) -> "subprocess.Popen[bytes]":
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                self.argv(*argv), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def log_tail(self) -> str:
        path = self.directory / "log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def processes(self) -> list[int]:
        """Everything in this place: what is in its mount namespace, and what descends from that (containers)."""
        parents = {pid: _parent(pid) for pid in _pids()}
        inside = {pid for pid in parents if _link(pid, "ns/mnt") == self._namespace}
        while more := {pid for pid, parent in parents.items() if parent in inside} - inside:
            inside |= more
        return sorted(inside - {self._anchor.pid})

    def close(self) -> None:
        """End what runs here; with the last process the mounts and links go, too."""
        with contextlib.suppress(AttributeError):  # the namespaces were never there
            deadline = time.monotonic() + _GONE_TIMEOUT_S
            while (left := self.processes()) and time.monotonic() < deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)
        self._anchor.kill()
        self._anchor.wait()
        # A mount namespace is taken down a little after its last process.
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.exists():
            time.sleep(0.5)
            shutil.rmtree(self.directory, ignore_errors=True)


def remove_cgroups(prefixes: tuple[str, ...]) -> None:
    """Empty cgroups whose name begins with one of these, at the top of any hierarchy."""
    for top in {path for prefix in prefixes for path in Path("/sys/fs/cgroup").glob(f"*/{prefix}*")} | {
        path for prefix in prefixes for path in Path("/sys/fs/cgroup").glob(f"{prefix}*")
    }:
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _link(pid: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/{name}")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0
