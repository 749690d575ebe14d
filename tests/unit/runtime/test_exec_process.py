# SPDX-License-Identifier: Apache-2.0
"""What surrounds a command, and how its end is told."""

import asyncio
import os
import socket
import subprocess

import pytest

from flexd.runtime.contract import ExecSpec
from flexd.runtime.exec_process import LxcExecProcess, exec_directory, exec_environment
from flexd.runtime.helper import wire
from flexd.runtime.helper.exec import exit_status
from flexd.runtime.helper_process import Connection, HelperError


def test_root_has_a_home() -> None:
    environment = exec_environment(ExecSpec(("true",)))
    assert environment["HOME"] == "/root"
    assert environment["USER"] == "root"
    assert exec_directory(ExecSpec(("true",)), environment) == "/root"


def test_others_have_none_unless_told() -> None:
    environment = exec_environment(ExecSpec(("true",), uid=1000))
    assert "HOME" not in environment
    assert exec_directory(ExecSpec(("true",), uid=1000), environment) == "/"


def test_what_was_asked_wins() -> None:
    spec = ExecSpec(("true",), environment={"PATH": "/x", "HOME": "/h"}, cwd="/c")
    environment = exec_environment(spec)
    assert environment["PATH"] == "/x"
    assert exec_directory(spec, environment) == "/c"


@pytest.mark.parametrize(("script", "expected"), [("exit 0", 0), ("exit 200", 200), ("kill -15 $$", 143)])
def test_the_status_of_a_process(script: str, expected: int) -> None:
    child = subprocess.Popen(["sh", "-c", script])
    _, status = os.waitpid(child.pid, 0)
    child.returncode = 0
    assert exit_status(status) == expected


def pair() -> tuple[Connection, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return Connection(ours), theirs


async def test_signals_go_to_the_waiter_and_the_status_comes_back() -> None:
    connection, helper = pair()
    with helper:
        process = LxcExecProcess(connection, 5)
        await process.signal(15)
        assert await asyncio.to_thread(wire.receive, helper) == {"signal": 15}
        await asyncio.to_thread(wire.send, helper, {"status": 143})
        assert await process.wait() == 143
        assert await process.wait() == 143
        await process.signal(15)


async def test_a_helper_that_dies_is_an_error_of_the_command() -> None:
    connection, helper = pair()
    process = LxcExecProcess(connection, 5)
    helper.close()
    with pytest.raises(HelperError, match="ended"):
        await process.wait()
    await process.signal(15)


async def test_descriptors_come_with_their_answer() -> None:
    connection, helper = pair()
    with helper:
        read, write = os.pipe()
        await asyncio.to_thread(wire.send, helper, {"n": 1}, (read,))
        await asyncio.to_thread(wire.send, helper, {"n": 2})
        message, fds = await connection.receive()
        assert message == {"n": 1}
        assert await connection.receive() == ({"n": 2}, [])
        assert os.path.sameopenfile(fds[0], read)
        for fd in (read, write, *fds):
            os.close(fd)
    connection.close()


async def test_an_error_keeps_its_number() -> None:
    connection, helper = pair()
    with helper:
        await asyncio.to_thread(wire.send, helper, {"error": "no such thing", "errno": 2})
        with pytest.raises(HelperError, match="no such thing") as caught:
            await connection.receive()
        assert caught.value.errno == 2
    connection.close()


def test_a_message_too_long_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(wire.LENGTH.pack(wire.LONGEST + 1))
        with pytest.raises(wire.Closed):
            wire.receive(theirs)


def test_any_text_survives_the_wire() -> None:
    message = {"path": '/\udcff\n"é', "n": None}
    body = wire.pack(message)[wire.LENGTH.size :]
    assert wire.unpack(body) == message
