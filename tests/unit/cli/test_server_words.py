# SPDX-License-Identifier: Apache-2.0
"""operation, query, warning, monitor, project, version."""

import json

import pytest
from aiohttp import web

from flexd.cli.commands.monitor import pretty
from tests.unit.cli.conftest import Run
from tests.unit.client.fake_server import FakeServer, operation


def test_operations(run: Run, server: FakeServer) -> None:
    busy = operation("id1", status="Running", status_code=103, may_cancel=True)
    server.say("/1.0/operations", {"running": [busy], "success": [operation("id2")]})
    server.say("/1.0/operations/id1", busy)
    server.say("/1.0/operations/id1", {}, method="DELETE")
    assert run("operation", "list", "-f", "csv").out == (
        "id1,TASK,Working,RUNNING,YES,2026/01/02 03:04 UTC\nid2,TASK,Working,SUCCESS,NO,2026/01/02 03:04 UTC\n"
    )
    assert run("operation", "show", "id1").out.startswith("id: id1\nclass: task\n")
    assert run("operation", "delete", "id1").out == "Operation id1 deleted\n"


def test_query(run: Run, server: FakeServer) -> None:
    server.say("/1.0/instances", ["/1.0/instances/c1"])
    server.work("DELETE", "/1.0/instances/c1")
    server.say("/1.0/profiles", None, method="POST")
    assert json.loads(run("query", "/1.0/instances").out) == ["/1.0/instances/c1"]
    assert json.loads(run("query", "--raw", "/1.0/instances").out)["type"] == "sync"
    assert json.loads(run("query", "-X", "DELETE", "--wait", "/1.0/instances/c1").out)["status"] == "Success"
    assert json.loads(run("query", "-X", "DELETE", "/1.0/instances/c1").out)["status"] == "Running"
    assert run("query", "-X", "POST", "-d", '{"name": "p"}', "/1.0/profiles").out == ""
    assert server.sent("POST", "/1.0/profiles") == {"name": "p"}
    assert run("query", "-X", "POST", "-d", "-", "/1.0/profiles", stdin='{"a": 1}').status == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1.0"], "must start with /"),
        (["-d", "{", "/1.0"], "The data are not JSON"),
        (["--project", "a", "/1.0?project=b"], "can't be used"),
        (["/1.0/nope"], "not found"),
    ],
)
def test_wrong_queries(run: Run, words: list[str], message: str) -> None:
    assert message in run("query", *words).err


def test_warnings(run: Run, server: FakeServer) -> None:
    found = {
        "uuid": "u1",
        "type": "Too hot",
        "status": "new",
        "severity": "low",
        "count": 2,
        "project": "",
        "location": "none",
        "first_seen_at": "2026-11-23T00:10:00Z",
        "last_seen_at": "2026-11-23T12:10:00Z",
    }
    server.say("/1.0/warnings", [found, {**found, "uuid": "u2", "status": "resolved"}])
    server.say("/1.0/warnings/u1", {}, method="PUT")
    server.say("/1.0/warnings/u1", {}, method="DELETE")
    assert run("warning", "list", "-f", "csv").out == 'u1,Too hot,NEW,LOW,2,,"Nov 23, 2026 at 12:10pm (UTC)"\n'
    assert run("warning", "list", "-a", "-f", "csv", "-c", "uf").out.splitlines()[1] == (
        'u2,"Nov 23, 2026 at 12:10am (UTC)"'
    )
    assert run("warning", "ack", "u1").status == 0
    assert server.sent("PUT", "/1.0/warnings/u1") == {"status": "acknowledged"}
    assert run("warning", "delete", "u1").status == 0
    assert "Name one warning" in run("warning", "delete").err


LIFECYCLE = {
    "type": "lifecycle",
    "timestamp": "2026-11-23T06:10:02.7Z",
    "metadata": {"action": "instance-started", "source": "/1.0/instances/c1", "context": {"by": "two words"}},
}
LOGGING = {
    "type": "logging",
    "timestamp": "2026-11-23T06:10:02.7Z",
    "metadata": {"level": "debug", "message": "Hello", "context": {"b": "", "a": 1}},
}
WORK = {
    "type": "operation",
    "timestamp": "2026-11-23T06:10:02.7Z",
    "metadata": {"id": "x", "description": "Starting", "status": "Failure", "err": "no", "metadata": None},
}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (LIFECYCLE, 'INFO    [2026-11-23 06:10:02] instance-started /1.0/instances/c1 by="two words"'),
        (LOGGING, 'DEBUG   [2026-11-23 06:10:02] Hello a=1 b=""'),
        (WORK, "INFO    [2026-11-23 06:10:02] Starting: Failure err=no id=x"),
    ],
)
def test_pretty_events(event: dict[str, object], line: str) -> None:
    assert pretty(event) == line


def test_monitor(run: Run, server: FakeServer) -> None:
    async def events(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json(LIFECYCLE)
        await socket.send_json(LOGGING)
        await socket.close()
        return socket

    server.on("GET", "/1.0/events", events)
    result = run("monitor", "-f", "json", "--type=lifecycle", "--type", "logging")
    assert [json.loads(line)["type"] for line in result.out.splitlines()] == ["lifecycle", "logging"]
    assert result.err == "Error: The server closed the connection\n"
    assert server.asked[0].query == {"type": "lifecycle,logging"}
    assert run("monitor", "--pretty", "--loglevel=info").out.count("\n") == 1
    assert run("monitor").out.startswith("type: lifecycle\n")
    assert "only be used with pretty" in run("monitor", "--loglevel=info").err
    assert "expected one of lifecycle, logging, operation" in run("monitor", "--type=nope").err


def test_projects(run: Run, server: FakeServer) -> None:
    blue = {"name": "blue", "description": "", "config": {"features.images": "true"}, "used_by": []}
    server.say("/1.0/projects", [blue, {**blue, "name": "default"}])
    server.say("/1.0/projects/blue", blue)
    server.say("/1.0/instances", [])
    assert run("project", "list", "-f", "csv").out == ("blue,YES,NO,NO,NO,,0\ndefault (current),YES,NO,NO,NO,,0\n")
    assert run("project", "switch", "blue").status == 0
    server.asked.clear()
    run("list")
    assert server.asked[0].query["project"] == "blue"


def test_versions(run: Run, server: FakeServer) -> None:
    assert run("version").out.splitlines()[1] == "Server version: unreachable"
    server.say("/1.0", {"environment": {"server_version": "5.0.2"}})
    assert run("version").out.splitlines()[1] == "Server version: 5.0.2"
