# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a connection: the certificate it showed, or SO_PEERCRED of a unix socket (unix(7))."""

import asyncio
import pwd
import socket
import struct
from typing import TYPE_CHECKING

from aiohttp import web

from flexd.server.call import Caller
from flexd.server.connections import Connections
from flexd.server.transport import tls_of
from flexd.server.trust import Certificates

if TYPE_CHECKING:
    from flexd.server.tls import TlsConnection

_UCRED = struct.Struct("iII")


class Peers:
    """Asked for every request: what a certificate may can change while its connection is open."""

    def __init__(self, certificates: Certificates, connections: Connections) -> None:
        self._certificates = certificates
        self._connections = connections
        # User names: looking one up may ask a directory server (nsswitch.conf(5)).
        self._names: dict[int, str] = {}

    async def caller(self, request: web.Request) -> Caller:
        connection = tls_of(request)
        if connection is not None:
            return self._by_certificate(connection)
        plain = request.get_extra_info("socket")
        if plain is None or plain.family != socket.AF_UNIX:
            return Caller("", "tls", request.remote or "", trusted=False)
        # The socket's mode (0660, root and its group) already decided who may connect.
        raw = plain.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _pid, uid, _gid = _UCRED.unpack(raw)
        return Caller(await self._name(uid), "unix", "@", trusted=True)

    def _by_certificate(self, connection: "TlsConnection") -> Caller:
        verdict = self._certificates.judge(connection.peer)
        if verdict.trusted:
            self._connections.admit(connection)
        fingerprint = "" if connection.peer is None else connection.peer.fingerprint
        return Caller(
            username=fingerprint,
            protocol="tls",
            address=connection.address,
            # One that is trusted with metrics is a stranger to everything else, as in LXD.
            trusted=verdict.trusted and verdict.kind == "client",
            fingerprint=fingerprint,
            kind=verdict.kind,
            restricted=verdict.restricted,
            projects=verdict.projects,
            reason=verdict.reason,
            metrics_only=connection.metrics_only,
        )

    async def _name(self, uid: int) -> str:
        if uid not in self._names:
            self._names[uid] = await asyncio.to_thread(_user_name, uid)
        return self._names[uid]


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
