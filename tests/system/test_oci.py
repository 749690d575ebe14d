# SPDX-License-Identifier: Apache-2.0
"""OCI images as application containers: from a registry on loopback to a program that runs and ends."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract.images import registry_server
from tests.contract.images.oci_layers import Repository, busybox_layer, layer, member
from tests.system.machine import ApiError, Machine, wait_until

PORT = 5000
URL = f"http://localhost:{PORT}"
_LOOP = "echo 'up and  running'; trap 'echo bye; exit 7' QUIT; while :; do sleep 0.1; done"
SLEEPER = {"Entrypoint": ["sh", "-c"], "Cmd": [_LOOP]}


@dataclass
class Place:
    daemon: Machine
    registry: Path
    base: bytes

    def repository(self, name: str) -> Repository:
        return Repository(self.registry, name)

    def image(self, name: str, config: dict[str, Any], *more: bytes) -> Repository:
        """A repository with busybox and these layers as `latest`."""
        made = self.repository(name)
        made.put([self.base, *more], config)
        return made

    def source(self, alias: str) -> dict[str, str]:
        return {"type": "image", "mode": "pull", "protocol": "oci", "server": URL, "alias": alias}

    def create(self, name: str, alias: str, **config: str) -> Any:
        body = {"name": name, "source": self.source(alias), "config": config}
        return self.daemon.call("POST", "/1.0/instances", body)

    def start(self, name: str) -> Any:
        return self.daemon.call("PUT", f"/1.0/instances/{name}/state", {"action": "start"})

    def instance(self, name: str) -> Any:
        return self.daemon.get(f"/1.0/instances/{name}")

    def console(self, name: str) -> str:
        return self.daemon.request("GET", f"/1.0/instances/{name}/console")[2].decode().replace("\r\n", "\n")

    def flexc(self, *argv: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        command = os.fspath(Path(sys.executable).parent / "flexc")
        return self.daemon.run(*self.daemon.enter(), command, *argv, check=check)

    def wait_stopped(self, name: str) -> None:
        wait_until(lambda: self.instance(name)["status"] == "Stopped")

    def leftovers(self) -> list[str]:
        """What came in and is no image."""
        return [path.name for path in (self.daemon.directory / "images").glob(".incoming*")]


@pytest.fixture(scope="module")
def place(root_only: None, state_root: Path) -> Iterator[Place]:
    missing = [name for name in ("skopeo", "umoci", "tini-static", "mksquashfs") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    directory = state_root / "oci"
    registry = directory / "registry"
    registry.mkdir(parents=True)
    daemon = Machine(directory / "flexd")
    server = None
    try:
        daemon.start()
        daemon.init()
        script = Path(registry_server.__file__)
        server = subprocess.Popen([*daemon.enter(), sys.executable, script, registry, str(PORT)])
        made = Place(daemon, registry, busybox_layer())
        made.flexc("remote", "add", "mine", URL, "--protocol", "oci")
        yield made
    finally:
        if server is not None:
            server.kill()
            server.wait()
        left = daemon.stop()
        shutil.rmtree(directory, ignore_errors=True)
    assert left == [], left


@pytest.fixture(autouse=True)
def nothing_left(place: Place) -> Iterator[None]:
    yield
    place.daemon.clear()
    for path in place.daemon.get("/1.0/images"):
        place.daemon.call("DELETE", path)
    assert place.leftovers() == []


def test_launch_stop_and_log(place: Place) -> None:
    made = place.image("team/sleeper", SLEEPER | {"StopSignal": "SIGQUIT", "Env": ["COLOUR=red and blue"]})
    place.flexc("launch", "mine:team/sleeper", "c1")
    wait_until(lambda: "running" in place.console("c1"))
    assert place.console("c1") == "up and  running\n"
    digest = (made.directory / "manifests" / "latest").read_bytes()
    image = place.daemon.get(f"/1.0/images/{place.instance('c1')['config']['volatile.base_image']}")
    assert image["fingerprint"] == hashlib.sha256(digest).hexdigest()
    assert image["properties"]["type"] == "oci"
    assert (image["cached"], image["auto_update"], image["update_source"]["protocol"]) == (True, True, "oci")
    config = place.instance("c1")["config"]
    assert config["volatile.container.oci"] == "true"
    assert config["environment.COLOUR"] == "red and blue"
    assert (
        place.flexc("exec", "c1", "--", "sh", "-c", "echo $COLOUR; cat /proc/1/comm").stdout == "red and blue\ninit\n"
    )
    place.flexc("stop", "c1", "--timeout", "20")
    assert "running\r\nbye\r\n" in place.flexc("console", "c1", "--show-log").stdout
    assert place.instance("c1")["config"]["volatile.last_state.exit_status"] == "7"
    assert "Exit status: 7\n" in place.flexc("info", "c1").stdout
    place.flexc("start", "c1")
    assert "volatile.last_state.exit_status" not in place.instance("c1")["config"]


def test_user_directory_and_owners(place: Place) -> None:
    files = layer([member("srv/page", b"text", mode=0o640, owner=(33, 34)), member("work dir", owner=(33, 34))])
    said = {"User": "web", "WorkingDir": "/work dir", "Cmd": ["sh", "-c", "id; pwd; cat /srv/page; cat /proc/1/status"]}
    place.image("user", said, files)
    place.create("c1", "user")
    place.start("c1")
    place.wait_stopped("c1")
    log = place.console("c1")
    assert log.startswith("uid=33(web) gid=34(web)\n/work dir\ntext")
    assert place.instance("c1")["config"]["volatile.last_state.exit_status"] == "0"


def test_network_is_set_up_from_outside(place: Place) -> None:
    place.image("sleeper", SLEEPER)
    for name in ("c1", "c2"):
        place.create(name, "sleeper")
        place.start(name)
    inside = place.flexc("exec", "c1", "--", "ip", "-4", "addr", "show", "eth0").stdout
    address = inside.partition("inet ")[2].partition("/")[0]
    assert address.startswith("198.18.77.")
    assert "default via 198.18.77.1 dev eth0" in place.flexc("exec", "c1", "--", "ip", "route").stdout
    assert place.flexc("exec", "c1", "--", "cat", "/etc/hostname").stdout == "c1\n"
    assert f"{address} c1\n" in place.flexc("exec", "c1", "--", "cat", "/etc/hosts").stdout
    resolver = place.flexc("exec", "c1", "--", "cat", "/etc/resolv.conf").stdout
    assert "nameserver 198.18.77.1\nsearch lxd\n" in resolver
    place.flexc("exec", "c2", "--", "ping", "-c", "1", "-W", "5", "c1")
    place.flexc("restart", "c1", "--timeout", "20", "--force")
    again = place.flexc("exec", "c1", "--", "ip", "-4", "addr", "show", "eth0").stdout
    assert f"inet {address}/24" in again
    state = place.daemon.get("/1.0/instances/c1/state")["network"]["eth0"]["addresses"]
    assert address in [each["address"] for each in state]


def test_short_programs(place: Place) -> None:
    place.image("short", {"Cmd": ["true"]})
    place.create("c1", "short")
    for _ in range(10):
        place.start("c1")
        place.wait_stopped("c1")
        assert place.instance("c1")["config"]["volatile.last_state.exit_status"] == "0"
    place.create("c2", "short", **{"oci.entrypoint": "sh -c 'echo oh no; exit 5'"})
    with pytest.raises(ApiError, match=r"init ended at once with status 5.*oh no"):
        place.start("c2")
    assert place.instance("c2")["status"] == "Stopped"


def test_restarts_by_itself(place: Place) -> None:
    place.image("sleeper", SLEEPER)
    place.create("c1", "sleeper", **{"boot.autorestart": "true"})
    place.start("c1")
    first = place.daemon.get("/1.0/instances/c1/state")["pid"]
    place.daemon.run("kill", "-KILL", str(first))
    wait_until(lambda: place.daemon.get("/1.0/instances/c1/state")["pid"] not in (0, first))
    place.daemon.call("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    assert place.instance("c1")["status"] == "Stopped"


def test_settings_over_the_image(place: Place) -> None:
    place.image("user", {"User": "33:34", "Env": ["A=1", "B=2"], "Cmd": ["sh"]})
    given = {"oci.entrypoint": "sh -c 'id -u; echo $A$B; sleep 0.1'", "oci.uid": "5", "environment.A": "9"}
    place.create("c1", "user", **given)
    place.start("c1")
    place.wait_stopped("c1")
    assert place.console("c1") == "5\n92\n"
    assert place.instance("c1")["config"]["oci.gid"] == "34"
    with pytest.raises(ApiError, match=r"oci.cwd: invalid value .*absolute path"):
        place.create("c2", "user", **{"oci.cwd": "here"})


def test_copies_and_published_images_stay_applications(place: Place) -> None:
    place.image("sleeper", SLEEPER | {"StopSignal": "QUIT"})
    place.create("c1", "sleeper")
    place.flexc("copy", "c1", "c2")
    place.flexc("publish", "c1", "--alias", "kept")
    place.flexc("launch", "kept", "c3")
    place.flexc("start", "c2")
    for name in ("c2", "c3"):
        wait_until(lambda name=name: "running" in place.console(name))
        place.flexc("stop", name, "--timeout", "20")
        assert place.instance(name)["config"]["volatile.last_state.exit_status"] == "7"


def test_whiteouts_devices_and_empty_images(place: Place) -> None:
    upper = layer(
        [
            member("srv/.wh.old", b""),
            member("etc/.wh..wh..opq", b""),
            member("etc/new", b"new"),
            member("srv/null", kind=tarfile.CHRTYPE),
        ]
    )
    lower = layer([member("srv/old", b"old"), member("etc/gone", b"gone")])
    place.image("layers", {"Cmd": ["sh", "-c", "ls /srv; echo -; ls /etc"]}, lower, upper)
    place.create("c1", "layers")
    place.start("c1")
    place.wait_stopped("c1")
    assert place.console("c1").split() == ["-", "hostname", "hosts", "new", "resolv.conf"]


def test_copy_refresh_and_a_registry_that_is_away(place: Place) -> None:
    made = place.image("moving", SLEEPER)
    place.flexc("image", "copy", "mine:moving:latest", "local:", "--alias", "moving", "--auto-update")
    first = place.daemon.get("/1.0/images/aliases/moving")["target"]
    made.put([place.base, layer([member("etc/newer", b"x")])], SLEEPER)
    place.flexc("image", "refresh", "moving")
    second = place.daemon.get("/1.0/images/aliases/moving")["target"]
    assert second != first
    assert [url.rpartition("/")[2] for url in place.daemon.get("/1.0/images")] == [second]
