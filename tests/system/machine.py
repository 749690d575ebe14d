# SPDX-License-Identifier: Apache-2.0
"""A real daemon for system tests: its own state directory and network namespace, driven as users drive it."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flexd.runtime.paths import group_prefix

READY_TIMEOUT_S = 60.0


class ApiError(Exception):
    """An error envelope; `code` is its error_code."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(f"{code}: {message}")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("lxd", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


class Machine:
    """One daemon. `start`, `kill` and `stop` may be called in any order; containers outlive the first two."""

    def __init__(self, directory: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.home = directory.parent / f"{directory.name}-home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.log_path = directory.parent / f"{directory.name}.log"
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        # Holds the network namespace while no daemon runs in it.
        self._anchor = self._open_namespaces()
        subprocess.run([*self.enter(), "ip", "link", "set", "lo", "up"], check=True)

    def _open_namespaces(self) -> "subprocess.Popen[bytes]":
        self._anchor = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
        self._wait_for_namespace()
        return self._anchor

    def _wait_for_namespace(self) -> None:
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self._anchor.pid}/ns/net") == own:
            time.sleep(0.005)

    def enter(self) -> list[str]:
        """What to put before a command that is to run in the daemon's network namespace."""
        return ["nsenter", f"--net=/proc/{self._anchor.pid}/ns/net", "--"]

    @property
    def socket_path(self) -> Path:
        return self.directory / "unix.socket"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """For clients: only this daemon, and a home of their own."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("LXD_", "FLEXD_", "INCUS_"))}
        place = os.fspath(self.directory)
        return kept | {"HOME": os.fspath(self.home), "LXD_DIR": place, "FLEXD_DIR": place}

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.enter(), *self._daemon()],
                env=self.environment() | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the daemon did not come up:\n{self.log_tail()}")
            time.sleep(0.02)

    def _daemon(self) -> list[str]:
        return [sys.executable, "-m", "flexd.daemon", "--debug"]

    def _answers(self) -> bool:
        try:
            self.get("/1.0")
        except (OSError, ApiError):
            return False
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the daemon only; by default as a crash would."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(timeout=60)

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.kill(number)
        self.start()

    def log_tail(self, lines: int = 60) -> str:
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    # --- the API, plainly ---

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection = _UnixConnection(self.socket_path)
        with contextlib.closing(connection):
            connection.request(method, path, data, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The metadata of the answer; operations are waited for and their own metadata is returned."""
        _, _, data = self.request(method, path, body)
        envelope = json.loads(data)
        if envelope["type"] == "error":
            raise ApiError(envelope["error_code"], envelope["error"])
        if envelope["type"] == "async":
            return self.wait(envelope["metadata"]["id"])
        return envelope["metadata"]

    def wait(self, operation: str) -> Any:
        _, _, data = self.request("GET", f"/1.0/operations/{operation}/wait")
        envelope = json.loads(data)
        if envelope["type"] == "error":
            raise ApiError(envelope["error_code"], envelope["error"])
        result = envelope["metadata"]
        if result["status_code"] != 200:
            raise ApiError(result["status_code"], result["err"])
        return result["metadata"]

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    # --- the clients ---

    def run(
        self, *argv: str, stdin: bytes | None = None, check: bool = True, timeout_s: float = 180
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=self.environment(),
            timeout=timeout_s,
            check=False,
        )
        text = subprocess.CompletedProcess(
            argv, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if check and text.returncode != 0:
            raise AssertionError(f"{' '.join(argv)} failed ({text.returncode}):\n{text.stdout}{text.stderr}")
        return text

    def lxc(self, *argv: str, stdin: bytes | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Debian's client."""
        return self.run("lxc", *argv, stdin=stdin, check=check)

    def flexc(self, *argv: str, stdin: bytes | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = Path(sys.executable).parent / "flexc"
        return self.run(os.fspath(command), *argv, stdin=stdin, check=check)

    # --- setting up and taking down ---

    def init(self) -> None:
        """Pool, network and profile as `flexc admin init --auto` makes them, but small."""
        self.call("POST", "/1.0/storage-pools", {"name": "default", "driver": "overlay"})
        network = {"ipv4.address": "198.18.77.1/24", "ipv4.nat": "true", "ipv6.address": "none"}
        self.call("POST", "/1.0/networks", {"name": "flexbr0", "config": network})
        devices = {
            "root": {"type": "disk", "path": "/", "pool": "default"},
            "eth0": {"type": "nic", "network": "flexbr0", "name": "eth0"},
        }
        self.call("PUT", "/1.0/profiles/default", {"devices": devices})

    def import_image(self, path: Path, *aliases: str) -> str:
        """Import a unified image file; returns its fingerprint."""
        return self.import_body(path.read_bytes(), "application/octet-stream", *aliases)

    def import_body(self, body: bytes, content_type: str, *aliases: str) -> str:
        """As `import_image`, of a whole request body (`images.split_body`)."""
        _, _, data = self.request("POST", "/1.0/images", body, {"Content-Type": content_type})
        envelope = json.loads(data)
        if envelope["type"] == "error":
            raise ApiError(envelope["error_code"], envelope["error"])
        fingerprint: str = self.wait(envelope["metadata"]["id"])["fingerprint"]
        for alias in aliases:
            self.call("POST", "/1.0/images/aliases", {"name": alias, "target": fingerprint})
        return fingerprint

    def clear(self) -> None:
        """Delete every instance."""
        for instance in self.get("/1.0/instances?recursion=1"):
            name = instance["name"]
            if instance["status"] != "Stopped":
                with contextlib.suppress(ApiError):
                    self.call("PUT", f"/1.0/instances/{name}/state", {"action": "stop", "force": True})
            with contextlib.suppress(ApiError):  # an ephemeral one is gone already
                self.call("DELETE", f"/1.0/instances/{name}")

    def purge(self) -> None:
        """Delete whatever the API can delete, so that nothing of this daemon is left on the host."""
        self.clear()
        self.call("PUT", "/1.0/profiles/default", {"devices": {}})
        for image in self.get("/1.0/images?recursion=1"):
            self.call("DELETE", f"/1.0/images/{image['fingerprint']}")
        for network in self.get("/1.0/networks?recursion=1"):
            if network["managed"]:
                self.call("DELETE", f"/1.0/networks/{network['name']}")
        for pool in self.get("/1.0/storage-pools"):
            self.call("DELETE", pool)

    def leftovers(self) -> list[str]:
        """What of this daemon is still on the host: mounts below its directory, cgroups, processes."""
        place = os.fspath(self.directory)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        left = [f"mount {mount}" for mount in mounts if mount.startswith(place + "/")]
        left += [f"cgroup {group}" for group in Path("/sys/fs/cgroup").glob(f"*/{self.group()}*")]
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if place in line:
                    left.append(f"process {process.name} {line.strip()}")
        return left

    def group(self) -> str:
        """The cgroup that all containers of this daemon are in."""
        return group_prefix(self.directory / "containers")

    def stop(self) -> list[str]:
        """Take everything down, also after a failed test; returns what the daemon should have removed and had not."""
        left: list[str] = []
        try:
            if self._process is not None and self._process.poll() is not None:
                self.start()
            if self._process is not None:
                self.purge()
                self.kill(signal.SIGTERM)
                left = self.leftovers()
        finally:
            self._sweep()
            self._close_namespaces()
        return left

    def _close_namespaces(self) -> None:
        self._anchor.kill()
        self._anchor.wait()

    def _sweep(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for left in self.leftovers():
            if left.startswith("process "):
                with contextlib.suppress(OSError):
                    os.kill(int(left.split()[1]), signal.SIGKILL)
        for left in reversed(self.leftovers()):
            if left.startswith("mount "):
                subprocess.run(["umount", "-l", left.split(maxsplit=1)[1]], check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    """A started and initialised machine, gone at the end."""
    made = Machine(directory)
    try:
        made.start()
        made.init()
        yield made
    finally:
        left = made.stop()
    assert left == [], left


def wait_until(check: Any, timeout_s: float = 30.0) -> Any:
    """The first true result of `check`; fails the test after a time that only a fault can take."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {check}")
        time.sleep(0.02)
