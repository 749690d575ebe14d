# SPDX-License-Identifier: Apache-2.0
"""`Client`: envelopes, errors, operations, streams."""

import io
from pathlib import Path

import pytest
from aiohttp import web

from flexd.client.client import Client, path_of, quote
from flexd.client.endpoint import UnixEndpoint
from flexd.client.errors import ClientError, ConnectionFailed, NotFoundError, OperationFailed
from tests.unit.client.fake_server import FakeServer, background, envelope, operation


def test_metadata_of_a_get(server: FakeServer, client: Client) -> None:
    server.say("/1.0/instances", ["/1.0/instances/c1"])
    assert client.get("/1.0/instances", {"recursion": "0"}) == ["/1.0/instances/c1"]
    (asked,) = server.asked
    assert asked.query == {"recursion": "0"}


def test_an_error_carries_the_servers_words_and_status(server: FakeServer, client: Client) -> None:
    server.fail("/1.0/networks", 409, "The network is currently in use")
    with pytest.raises(ClientError, match="currently in use") as caught:
        client.get("/1.0/networks")
    assert caught.value.status == 409


def test_not_found_is_an_error_of_its_own(client: Client) -> None:
    with pytest.raises(NotFoundError):
        client.get("/1.0/instances/nope")
    assert not client.exists("/1.0/instances/nope")


def test_etag_comes_back_as_if_match(server: FakeServer, client: Client) -> None:
    server.say("/1.0/profiles/p", {"config": {}}, etag="abc")
    server.say("/1.0/profiles/p", {}, method="PUT")
    reply = client.request("GET", "/1.0/profiles/p")
    client.request("PUT", "/1.0/profiles/p", {"config": {"a": "b"}}, etag=reply.etag)
    (put,) = server.requests("PUT")
    assert put.headers["if-match"] == "abc"
    assert put.document == {"config": {"a": "b"}}


def test_the_project_is_asked_for_everywhere_but_not_twice(server: FakeServer) -> None:
    server.say("/1.0/instances", [])
    client = Client(UnixEndpoint(str(server.socket_path)), project="blue")
    client.get("/1.0/instances")
    client.get("/1.0/instances", {"project": "red"})
    client.get("/1.0/instances", {"all-projects": "true"})
    client.get("/1.0/instances?project=green")
    assert [each.query.get("project") for each in server.asked] == ["blue", "red", None, "green"]
    client.close()


def test_a_connection_is_kept_and_used_again(server: FakeServer, client: Client) -> None:
    seen = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(id(request.transport))
        return envelope([])

    server.on("GET", "/1.0", handler)
    client.get("/1.0")
    client.get("/1.0")
    assert seen[0] == seen[1]


def test_a_connection_that_the_server_closed_is_replaced(server: FakeServer, client: Client) -> None:
    async def handler(request: web.Request) -> web.Response:
        answer = envelope("once")
        answer.force_close()
        return answer

    server.on("GET", "/1.0", handler)
    assert [client.get("/1.0"), client.get("/1.0")] == ["once", "once"]


def test_perform_waits_for_the_operation(server: FakeServer, client: Client) -> None:
    server.work("POST", "/1.0/instances", resources={"instances": ["/1.0/instances/c1"]})
    state = client.perform("POST", "/1.0/instances", {"name": "c1"})
    assert state["resources"] == {"instances": ["/1.0/instances/c1"]}


def test_a_failed_operation_raises_its_reason(server: FakeServer, client: Client) -> None:
    server.work("PUT", "/1.0/instances/c1/state", status="Failure", status_code=400, err="The instance is running")
    with pytest.raises(OperationFailed, match="The instance is running") as caught:
        client.perform("PUT", "/1.0/instances/c1/state", {})
    assert caught.value.status == 400
    assert caught.value.operation["status"] == "Failure"


def test_a_cancelled_operation_raises(server: FakeServer, client: Client) -> None:
    server.work("POST", "/1.0/images", status="Cancelled", status_code=401)
    with pytest.raises(OperationFailed, match="Cancelled"):
        client.perform("POST", "/1.0/images", {})


def test_progress_comes_from_events_until_the_end(server: FakeServer, client: Client) -> None:
    state = operation("op7")

    async def create(request: web.Request) -> web.Response:
        return background({**state, "status_code": 103})

    async def events(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for percent in ("10%", "60%"):
            update = {**state, "metadata": {"download_progress": percent}}
            await socket.send_json({"type": "operation", "metadata": {**update, "id": "another"}})
            await socket.send_json({"type": "operation", "metadata": update})
        told.set()
        await socket.receive()
        return socket

    async def wait(request: web.Request) -> web.Response:
        await seen.wait()
        return envelope(state)

    import asyncio

    told, seen = asyncio.Event(), asyncio.Event()
    server.on("POST", "/1.0/images", create)
    server.on("GET", "/1.0/events", events)
    server.on("GET", "/1.0/operations/op7/wait", wait)
    updates = []

    def note(update: object) -> None:
        updates.append(update["metadata"]["download_progress"])  # type: ignore[index]
        if len(updates) == 2:
            server._loop.call_soon_threadsafe(seen.set)

    client.perform("POST", "/1.0/images", {}, on_update=note)
    assert updates == ["10%", "60%"]


def test_a_file_is_streamed_with_its_length(server: FakeServer, client: Client) -> None:
    server.say("/1.0/images", {}, method="POST")
    content = b"x" * 300_000
    sent: list[int] = []
    client.request(
        "POST", "/1.0/images", io.BytesIO(content), headers={"Content-Length": str(len(content))}, on_sent=sent.append
    )
    (asked,) = server.asked
    assert asked.body == content
    assert "transfer-encoding" not in asked.headers
    assert sent[-1] == len(content)


def test_a_stream_of_unknown_length_is_sent_in_chunks(server: FakeServer, client: Client) -> None:
    server.say("/1.0/images", {}, method="POST")
    client.request("POST", "/1.0/images", io.BytesIO(b"abc" * 100_000))
    (asked,) = server.asked
    assert asked.body == b"abc" * 100_000
    assert asked.headers["transfer-encoding"] == "chunked"


def test_a_refused_body_shows_the_servers_answer(server: FakeServer, client: Client) -> None:
    server.fail("/1.0/images", 413, "The image is too large", method="POST")
    with pytest.raises(ClientError, match="too large"):
        client.request("POST", "/1.0/images", io.BytesIO(b"x" * 5_000_000))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_download_arrives_piece_by_piece(server: FakeServer, client: Client, chunked: bool) -> None:
    content = bytes(range(256)) * 4000

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = len(content)
        await response.prepare(request)
        for start in range(0, len(content), 100_000):
            await response.write(content[start : start + 100_000])
        return response

    server.on("GET", "/1.0/images/x/export", handler)
    server.say("/1.0", {"ok": True})
    response = client.open("GET", "/1.0/images/x/export")
    first = next(chunks := response.chunks())
    # Another request in the middle of a download goes over a connection of its own.
    assert client.get("/1.0") == {"ok": True}
    assert first + b"".join(chunks) == content


def test_an_answer_that_is_no_json_is_named(server: FakeServer, client: Client) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="<html>", status=502)

    server.on("GET", "/1.0", handler)
    with pytest.raises(ConnectionFailed, match="HTTP 502, not JSON"):
        client.get("/1.0")


def test_an_upgrade_hands_the_socket_over(server: FakeServer, client: Client) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        transport.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: sftp\r\nConnection: Upgrade\r\n\r\nhello")
        transport.close()
        return web.Response()

    server.on("GET", "/1.0/instances/c1/sftp", handler)
    wire = client.upgrade("/1.0/instances/c1/sftp", "sftp")
    assert b"".join(wire.read_to_end()) == b"hello"
    wire.close()


def test_an_upgrade_that_is_refused_is_an_error(server: FakeServer, client: Client) -> None:
    server.fail("/1.0/instances/c1/sftp", 400, "Instance is not running")
    with pytest.raises(ClientError, match="not running"):
        client.upgrade("/1.0/instances/c1/sftp", "sftp")


def test_nobody_listens(tmp_path: Path) -> None:
    client = Client(UnixEndpoint(str(tmp_path / "no.socket")))
    with pytest.raises(ConnectionFailed, match=r"no\.socket: no such file or directory\. Is the daemon running"):
        client.get("/1.0")


def test_requests_can_be_traced(server: FakeServer) -> None:
    lines: list[str] = []
    client = Client(UnixEndpoint(str(server.socket_path)), trace=lines.append)
    server.say("/1.0/profiles", {}, method="POST")
    client.request("POST", "/1.0/profiles", {"name": "p"})
    client.close()
    assert lines == ['POST /1.0/profiles {"name": "p"}']


def test_extensions_are_asked_once(server: FakeServer, client: Client) -> None:
    server.say("/1.0", {"api_extensions": ["etag"]})
    assert client.has_extension("etag")
    assert not client.has_extension("vsock")
    assert len(server.asked) == 1


def test_paths_and_queries_are_quoted() -> None:
    assert path_of("images", "aliases", "debian/12") == "/1.0/images/aliases/debian%2F12"
    assert quote("a b&c=ü") == "a%20b%26c%3D%C3%BC"
