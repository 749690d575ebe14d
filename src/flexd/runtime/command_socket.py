# SPDX-License-Identifier: Apache-2.0
"""Asking a container's monitor through liblxc's command socket: who monitors, and which process is init.

The truth about what runs, whoever started it: the socket is abstract (unix(7)), so it ends with the monitor. liblxc
keeps this protocol stable, since a new library must talk to monitors that an old one started.
"""

import asyncio
import socket
import struct
from pathlib import Path

from flexd.host.contract import HostError
from flexd.runtime.helper.command_names import socket_name
from flexd.runtime.sockets import receive_with_ancillary

# liblxc commands.h: lxc_cmd_req {int cmd; int datalen; const void *data} and lxc_cmd_rsp, the same with `int ret`.
_REQUEST = struct.Struct("@iiP")
_RESPONSE = struct.Struct("@iiP")
_GET_INIT_PID = 4
_CREDENTIALS = struct.Struct("@iII")  # struct ucred, unix(7)
_CREDENTIALS_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)
# The monitor answers within a millisecond; a stopped or swapped one should not hang whoever lists containers.
_TIMEOUT_S = 5.0


async def ask_processes(directory: Path, name: str) -> tuple[int, int] | None:
    """Pids of (monitor, init); None if nothing by this name runs. Init is 0 while it is not there yet or any more."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with connection:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await _ask(connection, socket_name(directory, name))
        except (ConnectionError, FileNotFoundError):
            return None
        except TimeoutError as error:
            raise HostError(f'Failed asking the monitor of "{name}": no answer after {_TIMEOUT_S:g} s') from error


async def _ask(connection: socket.socket, address: str) -> tuple[int, int]:
    loop = asyncio.get_running_loop()
    # The answer then tells who sent it; SO_PEERCRED would name the process that made the socket, before it daemonized.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    await loop.sock_connect(connection, address)
    await loop.sock_sendall(connection, _REQUEST.pack(_GET_INIT_PID, 0, 0))
    answer, monitor = b"", 0
    while len(answer) < _RESPONSE.size:
        part, ancillary = await receive_with_ancillary(connection, _RESPONSE.size - len(answer), _CREDENTIALS_BYTES)
        if not part:
            return monitor, 0
        answer += part
        monitor = _sender(ancillary) or monitor
    result, _, pid = _RESPONSE.unpack(answer)
    # The pid travels in the pointer; -1 is "none".
    return monitor, pid if result >= 0 and 0 < pid < 2**31 else 0


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return int(_CREDENTIALS.unpack(data)[0])
    return 0
