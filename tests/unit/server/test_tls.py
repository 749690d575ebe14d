# SPDX-License-Identifier: Apache-2.0
"""The TLS layer alone, between a fake socket and a protocol that echoes; clients are Python's own `ssl`."""

import asyncio
import contextlib
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexd.server.tls import TlsConnection, TlsLayer, TlsTransport, make_context
from flexd.server.x509 import make_server_certificate
from tests.unit.server.pki_house import anonymous, make

CONTEXT = make_context(*make_server_certificate("test"))


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.lost: list[Exception | None] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


@dataclass
class Socket:
    """The transport below."""

    sent: bytearray = field(default_factory=bytearray)
    closed: str = ""
    reading: bool = True

    def write(self, data: bytes) -> None:
        self.sent += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closed = self.closed or "closed"

    def abort(self) -> None:
        self.closed = self.closed or "aborted"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.7", 1) if name == "peername" else default


@dataclass
class Watcher:
    told: list[str] = field(default_factory=list)

    def opened(self, _connection: TlsConnection) -> None:
        self.told.append("opened")

    def secured(self, _connection: TlsConnection) -> None:
        self.told.append("secured")

    def active(self, _connection: TlsConnection, _count: int) -> None: ...

    def closed(self, _connection: TlsConnection) -> None:
        self.told.append("closed")


class Wire:
    """A client and a connection, joined by hand, the bytes in pieces of our choice."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.watcher = Watcher()
        self.echo = Echo()
        self.layer = TlsLayer(CONTEXT, lambda: self.echo, self.watcher)
        self.connection = self.layer.accept()
        self.socket = Socket()
        self.connection.connection_made(cast(asyncio.BaseTransport, self.socket))
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = (context or anonymous()).wrap_bio(self._in, self._out)

    async def push(self, data: bytes, piece: int = 1 << 17) -> None:
        """Into the server, as the loop would."""
        for start in range(0, len(data), piece):
            while not self.socket.reading:
                await asyncio.sleep(0)
            part = data[start : start + piece]
            self.connection.get_buffer(-1)[: len(part)] = part
            self.connection.buffer_updated(len(part))

    async def exchange(self, piece: int = 1 << 17) -> None:
        """Move everything there is in both directions."""
        while True:
            await self.push(self._out.read(), piece)
            for _ in range(3):
                await asyncio.sleep(0)
            if not self.socket.sent and not self._out.pending:
                return
            self._in.write(bytes(self.socket.sent))
            self.socket.sent.clear()
            self._step()

    def _step(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.client.do_handshake()

    async def connect(self, piece: int = 1 << 17) -> None:
        self._step()
        await self.exchange(piece)
        assert self.connection.secured

    def read(self) -> bytes:
        data = bytearray()
        while True:
            try:
                part = self.client.read(1 << 16)
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                return bytes(data)
            if not part:
                return bytes(data)
            data += part


async def test_a_handshake_and_an_echo() -> None:
    wire = Wire()
    await wire.connect()
    assert wire.watcher.told == ["opened", "secured"]
    assert (wire.connection.peer, wire.connection.address) == (None, "192.0.2.7")
    wire.client.write(b"hello")
    await wire.exchange()
    assert wire.read() == b"hello"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_certificate_of_the_client_is_known(tmp_path: Path, version: ssl.TLSVersion) -> None:
    holder = make()
    context = holder.context(tmp_path)
    context.maximum_version = version
    wire = Wire(context)
    await wire.connect()
    assert wire.connection.peer is not None
    assert (wire.connection.peer.der, wire.connection.peer.fingerprint) == (holder.der, holder.fingerprint)


@settings(max_examples=25, deadline=None)
@given(piece=st.integers(1, 3000), size=st.integers(0, 70_000))
def test_bytes_may_come_in_any_pieces(piece: int, size: int) -> None:
    async def run() -> None:
        wire = Wire()
        await wire.connect(piece)
        data = bytes(range(256)) * (size // 256)
        if data:
            wire.client.write(data)
        await wire.exchange(piece)
        assert wire.read() == data

    asyncio.run(run())


async def test_much_at_once() -> None:
    wire = Wire()
    await wire.connect()
    data = bytes(range(256)) * 20_000
    wire.echo.transport.write(data)
    await wire.exchange()
    assert wire.read() == data
    wire.echo.transport.writelines([b"a", memoryview(b"b"), bytearray(b"c")])
    await wire.exchange()
    assert wire.read() == b"abc"


async def test_an_application_that_has_had_enough_is_left_alone() -> None:
    wire = Wire()
    await wire.connect()
    transport = wire.echo.transport
    transport.pause_reading()
    assert not transport.is_reading()
    assert not wire.socket.reading
    wire.client.write(b"later")
    data = wire._out.read()
    wire.connection.get_buffer(-1)[: len(data)] = data
    wire.connection.buffer_updated(len(data))  # what was on its way already
    assert wire.echo.received == b""
    transport.resume_reading()
    assert wire.echo.received == b""  # not in the middle of the application's own call
    await asyncio.sleep(0)
    assert wire.echo.received == b"later"
    assert wire.socket.reading


async def test_a_pause_in_the_middle_of_what_has_arrived() -> None:
    wire = Wire()
    await wire.connect()
    received = wire.echo.received

    def take_one(data: bytes) -> None:
        received.extend(data)
        wire.echo.transport.pause_reading()

    wire.echo.data_received = take_one  # type: ignore[method-assign]
    for part in (b"one", b"two", b"three"):
        wire.client.write(part)
    await wire.push(wire._out.read())
    assert received == b"one"
    wire.echo.transport.resume_reading()
    await asyncio.sleep(0)
    assert received == b"onetwo"


async def test_goodbyes() -> None:
    wire = Wire()
    await wire.connect()
    wire.echo.transport.write(b"last words")
    wire.echo.transport.close()
    assert wire.echo.transport.is_closing()
    wire.echo.transport.write(b"too late")
    wire.echo.transport.close()
    assert wire.socket.closed == "closed"
    wire._in.write(bytes(wire.socket.sent))
    assert wire.read() == b"last words"
    assert wire.client.read(1) == b""  # the end was said, not cut off
    wire.connection.connection_lost(None)
    assert wire.echo.lost == [None]
    assert wire.watcher.told[-1] == "closed"


async def test_the_goodbye_of_the_client() -> None:
    wire = Wire()
    await wire.connect()
    with pytest.raises(ssl.SSLWantReadError):
        wire.client.unwrap()
    await wire.exchange()
    assert wire.socket.closed == "closed"


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" * 5, b"\0" * 100])
async def test_what_is_no_handshake_is_ended(junk: bytes) -> None:
    wire = Wire()
    await wire.push(junk)
    for _ in range(3):
        await asyncio.sleep(0)
    assert wire.socket.closed
    wire.connection.connection_lost(None)
    assert wire.watcher.told == ["opened", "closed"]


async def test_junk_later_is_ended_too() -> None:
    wire = Wire()
    await wire.connect()
    await wire.push(b"\x17\x03\x03\x00\x20" + b"\0" * 32)
    assert wire.socket.closed == "aborted"
    await wire.push(b"more")


async def test_old_protocols_are_refused() -> None:
    context = anonymous()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    wire = Wire(context)
    wire._step()
    with pytest.raises(ssl.SSLError):
        await wire.exchange()
    assert wire.socket.closed


async def test_a_connection_that_vanishes_during_its_handshake() -> None:
    wire = Wire()
    wire._step()
    await wire.push(wire._out.read())
    wire.connection.connection_lost(ConnectionResetError())
    await asyncio.sleep(0)
    assert not wire.connection.secured


async def test_an_observer_may_end_it() -> None:
    wire = Wire()
    wire.watcher.secured = lambda connection: connection.abort()  # type: ignore[method-assign]
    wire._step()
    await wire.exchange()
    assert wire.socket.closed == "aborted"
    assert wire.echo.transport is None


async def test_the_transport_says_what_applications_ask() -> None:
    wire = Wire()
    await wire.connect()
    transport: TlsTransport = wire.echo.transport
    assert transport.get_extra_info("tls") is wire.connection
    assert transport.get_extra_info("sslcontext")
    assert transport.get_extra_info("peername") == ("192.0.2.7", 1)
    assert transport.get_extra_info("nothing", 3) == 3
    assert not transport.can_write_eof()
    assert transport.get_protocol() is wire.echo
    other = Echo()
    transport.set_protocol(other)
    other.connection_made(transport)
    wire.client.write(b"x")
    await wire.exchange()
    assert other.received == b"x"


async def test_thousands_of_handshakes_leave_room_for_others() -> None:
    """A turn of the loop has a few of them, so that what else happens is not behind all."""
    layer = TlsLayer(CONTEXT, Echo, Watcher())
    done: list[int] = []

    class Fake:
        def shake_hands(self) -> None:
            done.append(1)

    for _ in range(10):
        layer.queue(cast(TlsConnection, Fake()))
    counts = []
    for _ in range(5):
        await asyncio.sleep(0)
        counts.append(len(done))
    assert counts == [4, 8, 10, 10, 10]
