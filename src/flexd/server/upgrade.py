# SPDX-License-Identifier: Apache-2.0
"""A raw upgrade (RFC 9110 7.8): 101, and then bytes both ways between the client and a socket of ours."""

import asyncio
import contextlib
import socket

from aiohttp import web

from flexd.api.errors import BadRequest, FlexdError

_PIECE_BYTES = 256 * 1024


class Taken(web.StreamResponse):
    """Tells aiohttp that nothing is left to send: the connection was ours and is over."""

    async def prepare(self, _request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, _data: bytes = b"") -> None:
        return None


def check_upgrade(request: web.Request, protocol: str) -> None:
    if request.headers.get("Upgrade", "").lower() != protocol:
        raise BadRequest("Missing or invalid upgrade header")


async def bridge(request: web.Request, protocol: str, fd: int) -> web.StreamResponse:
    """Answer 101 and copy bytes until either side closes; takes the file descriptor of the socket over."""
    inner_reader, inner_writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    transport = request.transport
    if transport is None:
        inner_writer.close()
        raise FlexdError("the client is gone")
    loop = asyncio.get_running_loop()
    outer_reader = asyncio.StreamReader(limit=_PIECE_BYTES)
    outer_protocol = asyncio.StreamReaderProtocol(outer_reader)
    outer_writer = asyncio.StreamWriter(transport, outer_protocol, outer_reader, loop)
    request.protocol.close()  # no further request on this connection
    transport.set_protocol(outer_protocol)
    outer_protocol.connection_made(transport)
    outer_writer.write(_switching(protocol))
    try:
        await _copy_both(outer_reader, inner_writer, inner_reader, outer_writer)
    finally:
        inner_writer.close()
        outer_writer.close()
    return Taken(status=101)


def _switching(protocol: str) -> bytes:
    return f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\nConnection: Upgrade\r\n\r\n".encode()


async def _copy_both(
    outer_reader: asyncio.StreamReader,
    inner_writer: asyncio.StreamWriter,
    inner_reader: asyncio.StreamReader,
    outer_writer: asyncio.StreamWriter,
) -> None:
    """Until one side ends: an SFTP session has no half-closed state."""
    copies = [
        asyncio.create_task(_copy(outer_reader, inner_writer)),
        asyncio.create_task(_copy(inner_reader, outer_writer)),
    ]
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for copy in copies:
            copy.cancel()
        await asyncio.gather(*copies, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
