# SPDX-License-Identifier: Apache-2.0
"""Talking to liblxc's monitor, played here by a socket of our own."""

import asyncio
import os
import socket
import struct
from pathlib import Path

import pytest

from flexd.runtime.command_socket import ask_processes, socket_name


def test_a_short_path_is_the_name() -> None:
    assert socket_name(Path("/d/containers"), "c1") == "\0/d/containers/c1/command"


def test_a_long_path_is_hashed() -> None:
    name = socket_name(Path("/" + "d" * 100), "c1")
    assert name.startswith("\0lxc/")
    assert name.endswith("/command")
    assert len(name) == len("\0lxc/0123456789abcdef/command")


async def test_nobody_listens() -> None:
    assert await ask_processes(Path(f"/flexd-test-{os.getpid()}"), "none") is None


@pytest.mark.parametrize(("result", "pid", "expected"), [(0, 4242, 4242), (-1, 4242, 0), (0, 2**64 - 1, 0)])
async def test_the_answer_names_init_and_its_sender_is_the_monitor(result: int, pid: int, expected: int) -> None:
    directory = Path(f"/flexd-test-{os.getpid()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(socket_name(directory, "c1"))
        listener.listen()
        answering = asyncio.create_task(asyncio.to_thread(answer, listener, struct.pack("@iiP", result, 0, pid)))
        assert await ask_processes(directory, "c1") == (os.getpid(), expected)
        assert await answering == struct.pack("@iiP", 4, 0, 0)


async def test_a_monitor_that_hangs_up_has_no_init() -> None:
    directory = Path(f"/flexd-test-{os.getpid()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(socket_name(directory, "c1"))
        listener.listen()
        answering = asyncio.create_task(asyncio.to_thread(answer, listener, b""))
        assert await ask_processes(directory, "c1") == (0, 0)
        await answering


def answer(listener: socket.socket, data: bytes) -> bytes:
    connection, _ = listener.accept()
    with connection:
        request = connection.recv(100)
        if data:
            connection.sendall(data[:4])
            connection.sendall(data[4:])
    return request
