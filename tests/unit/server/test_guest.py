# SPDX-License-Identifier: Apache-2.0
"""The guest API of a daemon on fakes: who is answered, and what. The kernel's word about the peer is pretended."""

import asyncio
import os
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from flexd.host.contract import Peer, ProcessRef
from tests.unit.server.conftest import Client, tiny_image

HOST_NAMESPACE = 1
ROOT_UID = 1_000_000


def be(client: Client, name: str | None, *, uid: int = ROOT_UID, namespaces: tuple[int, ...] | None = None) -> None:
    """From now on this process is one of a container's, or with None of the host."""
    spaces = namespaces or (HOST_NAMESPACE,)
    if name is not None:
        record = client.daemon.registry.instance("default", name)
        container = client.daemon.lifecycle.running(record)
        assert container is not None
        spaces = (container.init.pid, HOST_NAMESPACE)
    client.host.processes.peers[os.getpid()] = Peer(ProcessRef(os.getpid(), 1), uid, uid, spaces)


async def ask(client: Client, path: str, method: str = "GET", **options: Any) -> tuple[int, bytes]:
    socket = client.daemon.directory / "devlxd" / "sock"
    connector = aiohttp.UnixConnector(str(socket))
    async with (
        aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
        session.request(method, "http://lxd" + path, **options) as answer,
    ):
        return answer.status, await answer.read()


async def test_its_own_configuration_and_no_other(busy: Client):
    await busy.call("PATCH", "/1.0/instances/c1", {"config": {"user.a": "1", "boot.autostart": "true"}})
    await busy.call("PATCH", "/1.0/profiles/default", {"config": {"user.b": "2"}})
    be(busy, "c1")
    assert await ask(busy, "/1.0/config") == (200, b'["/1.0/config/user.a","/1.0/config/user.b"]\n')
    assert await ask(busy, "/1.0/config/user.b") == (200, b"2")
    assert await ask(busy, "/1.0/config/boot.autostart") == (403, b"not authorized\n")
    assert await ask(busy, "/1.0/config/user.c") == (404, b"not found\n")
    assert await ask(busy, "/2.0") == (404, b"not found\n")
    assert (await ask(busy, "/1.0/config", "DELETE"))[0] == 405


async def test_the_host_is_nobody(busy: Client):
    be(busy, None, uid=0)
    assert await ask(busy, "/") == (403, b"not authorized\n")


async def test_a_nested_container_is_its_outer_one(busy: Client):
    record = busy.daemon.registry.instance("default", "c1")
    container = busy.daemon.lifecycle.running(record)
    assert container is not None
    be(busy, None, namespaces=(4711, container.init.pid, HOST_NAMESPACE))
    assert (await ask(busy, "/"))[0] == 200


async def test_only_root_inside(busy: Client):
    be(busy, "c1", uid=ROOT_UID + 1000)
    assert await ask(busy, "/1.0") == (401, b"Access denied for non-root user\n")


async def test_a_process_that_is_gone_is_nobody(busy: Client, monkeypatch: pytest.MonkeyPatch):
    async def gone(_connection: object) -> None:
        return None

    monkeypatch.setattr(busy.host.processes, "peer", gone)
    assert (await ask(busy, "/1.0"))[0] == 403


async def test_another_process_of_the_same_pid_is_nobody(busy: Client, monkeypatch: pytest.MonkeyPatch):
    """The peer changes between the two times that it is asked for."""
    be(busy, "c1")
    real, count = busy.host.processes.peer, iter(range(2))

    async def changing(connection: Any) -> Peer | None:
        found = await real(connection)
        assert found is not None
        return msgspec.structs.replace(found, process=ProcessRef(os.getpid(), next(count)))

    monkeypatch.setattr(busy.host.processes, "peer", changing)
    assert (await ask(busy, "/1.0"))[0] == 403


async def test_meta_data_and_devices(busy: Client):
    be(busy, "c1")
    status, body = await ask(busy, "/1.0/meta-data")
    assert status == 200
    assert body.startswith(b"#cloud-config\ninstance-id: ")
    assert body.endswith(b"\nlocal-hostname: c1\n")
    assert msgspec.json.decode((await ask(busy, "/1.0/devices"))[1]) == {
        "root": {"type": "disk", "path": "/", "pool": "default"}
    }


async def test_ready(busy: Client):
    be(busy, "c1")
    assert (await ask(busy, "/1.0", "PATCH", json={"state": "Ready"}))[0] == 200
    assert msgspec.json.decode((await ask(busy, "/1.0"))[1])["state"] == "Ready"
    assert (await busy.call("GET", "/1.0/instances/c1")).metadata["status"] == "Ready"
    assert (await busy.call("GET", "/1.0/instances/c1/state")).metadata["status_code"] == 113
    assert (await ask(busy, "/1.0", "PATCH", json={"state": "Asleep"}))[0] == 400
    assert (await ask(busy, "/1.0", "PATCH", data=b"nonsense"))[0] == 400


async def test_switched_off(busy: Client):
    be(busy, "c1")
    await busy.call("PATCH", "/1.0/instances/c1", {"config": {"security.devlxd": "false"}})
    assert (await ask(busy, "/1.0"))[0] == 403


async def test_images_if_allowed_and_public(busy: Client):
    operation = await busy.done("POST", "/1.0/images", tiny_image())
    fingerprint = operation["metadata"]["fingerprint"]
    be(busy, "c1")
    path = f"/1.0/images/{fingerprint}/export"
    assert (await ask(busy, path))[0] == 403
    await busy.call("PATCH", "/1.0/instances/c1", {"config": {"security.devlxd.images": "true"}})
    assert (await ask(busy, path))[0] == 404
    await busy.call("PATCH", f"/1.0/images/{fingerprint}", {"public": True})
    assert await ask(busy, path) == (200, tiny_image())


async def test_events_by_websocket(busy: Client):
    be(busy, "c1")
    socket = busy.daemon.directory / "devlxd" / "sock"
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
        session.ws_connect("http://lxd/1.0/events?type=config") as websocket,
    ):
        while not busy.daemon.events.wanted("lifecycle"):
            await asyncio.sleep(0)
        await busy.call("PATCH", "/1.0/instances/c1", {"config": {"user.x": "1"}})
        event = await websocket.receive_json()
        assert event["type"] == "config"
        assert event["metadata"] == {"key": "user.x", "old_value": "", "value": "1"}
        await busy.done("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
        assert (await websocket.receive()).type == aiohttp.WSMsgType.CLOSE


async def test_wrong_kinds_of_events(busy: Client):
    be(busy, "c1")
    assert (await ask(busy, "/1.0/events?type=lifecycle"))[0] == 400


async def test_connections_are_limited_and_can_be_closed(busy: Client):
    be(busy, "c1")
    path = busy.daemon.directory / "devlxd" / "sock"
    streams = []
    for _ in range(32):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        streams.append((reader, writer))
    assert (await ask(busy, "/"))[0] == 429
    busy.daemon.guest_server.disconnect("default", "c1")
    for reader, writer in streams:
        await reader.read()
        writer.close()
    assert (await ask(busy, "/"))[0] == 200


async def test_the_socket_is_replaced_at_a_restart(busy: Client):
    path: Path = busy.daemon.directory / "devlxd"
    assert path.stat().st_mode & 0o777 == 0o755
    before = (path / "sock").stat().st_ino
    await busy.daemon.guest_server.stop()
    from flexd.server.guest.server import GuestServer

    again = GuestServer(busy.daemon.guest)
    await again.start(path)
    assert (path / "sock").stat().st_ino != before
    be(busy, "c1")
    assert (await ask(busy, "/"))[0] == 200
    await again.stop()
