# SPDX-License-Identifier: Apache-2.0
"""A daemon on fakes that listens on loopback, and clients with certificates of every kind."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.unit.server.conftest import Answer, Client
from tests.unit.server.pki_house import Holder, anonymous


def free_address(host: str = "127.0.0.1") -> str:
    """A port that nobody listened on just now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Remote:
    """One client on the network; keeps its connection."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        data = {"json": body} if body is not None else {}
        async with self.session.request(method, self.url + path, headers=names, **data) as response:
            text = await response.read()
            is_json = response.content_type == "application/json" and text
            return Answer(response, text, await response.json() if is_json else None)

    async def auth(self) -> str:
        return str((await self.call("GET", "/1.0")).metadata["auth"])


class Network:
    """`client` speaks over the unix socket."""

    def __init__(self, client: Client, directory: Path) -> None:
        self.client = client
        self.directory = directory
        self.address = free_address()
        self._stack = contextlib.AsyncExitStack()

    async def open(self) -> None:
        await self.set("core.https_address", self.address)

    async def set(self, name: str, value: str) -> Answer:
        return await self.client.call("PATCH", "/1.0", {"config": {name: value}})

    async def remote(self, holder: Holder | None = None, address: str = "") -> Remote:
        """A client with a certificate, or without."""
        # Loading a certificate reads files, which is the test's own affair.
        context = await asyncio.to_thread(anonymous if holder is None else lambda: holder.context(self.directory))
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))
        await self._stack.enter_async_context(session)
        return Remote(session, f"https://{address or self.address}")

    async def trust(self, holder: Holder, **members: Any) -> None:
        """Add it as an administrator."""
        body = {"type": "client", "name": "test", **members, "certificate": _base64(holder.der)}
        answer = await self.client.call("POST", "/1.0/certificates", body)
        assert answer.status == 201, answer.body

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TLS connection to write anything to."""
        host, _, port = self.address.rpartition(":")
        return await asyncio.open_connection(host, int(port), ssl=anonymous())

    async def close(self) -> None:
        await self._stack.aclose()


def _base64(data: bytes) -> str:
    from base64 import b64encode

    return b64encode(data).decode()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What a connection said until its end, which may be an abrupt one."""
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while piece := await asyncio.wait_for(reader.read(1 << 16), 20):
            data += piece
    return data


@contextlib.asynccontextmanager
async def network_of(client: Client, directory: Path) -> AsyncIterator[Network]:
    house = Network(client, directory)
    await house.open()
    try:
        yield house
    finally:
        await house.close()
