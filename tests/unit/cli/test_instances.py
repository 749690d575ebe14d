# SPDX-License-Identifier: Apache-2.0
"""launch, init, start, stop, restart, pause, delete, rename, copy, move, snapshots, backups, info."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import FINGERPRINT, instance, network, profile
from tests.unit.client.fake_server import FakeServer

INSTANCES = "/1.0/instances"


@pytest.fixture
def ready(server: FakeServer) -> FakeServer:
    """A server with an image and the instance c1, on which everything succeeds."""
    server.say("/1.0/images/aliases/debian/12", {"name": "debian/12", "target": FINGERPRINT})
    server.say(f"/1.0/images/{FINGERPRINT[:6]}", {"fingerprint": FINGERPRINT})
    server.say(f"{INSTANCES}/c1", instance(), etag="tag1")
    server.work("POST", INSTANCES, resources={"instances": ["/1.0/instances/c1"]})
    for path in (f"{INSTANCES}/c1", f"{INSTANCES}/c1/state"):
        server.work("PUT", path)
    server.work("POST", f"{INSTANCES}/c1")
    server.work("DELETE", f"{INSTANCES}/c1")
    return server


def test_launch_creates_and_starts(run: Run, ready: FakeServer) -> None:
    result = run("launch", "debian/12", "c1", "-c", "limits.cpu=2", "-p", "default", "-p", "big", "-s", "fast")
    assert (result.status, result.out) == (0, "Creating c1\nStarting c1\n")
    body = ready.sent("POST", INSTANCES)
    assert body["source"] == {"type": "image", "fingerprint": FINGERPRINT}
    assert (body["name"], body["config"], body["profiles"]) == ("c1", {"limits.cpu": "2"}, ["default", "big"])
    assert body["devices"] == {"root": {"type": "disk", "path": "/", "pool": "fast"}}
    assert ready.sent("PUT", f"{INSTANCES}/c1/state")["action"] == "start"


def test_launch_by_the_beginning_of_a_fingerprint(run: Run, ready: FakeServer) -> None:
    assert run("launch", FINGERPRINT[:6], "c1").status == 0
    assert ready.sent("POST", INSTANCES)["source"]["fingerprint"] == FINGERPRINT


def test_a_name_is_chosen_by_the_server(run: Run, ready: FakeServer) -> None:
    assert "Instance name is: c1" in run("init", "debian/12").out
    body = ready.sent("POST", INSTANCES)
    assert (body["name"], body["profiles"]) == ("", None)
    assert not ready.requests("PUT")


def test_an_unknown_image_says_how_to_get_one(run: Run, ready: FakeServer) -> None:
    result = run("launch", "debian/13", "x")
    assert result.status == 1
    assert 'Image "debian/13" not found' in result.err
    assert "flexc image build debian/13" in result.err


def test_init_takes_a_document(run: Run, ready: FakeServer) -> None:
    document = "config:\n  limits.cpu: 2\n  user.a: yes\nephemeral: true\ndevices:\n  d: {type: disk, path: /d}\n"
    assert run("init", "debian/12", "c1", "-c", "user.a=no", stdin=document).status == 0
    body = ready.sent("POST", INSTANCES)
    assert body["config"] == {"limits.cpu": "2", "user.a": "no"}
    assert body["ephemeral"] is True
    assert body["devices"] == {"d": {"type": "disk", "path": "/d"}}


def test_a_device_of_a_profile_is_overridden(run: Run, ready: FakeServer) -> None:
    root = {"type": "disk", "path": "/", "pool": "default"}
    ready.say("/1.0/profiles/default", profile(devices={"root": root}))
    assert run("init", "debian/12", "c1", "-d", "root,size=10GiB", "-d", "x,type=none").status == 0
    assert ready.sent("POST", INSTANCES)["devices"] == {"root": {**root, "size": "10GiB"}, "x": {"type": "none"}}


@pytest.mark.parametrize(
    ("described", "nic"),
    [
        (network("n0"), {"type": "nic", "name": "eth0", "network": "n0"}),
        (network("n0", managed=False), {"type": "nic", "name": "eth0", "nictype": "bridged", "parent": "n0"}),
        (
            network("n0", managed=False, type="physical"),
            {"type": "nic", "name": "eth0", "nictype": "macvlan", "parent": "n0"},
        ),
    ],
)
def test_a_network_is_attached(run: Run, ready: FakeServer, described: dict[str, Any], nic: dict[str, str]) -> None:
    ready.say("/1.0/networks/n0", described)
    assert run("init", "debian/12", "c1", "-n", "n0").status == 0
    assert ready.sent("POST", INSTANCES)["devices"] == {"eth0": nic}


def test_empty_and_without_profiles(run: Run, ready: FakeServer) -> None:
    assert run("init", "--empty", "c1", "--no-profiles", "--vm").status == 0
    body = ready.sent("POST", INSTANCES)
    assert (body["source"], body["profiles"], body["type"]) == ({"type": "none"}, [], "virtual-machine")


def test_no_network_is_told(run: Run, ready: FakeServer) -> None:
    ready.say(f"{INSTANCES}/c1", instance(expanded_devices={}))
    assert "The instance has no network" in run("launch", "debian/12", "c1").err


def test_a_failed_start_points_to_the_log(run: Run, ready: FakeServer) -> None:
    ready.work("PUT", f"{INSTANCES}/c1/state", status="Failure", status_code=400, err="Failed to run: lxc-start")
    result = run("launch", "debian/12", "c1")
    assert result.status == 1
    assert "flexc info c1 --show-log" in result.err


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (["start", "c1"], {"action": "start", "timeout": -1, "force": False, "stateful": False}),
        (["stop", "c1", "-f"], {"action": "stop", "timeout": -1, "force": True, "stateful": False}),
        (["stop", "--timeout", "7", "c1"], {"action": "stop", "timeout": 7, "force": False, "stateful": False}),
        (["stop", "--stateful", "c1"], {"action": "stop", "timeout": -1, "force": False, "stateful": True}),
        (["restart", "c1"], {"action": "restart", "timeout": -1, "force": False, "stateful": False}),
        (["pause", "c1"], {"action": "freeze", "timeout": -1, "force": False, "stateful": False}),
    ],
)
def test_states(run: Run, ready: FakeServer, words: list[str], sent: dict[str, Any]) -> None:
    assert run(*words).status == 0
    assert ready.sent("PUT", f"{INSTANCES}/c1/state") == sent


def test_a_paused_instance_is_thawed_by_start(run: Run, ready: FakeServer) -> None:
    ready.say(f"{INSTANCES}/c1", instance(status="Frozen"))
    assert run("start", "c1").status == 0
    assert ready.sent("PUT", f"{INSTANCES}/c1/state")["action"] == "unfreeze"


def test_one_of_several_fails_and_the_others_are_done(run: Run, ready: FakeServer) -> None:
    result = run("stop", "nope", "c1")
    assert result.status == 1
    assert result.err == "nope: error: not found\nError: Some instances failed to stop\n"
    assert len(ready.requests("PUT", f"{INSTANCES}/c1/state")) == 1


def test_all_picks_by_state(run: Run, ready: FakeServer) -> None:
    ready.say(INSTANCES, [instance("c1"), instance("c2", "Stopped")])
    assert run("stop", "--all").status == 0
    assert [each.path for each in ready.requests("PUT")] == [f"{INSTANCES}/c1/state"]
    assert "Both --all and instance name given" in run("stop", "--all", "c1").err
    assert "<instance> missing" in run("stop").err


def test_delete_refuses_what_runs(run: Run, ready: FakeServer) -> None:
    result = run("delete", "c1")
    assert result.status == 1
    assert "flexc stop c1" in result.err
    assert not ready.requests("DELETE")


def test_delete_by_force_stops_first(run: Run, ready: FakeServer) -> None:
    assert run("delete", "-f", "c1").status == 0
    assert [(each.method, each.path) for each in ready.asked if each.method in ("PUT", "DELETE")] == [
        ("PUT", f"{INSTANCES}/c1/state"),
        ("DELETE", f"{INSTANCES}/c1"),
    ]


def test_a_stopped_ephemeral_instance_is_gone_already(run: Run, ready: FakeServer) -> None:
    ready.say(f"{INSTANCES}/c1", instance(ephemeral=True))
    assert run("delete", "-f", "c1").status == 0
    assert not ready.requests("DELETE")


def test_delete_asks_if_told_to(run: Run, ready: FakeServer) -> None:
    ready.say(f"{INSTANCES}/c1", instance(status="Stopped"))
    assert "User aborted" in run("delete", "-i", "c1", stdin="no\n").err
    assert run("delete", "-i", "c1", stdin="yes\n").status == 0
    assert len(ready.requests("DELETE")) == 1


def test_a_snapshot_is_deleted(run: Run, ready: FakeServer) -> None:
    ready.work("DELETE", f"{INSTANCES}/c1/snapshots/s0")
    assert run("delete", "c1/s0").status == 0


def test_rename(run: Run, ready: FakeServer) -> None:
    ready.work("POST", f"{INSTANCES}/c1/snapshots/s0")
    assert run("rename", "c1", "c2").status == 0
    assert ready.sent("POST", f"{INSTANCES}/c1") == {"name": "c2", "migration": False}
    assert run("rename", "c1/s0", "c1/s1").status == 0
    assert ready.sent("POST", f"{INSTANCES}/c1/snapshots/s0")["name"] == "s1"
    assert "expected c1/<name>" in run("rename", "c1/s0", "s1").err


def test_copy_leaves_volatile_keys_behind(run: Run, ready: FakeServer) -> None:
    volatile = {"volatile.uuid": "x", "volatile.base_image": FINGERPRINT, "user.a": "b"}
    ready.say(f"{INSTANCES}/c1", instance(config=volatile))
    assert run("copy", "c1", "c2", "-c", "user.a=c", "-s", "fast").status == 0
    body = ready.sent("POST", INSTANCES)
    assert body["config"] == {"volatile.base_image": FINGERPRINT, "user.a": "c"}
    assert body["source"]["type"] == "copy"
    assert body["source"]["source"] == "c1"
    assert body["devices"] == {"root": {"type": "disk", "path": "/", "pool": "fast"}}


def test_copy_of_a_snapshot(run: Run, ready: FakeServer) -> None:
    ready.say(f"{INSTANCES}/c1/snapshots/s0", instance("s0"))
    assert run("copy", "c1/s0", "c2").status == 0
    assert ready.sent("POST", INSTANCES)["source"]["source"] == "c1/s0"


def test_move_renames_or_moves(run: Run, ready: FakeServer) -> None:
    assert run("move", "c1", "c2").status == 0
    assert ready.sent("POST", f"{INSTANCES}/c1") == {"name": "c2", "migration": False}
    ready.asked.clear()
    assert run("move", "c1", "--storage", "fast").status == 0
    body = ready.sent("POST", f"{INSTANCES}/c1")
    assert (body["name"], body["pool"], body["migration"]) == ("c1", "fast", True)
    assert "Nothing to do" in run("move", "c1").err


def test_snapshot_and_restore(run: Run, ready: FakeServer) -> None:
    ready.work("POST", f"{INSTANCES}/c1/snapshots")
    assert run("snapshot", "c1", "before", "--no-expiry").status == 0
    body = ready.sent("POST", f"{INSTANCES}/c1/snapshots")
    assert (body["name"], body["stateful"], body["expires_at"]) == ("before", False, "0001-01-01T00:00:00Z")
    assert run("restore", "c1", "before").status == 0
    assert ready.sent("PUT", f"{INSTANCES}/c1") == {"restore": "c1/before", "stateful": False}


def test_snapshot_replaces_one_of_that_name(run: Run, ready: FakeServer) -> None:
    ready.say(f"{INSTANCES}/c1/snapshots/before", {})
    ready.work("DELETE", f"{INSTANCES}/c1/snapshots/before")
    ready.work("POST", f"{INSTANCES}/c1/snapshots")
    assert run("snapshot", "c1", "before", "--reuse").status == 0
    assert [each.method for each in ready.requests() if each.method != "GET"] == ["DELETE", "POST"]


def test_export_downloads_and_cleans_up(run: Run, ready: FakeServer, tmp_path: Path) -> None:
    ready.work("POST", f"{INSTANCES}/c1/backups", resources={"backups": [f"{INSTANCES}/c1/backups/backup3"]})
    ready.work("DELETE", f"{INSTANCES}/c1/backups/backup3")

    async def download(request: web.Request) -> web.Response:
        return web.Response(body=b"tarball")

    ready.on("GET", f"{INSTANCES}/c1/backups/backup3/export", download)
    assert run("export", "c1", str(tmp_path)).status == 0
    assert (tmp_path / "c1.tar.gz").read_bytes() == b"tarball"
    assert len(ready.requests("DELETE")) == 1
    assert run("export", "c1", "-").out == "tarball"


def test_a_broken_download_leaves_nothing(run: Run, ready: FakeServer, tmp_path: Path) -> None:
    ready.work("POST", f"{INSTANCES}/c1/backups")
    ready.work("DELETE", f"{INSTANCES}/c1/backups/backup0")

    async def download(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return response

    ready.on("GET", f"{INSTANCES}/c1/backups/backup0/export", download)
    result = run("export", "c1", str(tmp_path / "c1.tar"))
    assert result.status == 1
    assert "closed the connection" in result.err
    assert list(tmp_path.glob("c1*")) == []
    assert len(ready.requests("DELETE")) == 1


def test_import_of_a_backup(run: Run, ready: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(b"tarball")
    assert run("import", str(tmp_path / "b.tar"), "c9", "-s", "fast").status == 0
    (asked,) = ready.requests("POST", INSTANCES)
    assert asked.body == b"tarball"
    assert (asked.headers["x-lxd-name"], asked.headers["x-lxd-pool"]) == ("c9", "fast")


def test_publish_stops_meanwhile(run: Run, ready: FakeServer) -> None:
    ready.work("POST", "/1.0/images", metadata={"fingerprint": FINGERPRINT})
    ready.say("/1.0/images/aliases", {}, method="POST")
    assert "Use --force" in run("publish", "c1").err
    result = run("publish", "c1", "-f", "--alias", "mine", "os=x")
    assert result.out == f"Instance published with fingerprint: {FINGERPRINT}\n"
    assert [each.document["action"] for each in ready.requests("PUT", f"{INSTANCES}/c1/state")] == ["stop", "start"]
    assert ready.sent("POST", "/1.0/images/aliases")["name"] == "mine"
    assert ready.sent("POST", "/1.0/images")["properties"] == {"os": "x"}


def test_info_of_an_instance(run: Run, ready: FakeServer) -> None:
    snapshot = {"name": "c1/s0", "created_at": "2026-11-23T06:10:02Z", "expires_at": "", "stateful": True}
    ready.say(f"{INSTANCES}/c1", instance(snapshots=[snapshot], description="the first"))
    out = run("info", "c1").out
    for line in (
        "Name: c1",
        "Description: the first",
        "Status: RUNNING",
        "PID: 4711",
        "Created: 2026/11/23 06:10 UTC",
        "  Processes: 12",
        "    root: 5.00MiB",
        "    CPU usage (in seconds): 3",
        "    Memory (current): 48.00MiB",
        "      Bytes received: 1.50kB",
        "      Bytes sent: 7B",
        "        inet:  198.18.0.7/24 (global)",
        "        inet6: fd42::7/64 (global)",
        "| s0   | 2026/11/23 06:10 UTC |            | YES      |",
    ):
        assert line in out.splitlines()


def test_info_shows_the_log(run: Run, ready: FakeServer) -> None:
    async def log(request: web.Request) -> web.Response:
        return web.Response(text="lxc c1 ERROR start")

    ready.on("GET", f"{INSTANCES}/c1/logs/lxc.log", log)
    assert run("info", "c1", "--show-log").out.endswith("Log:\n\nlxc c1 ERROR start")


def test_info_of_the_server(run: Run, ready: FakeServer) -> None:
    ready.say("/1.0", {"api_version": "1.0", "environment": {"server": "flexd"}})
    cpu = {"architecture": "x86_64", "sockets": [{"vendor": "V", "name": "N", "cores": [{"threads": [{}, {}]}]}]}
    disk = {"id": "vda", "model": "M", "type": "virtio", "size": 1024**3, "read_only": False}
    ready.say("/1.0/resources", {"cpu": cpu, "memory": {"total": 2048, "used": 1024}, "storage": {"disks": [disk]}})
    assert "server: flexd" in run("info").out
    out = run("info", "--resources").out
    assert "  Threads: 2" in out
    assert "  Free: 1.00KiB" in out
    assert "  Size: 1.00GiB" in out


def test_the_console_log(run: Run, ready: FakeServer) -> None:
    async def log(request: web.Request) -> web.Response:
        return web.Response(body=b"Welcome\r\n")

    ready.on("GET", f"{INSTANCES}/c1/console", log)
    assert run("console", "c1", "--show-log").out == "\nConsole log:\n\nWelcome\r\n\n"
