# SPDX-License-Identifier: Apache-2.0
"""Debian's `lxc`, and `flexc`, over HTTPS with certificates: on loopback, in the daemon's network namespace."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine, wait_until

ADDRESS = "127.0.0.1:8443"


class Far:
    """A person somewhere else: a home without the socket, commands that go over the network."""

    def __init__(self, machine: Machine, home: Path) -> None:
        self._machine = machine
        self.home = home
        home.mkdir()
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("LXD_", "FLEX", "INCUS_"))}
        self._environment = kept | {"HOME": os.fspath(home), "FLEXD_DIR": "/nowhere", "LXD_DIR": "/nowhere"}

    def run(self, *argv: str, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._machine.enter(), *argv], input=stdin, capture_output=True, env=self._environment, timeout=120
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)} failed ({done.returncode}):\n{out}{err}")
        return subprocess.CompletedProcess(argv, done.returncode, out, err)

    def lxc(self, *argv: str, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("lxc", *argv, stdin=stdin, check=check)

    def flexc(self, *argv: str, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(os.fspath(Path(sys.executable).parent / "flexc"), *argv, stdin=stdin, check=check)


@pytest.fixture(scope="module")
def served(tiny: Machine) -> Iterator[Machine]:
    """The machine, listening, with a container `far`."""
    tiny.lxc("config", "set", "core.https_address", ADDRESS)
    tiny.lxc("launch", "tiny", "far")
    yield tiny
    tiny.lxc("delete", "-f", "far")
    tiny.call("PUT", "/1.0", {"config": {}})
    for url in tiny.get("/1.0/certificates"):
        tiny.call("DELETE", url)


@pytest.fixture
def far(served: Machine, tmp_path: Path) -> Far:
    return Far(served, tmp_path / "home")


def token(machine: Machine, name: str, *options: str) -> str:
    """As an administrator makes one with Debian's client."""
    return machine.lxc("config", "trust", "add", "--name", name, *options, "-q").stdout.split()[-1]


def test_lxc_by_token(served: Machine, far: Far) -> None:
    text = token(served, "laptop")
    far.lxc("remote", "add", "there", text)
    assert "there" in far.lxc("remote", "list", "--format", "csv").stdout
    listed = json.loads(far.lxc("list", "there:", "--format", "json").stdout)
    assert [(each["name"], each["status"]) for each in listed] == [("far", "Running")]
    assert "laptop" in served.lxc("config", "trust", "list", "--format", "csv").stdout
    again = Far(served, far.home.parent / "another").lxc("remote", "add", "there", text, check=False)
    assert "No matching certificate add operation found" in again.stderr


def test_lxc_by_password(served: Machine, far: Far) -> None:
    served.lxc("config", "set", "core.trust_password", "hunter2")
    wrong = far.lxc("remote", "add", "there", ADDRESS, "--accept-certificate", "--password", "x", check=False)
    assert "not authorized" in wrong.stderr
    far.lxc("remote", "add", "there", ADDRESS, "--accept-certificate", "--password", "hunter2")
    assert "far" in far.lxc("list", "there:", "--format", "csv", "-c", "n").stdout
    assert served.lxc("config", "get", "core.trust_password").stdout == "true\n"
    served.lxc("config", "set", "user.something", "else")  # sends back what it was shown
    served.lxc("config", "unset", "core.trust_password")


def test_exec_and_files(served: Machine, far: Far) -> None:
    far.lxc("remote", "add", "there", token(served, "worker"))
    done = far.lxc("exec", "there:far", "--", "sh", "-c", "cat; echo err >&2; exit 7", stdin=b"in", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "in", "err\n")
    content = os.urandom(3 << 20)
    (far.home / "big").write_bytes(content)
    far.lxc("file", "push", os.fspath(far.home / "big"), "there:far/root/big")
    far.lxc("file", "pull", "there:far/root/big", os.fspath(far.home / "back"))
    assert (far.home / "back").read_bytes() == content
    far.lxc("launch", "there:tiny", "there:other")
    far.lxc("delete", "-f", "there:other")


def test_a_certificate_that_is_removed(served: Machine, far: Far) -> None:
    far.lxc("remote", "add", "there", token(served, "gone"))
    session = subprocess.Popen(
        [*served.enter(), "lxc", "exec", "there:far", "--", "sleep", "1000"],
        env=far._environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: "sleep" in served.lxc("exec", "far", "--", "ps").stdout)
        certificates = served.get("/1.0/certificates?recursion=1")
        fingerprint = next(each["fingerprint"] for each in certificates if each["name"] == "gone")
        served.lxc("config", "trust", "remove", fingerprint)
        assert session.wait(timeout=60) != 0
    finally:
        session.kill()
        session.wait()
    assert "not authorized" in far.lxc("list", "there:", check=False).stderr


def test_a_restricted_certificate(served: Machine, far: Far) -> None:
    far.lxc("remote", "add", "there", token(served, "guest", "--restricted", "--projects", "default"))
    assert "far" in far.lxc("list", "there:", "--format", "csv", "-c", "n").stdout
    refused = far.lxc("storage", "create", "there:mine", "dir", check=False)
    assert "not authorized" in refused.stderr
    assert "not authorized" in far.lxc("config", "set", "there:", "user.x", "y", check=False).stderr


def test_flexc(served: Machine, far: Far) -> None:
    far.flexc("remote", "add", "there", token(served, "flexible"))
    far.flexc("remote", "switch", "there")
    assert "far" in far.flexc("list", "-f", "csv").stdout
    assert far.flexc("exec", "far", "--", "cat", stdin=b"hello").stdout == "hello"
    far.flexc("file", "push", "-", "far/root/small", stdin=b"x")
    assert far.flexc("file", "pull", "far/root/small", "-").stdout == "x"
    made = far.flexc("config", "trust", "add", "--name", "next").stdout.split()[-1]
    other = Far(served, far.home.parent / "next")
    other.flexc("remote", "add", "there", made)
    other.lxc("remote", "add", "there", token(served, "both"))
    far.flexc("remote", "switch", "local")
    far.flexc("remote", "remove", "there")


def test_the_address_moves(served: Machine, far: Far) -> None:
    far.lxc("remote", "add", "there", token(served, "follower"))
    far.lxc("config", "set", "there:", "core.https_address", "127.0.0.1:9443")
    assert "connection refused" in far.lxc("list", "there:", check=False).stderr
    far.lxc("remote", "set-url", "there", "https://127.0.0.1:9443")
    assert "far" in far.lxc("list", "there:", "--format", "csv", "-c", "n").stdout
    far.lxc("config", "set", "there:", "core.https_address", ADDRESS)
    served.restart()
    far.lxc("remote", "set-url", "there", f"https://{ADDRESS}")
    assert "far" in far.lxc("list", "there:", "--format", "csv", "-c", "n").stdout
