# SPDX-License-Identifier: Apache-2.0
"""exec, shell and console as a person at a terminal sees them."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.client.fake_server import FakeServer
from tests.unit.client.fake_session import FakeSession

EXEC = "/1.0/instances/c1/exec"
SOURCE = str(Path(__file__).parents[3] / "src")


async def greet(session: FakeSession) -> int:
    name = "0" if session.request["interactive"] else "1"
    await session.send(name, b"hello from inside\n")
    await session.end(name)
    if name == "1":
        await session.end("2")
    return 42


def flexc(server: FakeServer, *words: str, terminal: int | None = None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "FLEXD_SOCKET": str(server.socket_path), "TERM": "vt220"}
    streams = {"stdin": terminal, "stdout": terminal} if terminal is not None else {"stdout": subprocess.PIPE}
    argv = [sys.executable, "-m", "flexd.cli.main", *words]
    return subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, **streams)  # type: ignore[call-overload, no-any-return]


def test_on_a_terminal_exec_is_interactive(server: FakeServer, settings: Path) -> None:
    session = FakeSession(server, EXEC, greet)
    outer, inner = pty.openpty()
    with flexc(server, "exec", "c1", "--user", "7", "--env", "A=b", "--", "id", "-u", terminal=inner) as child:
        assert child.wait() == 42
    assert b"hello from inside" in os.read(outer, 4096)
    os.close(outer)
    os.close(inner)
    request = session.request
    assert (request["interactive"], request["command"], request["user"]) == (True, ["id", "-u"], 7)
    assert request["environment"] == {"TERM": "vt220", "A": "b"}


@pytest.mark.parametrize(
    ("words", "interactive"),
    [(["exec", "c1"], False), (["exec", "-t", "c1"], True), (["exec", "--mode=interactive", "c1"], True)],
)
def test_without_a_terminal_it_is_not_unless_told(
    server: FakeServer, settings: Path, words: list[str], interactive: bool
) -> None:
    session = FakeSession(server, EXEC, greet)
    with flexc(server, *words, "-n", "--", "true") as child:
        out, err = child.communicate()
    assert (child.returncode, out, err) == (42, b"hello from inside\n", b"")
    assert session.request["interactive"] is interactive


def test_shell_is_a_login_shell(server: FakeServer, settings: Path) -> None:
    session = FakeSession(server, EXEC, greet)
    with flexc(server, "shell", "c1", "-n") as child:
        child.communicate()
    assert session.request["command"] == ["su", "-l"]


def test_a_command_is_needed(run: Run) -> None:
    assert "<command> missing" in run("exec", "c1").err


def test_a_stopped_instance_is_told(run: Run, server: FakeServer) -> None:
    server.fail(EXEC, 400, "Instance is not running", method="POST")
    assert run("exec", "c1", "--", "true").err == "Error: Instance is not running\n"
