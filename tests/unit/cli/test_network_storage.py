# SPDX-License-Identifier: Apache-2.0
"""network and storage."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import instance, network, pool, profile, volume
from tests.unit.client.fake_server import FakeServer

C1 = "/1.0/instances/c1"
NET = "/1.0/networks/flexbr0"
POOL = "/1.0/storage-pools/default"
DATA = f"{POOL}/volumes/custom/data"


@pytest.fixture(autouse=True)
def things(server: FakeServer) -> None:
    lo = network("lo", type="loopback", managed=False, config={}, used_by=[], status="")
    server.say("/1.0/networks", [network(), network("eth9", type="physical", managed=False, config={}, status=""), lo])
    server.say("/1.0/networks", {}, method="POST")
    server.say(NET, network(), etag="tag")
    server.say(C1, instance(), etag="tag")
    server.work("PUT", C1)
    server.say("/1.0/profiles/default", profile(), etag="tag")
    server.say("/1.0/profiles/default", {}, method="PUT")
    server.say("/1.0/storage-pools", [pool()])
    server.say("/1.0/storage-pools", {}, method="POST")
    server.say(POOL, pool(), etag="tag")
    server.say(f"{POOL}/resources", {"space": {"used": 1024**3, "total": 4 * 1024**3}, "inodes": {}})
    server.say(f"{POOL}/volumes", [volume(), volume("c1", type="container", used_by=["/1.0/instances/c1"])])
    server.say(f"{POOL}/volumes/custom", {}, method="POST")
    server.say(DATA, volume(), etag="tag")


def test_networks_are_listed(run: Run) -> None:
    assert run("network", "list", "-f", "csv").out == (
        "eth9,physical,NO,,,,1,\nflexbr0,bridge,YES,198.18.0.1/24,none,,1,CREATED\n"
    )


def test_a_network_is_created(run: Run, server: FakeServer) -> None:
    assert run("network", "create", "n1", "ipv4.address=auto", "-t", "bridge").out == "Network n1 created\n"
    assert server.sent("POST", "/1.0/networks") == {
        "name": "n1",
        "description": "",
        "type": "bridge",
        "config": {"ipv4.address": "auto"},
    }


def test_verbs_of_networks(run: Run, server: FakeServer) -> None:
    for method in ("PUT", "POST", "DELETE"):
        server.say(NET, {}, method=method)
    assert run("network", "get", "flexbr0", "ipv6.address").out == "none\n"
    assert run("network", "set", "flexbr0", "ipv4.nat=false").status == 0
    assert server.sent("PUT", NET)["config"]["ipv4.nat"] == "false"
    assert run("network", "rename", "flexbr0", "n2").out == "Network flexbr0 renamed to n2\n"
    assert run("network", "delete", "flexbr0").out == "Network flexbr0 deleted\n"
    assert run("network", "show", "flexbr0").out.splitlines()[-3:] == ["status: Created", "locations:", "- none"]


def test_state_and_leases(run: Run, server: FakeServer) -> None:
    address = {"family": "inet", "address": "198.18.0.1", "netmask": "24", "scope": "global"}
    bridge = {"id": "8000.0", "stp": False, "forward_delay": 1500, "upper_devices": ["veth1"]}
    state = {"hwaddr": "00:16:3e:1", "mtu": 1500, "state": "up", "type": "broadcast", "addresses": [address]}
    server.say(f"{NET}/state", {**state, "counters": {"bytes_sent": 2220}, "bridge": bridge})
    lines = run("network", "info", "flexbr0").out.splitlines()
    for line in ("MTU: 1500", "  inet\t198.18.0.1/24 (global)", "  Bytes sent: 2.22kB", "  Upper devices: veth1"):
        assert line in lines
    lease = {"hostname": "c1", "hwaddr": "00:16:3e:2", "address": "198.18.0.7", "type": "dynamic"}
    server.say(f"{NET}/leases", [lease])
    assert run("network", "list-leases", "flexbr0", "-f", "csv").out == "c1,00:16:3e:2,198.18.0.7,DYNAMIC\n"


def test_attach_and_detach(run: Run, server: FakeServer) -> None:
    assert run("network", "attach", "flexbr0", "c1", "eth1").status == 0
    nic = {"type": "nic", "network": "flexbr0", "name": "eth1"}
    assert server.sent("PUT", C1)["devices"] == {"eth1": nic}
    server.say(C1, instance(devices={"eth1": nic, "eth2": nic}), etag="tag")
    assert "already exists" in run("network", "attach", "flexbr0", "c1", "eth1").err
    assert "More than one device matches" in run("network", "detach", "flexbr0", "c1").err
    server.asked.clear()
    assert run("network", "detach", "flexbr0", "c1", "eth2").status == 0
    assert server.sent("PUT", C1)["devices"] == {"eth1": nic}
    assert "isn't attached" in run("network", "detach", "flexbr0", "c1", "eth9").err
    assert run("network", "attach-profile", "flexbr0", "default").status == 0
    assert server.sent("PUT", "/1.0/profiles/default")["devices"] == {"flexbr0": {"type": "nic", "network": "flexbr0"}}
    assert "No device found" in run("network", "detach-profile", "flexbr0", "default").err


def test_pools(run: Run, server: FakeServer) -> None:
    assert run("storage", "list", "-f", "csv").out == "default,overlay,/srv/pool,,3,CREATED\n"
    assert run("storage", "create", "big", "dir", "source=/srv/big").out == "Storage pool big created\n"
    assert server.sent("POST", "/1.0/storage-pools")["config"] == {"source": "/srv/big"}
    assert run("storage", "info", "default").out == (
        'info:\n  description: ""\n  driver: overlay\n  name: default\n  space used: 1.00GiB\n  total space: 4.00GiB\n'
        "used by:\n  instances:\n  - c1\n  profiles:\n  - default\n  volumes:\n  - data\n"
    )
    assert "space used: " + str(1024**3) in run("storage", "info", "default", "--bytes").out.replace('"', "")
    assert run("storage", "show", "default", "--resources").out.startswith("space:")


def test_volumes_are_listed(run: Run, server: FakeServer) -> None:
    server.say(f"{DATA}/state", {"usage": {"used": 2048}})
    assert run("storage", "volume", "list", "default", "-f", "csv").out == (
        "container,c1,,filesystem,1\ncustom,data,,filesystem,0\n"
    )
    assert run("storage", "volume", "list", "default", "type=custom", "-c", "nU", "-f", "csv").out == "data,2.00KiB\n"
    assert 'Unknown column shorthand char "X"' in run("storage", "volume", "list", "default", "-c", "X").err


def test_volumes_are_made_and_changed(run: Run, server: FakeServer) -> None:
    server.say(DATA, {}, method="PUT")
    server.say(DATA, {}, method="POST")
    server.say(DATA, {}, method="DELETE")
    volumes = ("storage", "volume")
    assert run(*volumes, "create", "default", "data", "size=1GiB").out == "Storage volume data created\n"
    assert server.sent("POST", f"{POOL}/volumes/custom")["content_type"] == "filesystem"
    assert run(*volumes, "set", "default", "data", "size=2GiB").status == 0
    assert server.sent("PUT", DATA)["config"] == {"size": "2GiB"}
    assert "stays a snapshot" in run(*volumes, "rename", "default", "data", "data/x").err
    assert run(*volumes, "rename", "default", "data", "d2").status == 0
    assert run(*volumes, "delete", "default", "data").out == "Storage volume data deleted\n"
    assert run(*volumes, "info", "default", "data").out == "Name: data\nType: custom\nContent type: filesystem\n"


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        (["c1", "/srv"], {"data": {"type": "disk", "pool": "default", "source": "data", "path": "/srv"}}),
        (["c1", "dev", "/srv"], {"dev": {"type": "disk", "pool": "default", "source": "data", "path": "/srv"}}),
    ],
)
def test_volumes_are_attached(run: Run, server: FakeServer, words: list[str], devices: dict[str, Any]) -> None:
    assert run("storage", "volume", "attach", "default", "data", *words).status == 0
    assert server.sent("PUT", C1)["devices"] == devices
    server.say(C1, instance(devices=devices), etag="tag")
    server.asked.clear()
    assert run("storage", "volume", "detach", "default", "data", "c1").status == 0
    assert server.sent("PUT", C1)["devices"] == {}
    assert "A path inside the instance" in run("storage", "volume", "attach", "default", "data", "c1").err


def test_volumes_are_copied_and_snapshotted(run: Run, server: FakeServer, tmp_path: Path) -> None:
    volumes = ("storage", "volume")
    server.work("POST", f"{DATA}/snapshots")
    server.work("POST", f"{DATA}/backups")
    server.work("DELETE", f"{DATA}/backups/backup0")
    server.say(DATA, {}, method="PUT")

    async def download(request: web.Request) -> web.Response:
        return web.Response(body=b"tarball")

    server.on("GET", f"{DATA}/backups/backup0/export", download)
    assert run(*volumes, "copy", "default/data", "default/copy").status == 0
    assert server.sent("POST", f"{POOL}/volumes/custom")["source"]["name"] == "data"
    assert run(*volumes, "snapshot", "default", "data", "s0").status == 0
    assert server.sent("POST", f"{DATA}/snapshots")["name"] == "s0"
    assert run(*volumes, "restore", "default", "data", "s0").status == 0
    assert server.sent("PUT", DATA) == {"restore": "s0"}
    assert run(*volumes, "export", "default", "data", str(tmp_path / "v.tar")).status == 0
    assert (tmp_path / "v.tar").read_bytes() == b"tarball"
    server.asked.clear()
    assert run(*volumes, "import", "default", str(tmp_path / "v.tar")).status == 0
    assert server.requests("POST", f"{POOL}/volumes/custom")[0].headers["x-lxd-name"] == "v"
    assert "is not <pool>/<volume>" in run(*volumes, "move", "data", "default/x").err
