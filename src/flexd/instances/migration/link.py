# SPDX-License-Identifier: Apache-2.0
"""Websockets that this daemon opens to another one's operation, as channels; it is known by its certificate alone."""

import asyncio
import contextlib
import hashlib
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msgspec import Struct

from flexd.api.errors import BadRequest
from flexd.host.keepalive import keep_alive
from flexd.instances.migration.peer import MigrationFailed, Peer

if TYPE_CHECKING:
    import aiohttp

_OPERATION = re.compile(r"/1\.0/operations/[0-9a-f-]{36}")
_CONNECT_S = 30.0
_MAX_FRAME_BYTES = 128 * 1024


class Far:
    """Where to connect, checked: an operation of another server, its certificate, and the secrets of its channels."""

    def __init__(self, operation: str, certificate: str, secrets: Mapping[str, str]) -> None:
        self.address = _address(operation)
        missing = {"control", "fs"} - secrets.keys()
        if missing:
            raise BadRequest(f"Invalid migration: the secret of {', '.join(sorted(missing))} is missing")
        self._url = f"wss://{self.address}{urlsplit(operation).path}/websocket"
        self._secrets = dict(secrets)
        self._fingerprint = _fingerprint(certificate) if certificate else None

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Peer]:
        """Control first: the server may answer each secret once."""
        import aiohttp

        pin: Any = True if self._fingerprint is None else aiohttp.Fingerprint(self._fingerprint)
        connector = aiohttp.TCPConnector(ssl=pin)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            names = [name for name in ("control", "fs", "criu") if name in self._secrets]
            channels = [await self._open(session, name) for name in names]
            peer = Peer(*channels)
            try:
                yield peer
            finally:
                await peer.close()

    async def _open(self, session: "aiohttp.ClientSession", name: str) -> "FarChannel":
        import aiohttp

        try:
            async with asyncio.timeout(_CONNECT_S):
                websocket = await session.ws_connect(
                    self._url, params={"secret": self._secrets[name]}, max_msg_size=0, autoclose=True, compress=0
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise MigrationFailed(f"Failed connecting to {self.address}: {_reason(error)}") from error
        keep_alive(websocket.get_extra_info("socket"))
        return FarChannel(websocket)


class Asked(Struct, frozen=True):
    """A server that can be asked about a handover. `fingerprint`: SHA-256 of its certificate's DER in hexadecimal;
    empty: one that is trusted anyway."""

    address: str
    fingerprint: str = ""

    @classmethod
    def of(cls, operation: str, certificate: str) -> "Asked":
        """By an operation of it, as clients name it."""
        return cls(_address(operation), _fingerprint(certificate).hex() if certificate else "")


async def ask_source(asked: Asked, token: str) -> bool:
    """Whether the other server has handed over what it calls by this token; it does not after it has said no."""
    import aiohttp

    pin: Any = aiohttp.Fingerprint(bytes.fromhex(asked.fingerprint)) if asked.fingerprint else True
    timeout = aiohttp.ClientTimeout(total=_CONNECT_S)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=pin), timeout=timeout) as session,
            session.post(f"https://{asked.address}/1.0/handovers/{token}") as response,
        ):
            answer = await response.json()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise MigrationFailed(f"Failed asking {asked.address}: {_reason(error)}") from error
    found = answer.get("metadata") if response.status == 200 and isinstance(answer, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("handed_over"), bool):
        raise MigrationFailed(f"Failed asking {asked.address}: it answered {response.status}")
    return bool(found["handed_over"])


class FarChannel:
    """A `flexd.operations.contract.Channel`."""

    def __init__(self, websocket: "aiohttp.ClientWebSocketResponse") -> None:
        self._websocket = websocket

    async def receive(self) -> bytes | str | None:
        from aiohttp import WSMsgType

        message = await self._websocket.receive()
        return message.data if message.type in (WSMsgType.TEXT, WSMsgType.BINARY) else None

    async def send(self, message: bytes | str) -> None:
        if isinstance(message, str):
            await self._websocket.send_str(message)
            return
        for start in range(0, max(len(message), 1), _MAX_FRAME_BYTES):
            await self._websocket.send_bytes(message[start : start + _MAX_FRAME_BYTES])

    async def close(self) -> None:
        await self._websocket.close()

    @property
    def aborted(self) -> bool:
        return self._websocket.close_code in (None, 1006)


def _address(operation: str) -> str:
    parts = urlsplit(operation)
    if parts.scheme != "https" or not parts.hostname or _OPERATION.fullmatch(parts.path) is None:
        raise BadRequest(f'Invalid migration operation "{operation}": expected https://HOST/1.0/operations/ID')
    return parts.netloc


def _fingerprint(certificate: str) -> bytes:
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).digest()
    except ValueError as error:
        raise BadRequest(f"Invalid migration: the certificate is not PEM: {error}") from error


def _reason(error: BaseException) -> str:
    import aiohttp

    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return "its certificate is not the one that was named"
    if isinstance(error, aiohttp.WSServerHandshakeError):
        return f"it refused the secret ({error.status})"
    if isinstance(error, TimeoutError):
        return f"no answer within {_CONNECT_S:.0f} s"
    return str(error) or type(error).__name__
