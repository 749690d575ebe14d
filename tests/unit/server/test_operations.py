# SPDX-License-Identifier: Apache-2.0
"""Operations, their websockets, and events."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from blockbuster import BlockBuster

from flexd.server.app import Server
from flexd.server.listener import open_unix
from tests.unit.server.conftest import URL, Client

WAIT_S = 10


async def start_exec(busy: Client, command: list[str], **more: Any) -> dict[str, Any]:
    body = {"command": command, "wait-for-websocket": True, "interactive": False, "environment": {}, **more}
    answer = await busy.call("POST", "/1.0/instances/c1/exec", body)
    assert answer.status == 202, answer.body
    assert answer.headers["Location"] == answer.envelope["operation"]
    operation: dict[str, Any] = answer.metadata
    return operation


def socket_url(operation: dict[str, Any], name: str) -> str:
    return f"{URL}/1.0/operations/{operation['id']}/websocket?secret={operation['metadata']['fds'][name]}"


async def read_all(socket: aiohttp.ClientWebSocketResponse) -> bytes:
    """What came as binary messages, until the text message or the close that ends it."""
    received = b""
    async with asyncio.timeout(WAIT_S):
        while True:
            message = await socket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                return received
            received += message.data


async def test_exec_over_websockets(busy: Client) -> None:
    operation = await start_exec(busy, ["sh", "-c", "cat; echo err >&2; exit 3"])
    assert operation["class"] == "websocket"
    connect = busy.session.ws_connect
    async with (
        connect(socket_url(operation, "0")) as stdin,
        connect(socket_url(operation, "1")) as stdout,
        connect(socket_url(operation, "2")) as stderr,
        connect(socket_url(operation, "control")) as _control,
    ):
        await stdin.send_bytes(b"x" * 300_000)
        await stdin.send_str("")
        assert await read_all(stdout) == b"x" * 300_000
        assert await read_all(stderr) == b"err\n"
    ended = (await busy.call("GET", f"/1.0/operations/{operation['id']}/wait?timeout=10")).metadata
    assert (ended["status"], ended["metadata"]["return"]) == ("Success", 3)


async def test_wrong_secrets(busy: Client) -> None:
    operation = await start_exec(busy, ["cat"])
    path = f"/1.0/operations/{operation['id']}/websocket"
    assert (await busy.call("GET", path)).error == "missing secret"
    with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
        await busy.session.ws_connect(f"{URL}{path}?secret=wrong")
    assert raised.value.status == 403
    secret = operation["metadata"]["fds"]["0"]
    plain = await busy.call("GET", f"{path}?secret={secret}")
    assert (plain.status, "upgrade" in plain.error) == (400, True)
    async with busy.session.ws_connect(f"{URL}{path}?secret={secret}"):
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await busy.session.ws_connect(f"{URL}{path}?secret={secret}")


async def test_operations_are_listed_by_status(busy: Client) -> None:
    operation = await start_exec(busy, ["cat"])
    url = f"/1.0/operations/{operation['id']}"
    assert url in (await busy.call("GET", "/1.0/operations")).metadata["running"]
    shown = (await busy.call("GET", "/1.0/operations?recursion=1")).metadata["running"]
    assert operation["id"] in [one["id"] for one in shown]
    assert (await busy.call("GET", url)).metadata["description"] == "Executing command"
    assert "success" in (await busy.call("GET", "/1.0/operations")).metadata


async def test_waiting_with_a_timeout_shows_the_operation_as_it_is(busy: Client) -> None:
    operation = await start_exec(busy, ["cat"])
    answer = await busy.call("GET", f"/1.0/operations/{operation['id']}/wait?timeout=0")
    assert answer.metadata["status"] == "Running"
    wrong = await busy.call("GET", f"/1.0/operations/{operation['id']}/wait?timeout=x")
    assert (wrong.status, wrong.error) == (400, 'Invalid timeout "x": expected a whole number')


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("DELETE", ""), ("GET", "/wait"), ("GET", "/websocket?secret=x")]
)
async def test_no_such_operation(client: Client, method: str, path: str) -> None:
    answer = await client.call(method, f"/1.0/operations/nope{path}")
    assert (answer.status, answer.error) == (404, "Operation not found")


async def test_what_cannot_be_cancelled(busy: Client) -> None:
    operation = await busy.done("PUT", "/1.0/instances/c1/state", {"action": "freeze"})
    answer = await busy.call("DELETE", f"/1.0/operations/{operation['id']}")
    assert (answer.status, answer.error) == (400, "Only running operations can be cancelled")


async def test_events_of_a_change_arrive_in_order(busy: Client) -> None:
    async with busy.session.ws_connect(f"{URL}/1.0/events?type=operation,lifecycle&project=default") as events:
        await busy.done("PUT", "/1.0/instances/c1/state", {"action": "freeze"})
        seen = []
        async with asyncio.timeout(WAIT_S):
            while not seen or seen[-1]["metadata"].get("status") != "Success":
                seen.append(json.loads((await events.receive()).data))
    statuses = [event["metadata"]["status"] for event in seen if event["type"] == "operation"]
    assert statuses == ["Pending", "Running", "Success"]
    lifecycle = next(event for event in seen if event["type"] == "lifecycle")
    assert lifecycle["metadata"]["action"] == "instance-paused"
    assert lifecycle["metadata"]["source"] == "/1.0/instances/c1"
    assert lifecycle["metadata"]["requestor"]["protocol"] == "unix"
    assert lifecycle["metadata"]["requestor"]["address"] == "@"
    assert (lifecycle["project"], lifecycle["location"]) == ("default", "none")


async def test_events_without_an_upgrade_or_of_an_unknown_type(client: Client) -> None:
    answer = await client.call("GET", "/1.0/events?type=bogus")
    assert (answer.status, answer.error) == (400, '"bogus" isn\'t a supported event type')
    assert (await client.call("GET", "/1.0/events")).status == 400


async def test_a_stopping_server_closes_websockets(client: Client, tmp_path: Path, blockbuster: BlockBuster) -> None:
    blockbuster.deactivate()  # as in the fixture: composing scans folders
    server = Server(await client.daemon.services())
    blockbuster.activate()
    await server.start([await open_unix(tmp_path / "other", "root")])
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "other"))) as session,
        session.ws_connect(f"{URL}/1.0/events") as events,
    ):
        stopping = asyncio.create_task(server.stop())
        async with asyncio.timeout(WAIT_S):
            message = await events.receive()
            await stopping
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.GOING_AWAY)
