# SPDX-License-Identifier: Apache-2.0
"""Messages between the daemon and the helper: a length, JSON, and file descriptors beside it (unix(7), SCM_RIGHTS)."""

import array
import json
import socket
import struct
from typing import Any

LENGTH = struct.Struct("!I")
# Commands and environments are bounded by the kernel's ARG_MAX (2 MiB with the usual stack limit).
LONGEST = 16 * 1024 * 1024
# More than any message carries.
MOST_FDS = 8

Message = dict[str, Any]


class Closed(Exception):
    """The other side is gone."""


def pack(message: Message) -> bytes:
    body = json.dumps(message).encode("utf-8", "surrogatepass")
    return LENGTH.pack(len(body)) + body


def unpack(body: bytes) -> Message:
    message: Message = json.loads(body.decode("utf-8", "surrogatepass"))
    return message


def rights(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The file descriptors that came with a message."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def send(connection: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Blocking; for the helper's side."""
    data = pack(message)
    sent = socket.send_fds(connection, [data], fds) if fds else 0
    if sent < len(data):
        connection.sendall(data[sent:])


def receive(connection: socket.socket) -> Message:
    """Blocking; for the helper's side. No message to the helper carries descriptors save the first."""
    (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    if length > LONGEST:
        raise Closed(f"message of {length} bytes")
    return unpack(_exactly(connection, length))


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            raise Closed
        parts += part
    return bytes(parts)
