# SPDX-License-Identifier: Apache-2.0
"""exec and console: pumps between file descriptors and websockets, with a real terminal where one matters."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexd.client.client import Client
from flexd.client.session import DetachKeys, run_exec
from tests.unit.client.fake_server import FakeServer
from tests.unit.client.fake_session import FakeSession

EXEC = "/1.0/instances/c1/exec"
RUN = """
import sys
from flexd.client.client import Client
from flexd.client.endpoint import UnixEndpoint
from flexd.client.session import run_console, run_exec
client = Client(UnixEndpoint(sys.argv[1]))
if sys.argv[2] == "console":
    run_console(client, "c1", 0, 1)
    sys.exit(0)
request = {"command": ["sh"], "interactive": sys.argv[2] == "interactive"}
sys.exit(run_exec(client, "c1", request, 0, 1, 2))
"""


def run(client: Client, content: bytes) -> tuple[int, bytes, bytes]:
    """Run a command with this input: its status, output and errors."""
    read_in, write_in = os.pipe()
    feeder = threading.Thread(target=_feed, args=(write_in, content))
    feeder.start()
    with open(os.memfd_create("out"), "w+b") as out, open(os.memfd_create("err"), "w+b") as err:
        status = run_exec(client, "c1", {"command": ["x"], "interactive": False}, read_in, out.fileno(), err.fileno())
        feeder.join()
        os.close(read_in)
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


def _feed(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.close(fd)


def test_streams_and_status(server: FakeServer, client: Client) -> None:
    async def script(session: FakeSession) -> int:
        received = b""
        while data := await session.receive("0"):
            received += data
        await session.send("1", received.upper())
        await session.send("2", b"complaint")
        await session.end("1")
        await session.end("2")
        return 3

    session = FakeSession(server, EXEC, script)
    assert run(client, b"hello") == (3, b"HELLO", b"complaint")
    assert session.request["wait-for-websocket"] is True
    assert (session.request["width"], session.request["height"]) == (0, 0)


def test_a_command_that_ends_as_soon_as_it_may(server: FakeServer, client: Client) -> None:
    """The server waits for the streams, not for `control`: that must be there before the command can have ended."""

    async def script(session: FakeSession) -> int:
        started_with.extend(session.connected)
        await session.end("1")
        await session.end("2")
        return 5

    started_with: list[str] = []
    FakeSession(server, EXEC, script)
    assert run(client, b"") == (5, b"", b"")
    assert started_with == ["control", "0", "1", "2"]


def test_more_than_every_buffer_both_ways_at_once(server: FakeServer, client: Client) -> None:
    """Each side has something to write while the other writes: nobody may wait for the other."""
    content = os.urandom(4_000_000)

    async def script(session: FakeSession) -> int:
        while data := await session.receive("0"):
            await session.send("1", data)
        await session.end("1")
        await session.end("2")
        return 0

    FakeSession(server, EXEC, script)
    status, output, _ = run(client, content)
    assert (status, output == content) == (0, True)


def test_a_closed_stream_is_an_end_too(server: FakeServer, client: Client) -> None:
    async def script(session: FakeSession) -> int:
        await session.send("1", b"last words")
        return 137

    FakeSession(server, EXEC, script)
    assert run(client, b"") == (137, b"last words", b"")


class Terminal:
    """A child with a terminal of its own; we hold the other end."""

    def __init__(self, server: FakeServer, mode: str) -> None:
        self.fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.before = termios.tcgetattr(inner)
        self.inner = inner
        argv = [sys.executable, "-c", RUN, str(server.socket_path), mode]
        source = str(Path(__file__).parents[3] / "src")
        environment = {**os.environ, "PYTHONPATH": source}
        self.child = subprocess.Popen(
            argv, stdin=inner, stdout=inner, stderr=inner, env=environment, start_new_session=True
        )

    def read_until(self, mark: bytes) -> bytes:
        seen = b""
        while mark not in seen:
            seen += os.read(self.fd, 4096)
        return seen

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.inner, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.child.send_signal(signal.SIGWINCH)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.fd)
        os.close(self.inner)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    made: list[Terminal] = []
    yield made
    for terminal in made:
        terminal.close()


def test_a_terminal_is_raw_sized_resized_and_restored(server: FakeServer, terminals: list[Terminal]) -> None:
    async def script(session: FakeSession) -> int:
        await session.send("0", b"prompt$ ")
        typed = b""
        while not typed.endswith(b"\x04"):
            typed += await session.receive("0")
        await session.send("0", b"got:" + typed.hex().encode())
        await session.command()
        await session.command()
        await session.send("0", b" resized")
        await session.receive("0")
        await session.end("0")
        return 5

    session = FakeSession(server, EXEC, script)
    terminal = Terminal(server, "interactive")
    terminals.append(terminal)
    terminal.read_until(b"prompt$ ")
    assert session.request["interactive"] is True
    assert (session.request["width"], session.request["height"]) == (100, 30)
    # In raw mode <ctrl>+c and <ctrl>+d are bytes like any other, and nothing is echoed here.
    os.write(terminal.fd, b"a\x03\x04")
    assert terminal.read_until(b"610304") == b"got:610304"
    terminal.resize(120, 40)
    terminal.child.send_signal(signal.SIGUSR1)
    terminal.read_until(b"resized")
    assert {"command": "window-resize", "args": {"width": "120", "height": "40"}} in session.commands
    assert {"command": "signal", "signal": int(signal.SIGUSR1)} in session.commands
    os.write(terminal.fd, b"x")
    assert terminal.child.wait() == 5
    assert termios.tcgetattr(terminal.inner) == terminal.before


def test_interrupts_go_to_the_command(server: FakeServer, terminals: list[Terminal]) -> None:
    async def script(session: FakeSession) -> int:
        await session.send("1", b"ready")
        command = await session.command()
        await session.end("1")
        await session.end("2")
        return 128 + int(command["signal"])

    FakeSession(server, EXEC, script)
    terminal = Terminal(server, "streams")
    terminals.append(terminal)
    terminal.read_until(b"ready")
    terminal.child.send_signal(signal.SIGINT)
    assert terminal.child.wait() == 130


def test_a_console_is_left_with_its_keys(server: FakeServer, terminals: list[Terminal]) -> None:
    received = []

    async def script(session: FakeSession) -> int:
        await session.send("0", b"login: ")
        while data := await session.receive("0"):
            received.append(data)
        return 0

    session = FakeSession(server, "/1.0/instances/c1/console", script)
    terminal = Terminal(server, "console")
    terminals.append(terminal)
    terminal.read_until(b"login: ")
    os.write(terminal.fd, b"root\r\x01q")
    assert terminal.child.wait() == 0
    assert session.request == {"width": 100, "height": 30, "type": "console"}


@pytest.mark.parametrize(
    ("reads", "passed"),
    [
        ([b"abc"], [b"abc"]),
        ([b"\x01q"], [None]),
        ([b"x\x01", b"q"], [b"x", None]),
        ([b"\x01a"], [b"\x01"]),
        ([b"\x01z"], [b"\x01z"]),
        ([b"\x01\x01q"], [b"\x01\x01q"]),
    ],
)
def test_detach_keys(reads: list[bytes], passed: list[bytes | None]) -> None:
    keys = DetachKeys()
    assert [keys(data) for data in reads] == passed
