# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a connection: SO_PEERCRED of a unix socket (unix(7))."""

import asyncio
import pwd
import socket
import struct

from aiohttp import web

from flexd.server.call import Caller

_UCRED = struct.Struct("iII")


class Peers:
    """Remembers user names: looking one up may ask a directory server (nsswitch.conf(5))."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    async def caller(self, request: web.Request) -> Caller:
        """The caller. The socket's mode (0660, root and its group) already decided who may connect."""
        connection = request.get_extra_info("socket")
        if connection is None or connection.family != socket.AF_UNIX:
            return Caller("", "tls", request.remote or "", trusted=False)
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _pid, uid, _gid = _UCRED.unpack(raw)
        return Caller(await self._name(uid), "unix", "@", trusted=True)

    async def _name(self, uid: int) -> str:
        if uid not in self._names:
            self._names[uid] = await asyncio.to_thread(_user_name, uid)
        return self._names[uid]


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
