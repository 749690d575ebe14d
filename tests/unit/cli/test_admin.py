# SPDX-License-Identifier: Apache-2.0
"""admin init and waitready."""

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import network, pool, profile
from tests.unit.client.fake_server import FakeServer

DEFAULT = "/1.0/profiles/default"
NIC = {"type": "nic", "name": "eth0", "network": "flexbr0"}
ROOT = {"type": "disk", "path": "/", "pool": "default"}


def server_with(server: FakeServer, drivers: tuple[str, ...] = ("overlay", "dir"), **present: list[object]) -> None:
    """A server that has these networks, pools and devices of the default profile."""
    devices = present.get("devices") or [{}]
    server.say(
        "/1.0", {"config": {}, "environment": {"storage_supported_drivers": [{"Name": name} for name in drivers]}}
    )
    server.say("/1.0", {}, method="PATCH")
    server.say("/1.0/networks", present.get("networks", []))
    server.say("/1.0/storage-pools", present.get("pools", []))
    server.say("/1.0/projects", [])
    server.say("/1.0/profiles", [profile()])
    server.say(DEFAULT, profile(devices=devices[0]), etag="tag")
    for method, path in (("POST", "/1.0/networks"), ("POST", "/1.0/storage-pools"), ("PUT", DEFAULT)):
        server.say(path, {}, method=method)


def test_auto_makes_all_that_a_launch_needs(run: Run, server: FakeServer) -> None:
    server_with(server)
    result = run("admin", "init", "--auto", "--network-address", "::")
    assert result.out == (
        "Server configured: core.https_address\nNetwork flexbr0 created\nStorage pool default created\n"
        "Profile default updated\n"
    )
    assert server.sent("PATCH", "/1.0") == {"config": {"core.https_address": "[::]:8443"}}
    assert server.sent("POST", "/1.0/networks")["config"] == {
        "ipv4.address": "auto",
        "ipv4.nat": "true",
        "ipv6.address": "auto",
        "ipv6.nat": "true",
    }
    assert server.sent("POST", "/1.0/storage-pools")["driver"] == "overlay"
    (put,) = server.requests("PUT", DEFAULT)
    assert put.document["devices"] == {"root": ROOT, "eth0": NIC}
    assert put.headers["if-match"] == "tag"


def test_auto_a_second_time_does_nothing(run: Run, server: FakeServer) -> None:
    server_with(server, networks=[network()], pools=[pool()], devices=[{"root": ROOT, "eth0": NIC}])
    assert run("admin", "init", "--auto").out == ""
    assert not [each for each in server.asked if each.method != "GET"]


def test_auto_keeps_what_is_there(run: Run, server: FakeServer) -> None:
    mine = {"type": "nic", "nictype": "macvlan", "parent": "eth9"}
    server_with(server, networks=[network("lab")], devices=[{"net": mine}])
    assert run("admin", "init", "--auto", "--storage-backend=dir", "--storage-pool=/srv/x").status == 0
    assert not server.requests("POST", "/1.0/networks")
    body = server.sent("POST", "/1.0/storage-pools")
    assert (body["driver"], body["config"]) == ("dir", {"source": "/srv/x"})
    assert server.sent("PUT", DEFAULT)["devices"] == {"net": mine, "root": ROOT}


def test_auto_on_a_server_without_overlay(run: Run, server: FakeServer) -> None:
    server_with(server, drivers=("dir",))
    assert run("admin", "init", "--auto").status == 0
    assert server.sent("POST", "/1.0/storage-pools")["driver"] == "dir"


def test_a_failure_takes_back_what_was_made(run: Run, server: FakeServer) -> None:
    server_with(server)
    server.fail("/1.0/storage-pools", 400, "no room", method="POST")
    server.say("/1.0/networks/flexbr0", {}, method="DELETE")
    result = run("admin", "init", "--auto")
    assert (result.status, result.err) == (1, "Error: no room\n")
    assert len(server.requests("DELETE", "/1.0/networks/flexbr0")) == 1


def test_preseed_and_dump_are_each_others_opposite(run: Run, server: FakeServer) -> None:
    server_with(server, networks=[network()], pools=[pool()])
    dumped = run("admin", "init", "--dump").out
    assert dumped.splitlines()[0] == "config: {}"
    assert "  driver: overlay" in dumped.splitlines()
    for path, method in (("/1.0/networks/flexbr0", "PUT"), ("/1.0/storage-pools/default", "PUT")):
        server.say(path, {"config": {"other": "kept"}, "description": "old"}, etag="t")
        server.say(path, {}, method=method)
    assert run("admin", "init", "--preseed", stdin=dumped).status == 0
    assert server.sent("PUT", "/1.0/networks/flexbr0") == {
        "config": {"other": "kept", "ipv4.address": "198.18.0.1/24", "ipv6.address": "none"},
        "description": "",
    }


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (["--auto", "--dump"], "", "Only one of"),
        ([], "", "is needed where nobody can be asked"),
        (["--preseed"], "- x", "expected YAML"),
        (["--preseed"], "clusters: {}", "Unknown sections in the preseed: clusters"),
        (["--preseed"], "networks: [{type: bridge}]", "has no name"),
    ],
)
def test_misunderstandings(run: Run, server: FakeServer, words: list[str], stdin: str, message: str) -> None:
    server_with(server)
    assert message in run("admin", "init", *words, stdin=stdin).err
    assert not server.requests("POST")


def test_a_person_is_asked(run: Run, server: FakeServer) -> None:
    server_with(server)
    assert "Nothing was changed" in run("admin", "init", stdin="no\n", person=True).err
    result = run("admin", "init", stdin="yes\n", person=True)
    assert "name: flexbr0" in result.out
    assert result.out.endswith("Profile default updated\n")


def test_wait_ready(run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.say("/1.0", {})
    assert run("admin", "waitready").status == 0
    monkeypatch.setenv("FLEXD_SOCKET", "/nowhere")
    result = run("admin", "waitready", "--timeout=0.01")
    assert (result.status, "not ready after 0.01 seconds" in result.err) == (1, True)
