# SPDX-License-Identifier: Apache-2.0
"""Frames, and a whole websocket against aiohttp's."""

import select

import pytest
from aiohttp import WSMsgType, web
from hypothesis import given
from hypothesis import strategies as st

from flexd.client.client import Client
from flexd.client.errors import ClientError, ConnectionFailed
from flexd.client.websocket import accept_of, decode_frame, encode_frame, mask
from tests.unit.client.fake_server import FakeServer


@given(st.integers(0, 15), st.binary(max_size=70_000))
def test_a_frame_survives(opcode: int, payload: bytes) -> None:
    buffer = bytearray(encode_frame(opcode, payload) + b"rest")
    assert decode_frame(buffer) == (opcode, True, payload)
    assert buffer == b"rest"


@given(st.binary(min_size=1, max_size=300), st.data())
def test_half_a_frame_waits_for_the_rest(payload: bytes, data: st.DataObject) -> None:
    frame = encode_frame(2, payload)
    cut = data.draw(st.integers(0, len(frame) - 1))
    buffer = bytearray(frame[:cut])
    assert decode_frame(buffer) is None
    assert buffer == frame[:cut]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_lengths_have_three_forms(size: int) -> None:
    assert decode_frame(bytearray(encode_frame(2, b"x" * size))) == (2, True, b"x" * size)


@given(st.binary(max_size=50), st.binary(min_size=4, max_size=4))
def test_masking_twice_is_nothing(data: bytes, key: bytes) -> None:
    assert mask(mask(data, key), key) == data


def test_the_accept_of_the_rfc() -> None:
    assert accept_of("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def _echo(server: FakeServer) -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            if message.data == "bye":
                break
            await (socket.send_str(message.data) if message.type is WSMsgType.TEXT else socket.send_bytes(message.data))
        await socket.close()
        return socket

    server.on("GET", "/ws", handler)


def test_messages_come_back_as_what_they_were(server: FakeServer, client: Client) -> None:
    _echo(server)
    socket = client.websocket("/ws")
    for message in ("text ü", b"", b"bytes", b"x" * 1_000_000):
        socket.send(message)
        assert socket.receive() == message
    socket.send("bye")
    assert socket.receive() is None
    assert socket.closed


def test_in_a_poll_loop_nothing_blocks(server: FakeServer, client: Client) -> None:
    _echo(server)
    socket = client.websocket("/ws")
    socket.set_blocking(False)
    assert socket.read_messages() == []
    content = b"y" * 3_000_000
    socket.queue(content)
    received: list[bytes | str] = []
    while not received:
        poll = select.poll()
        poll.register(socket, select.POLLIN | (select.POLLOUT if socket.wants_write else 0))
        poll.poll()
        socket.flush()
        received += socket.read_messages()
    assert received == [content]
    socket.close()


def test_a_ping_is_answered_and_fragments_are_joined(server: FakeServer, client: Client) -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        await socket.ping(b"are you there")
        pong = await socket.receive()
        transport = request.transport
        assert transport is not None
        # "he" without the final bit, a ping between, then "y" as the continuation.
        transport.write(b"\x01\x02he" + b"\x89\x00" + b"\x80\x01y")
        await socket.send_str(f"{pong.type.name} {pong.data.decode()}")
        await socket.receive()
        await socket.close()
        return socket

    server.on("GET", "/ws", handler)
    socket = client.websocket("/ws")
    assert socket.receive() == "hey"
    assert socket.receive() == "PONG are you there"
    socket.close()


def test_a_refusal_is_the_servers_error(server: FakeServer, client: Client) -> None:
    server.fail("/ws", 403, "not authorized")
    with pytest.raises(ClientError, match="not authorized"):
        client.websocket("/ws")


def test_a_wrong_handshake_is_refused(server: FakeServer, client: Client) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        transport.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: no\r\n\r\n")
        transport.close()
        return web.Response()

    server.on("GET", "/ws", handler)
    with pytest.raises(ConnectionFailed, match="handshake"):
        client.websocket("/ws")
