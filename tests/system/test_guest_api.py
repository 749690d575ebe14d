# SPDX-License-Identifier: Apache-2.0
"""The guest API answers to the container that asks, and to nobody else."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine, wait_until

_PROGRAM = Path(__file__).with_name("inside.py")


def launch(tiny: Machine, name: str, config: dict[str, str]) -> None:
    tiny.call("POST", "/1.0/instances", {"name": name, "source": {"type": "image", "alias": "tiny"}, "config": config})
    tiny.call("PUT", f"/1.0/instances/{name}/state", {"action": "start"})


def ask(
    tiny: Machine,
    name: str,
    url: str,
    *,
    method: str = "GET",
    body: str = "",
    uid: int = 0,
    path: str = "/dev/lxd/sock",
) -> tuple[int, str]:
    pid = tiny.get(f"/1.0/instances/{name}/state")["pid"] if name else 0
    argv = [sys.executable, str(_PROGRAM), str(pid), str(uid), path, method, url, body]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    head, _, content = done.stdout.replace("\r\n", "\n").partition("\n\n")
    return int(head.split()[1]), content


@pytest.fixture(scope="module")
def guest(tiny: Machine) -> Iterator[str]:
    config = {"user.color": "blue", "cloud-init.user-data": "#cloud-config\n", "environment.SECRET": "x"}
    launch(tiny, "guest", config)
    yield "guest"
    tiny.lxc("delete", "-f", "guest")


@pytest.mark.parametrize("path", ["/dev/lxd/sock", "/dev/incus/sock"])
def test_who_am_i(tiny: Machine, guest: str, path: str):
    assert ask(tiny, guest, "/", path=path) == (200, '["/1.0"]\n')
    status, text = ask(tiny, guest, "/1.0", path=path)
    assert status == 200
    assert json.loads(text) == {
        "api_version": "1.0",
        "location": "none",
        "instance_type": "container",
        "state": "Started",
    }


def test_configuration(tiny: Machine, guest: str):
    assert json.loads(ask(tiny, guest, "/1.0/config")[1]) == [
        "/1.0/config/cloud-init.user-data",
        "/1.0/config/user.color",
    ]
    assert ask(tiny, guest, "/1.0/config/user.color") == (200, "blue")
    assert ask(tiny, guest, "/1.0/config/user.none")[0] == 404
    assert ask(tiny, guest, "/1.0/config/environment.SECRET")[0] == 403
    status, text = ask(tiny, guest, "/1.0/meta-data")
    assert status == 200
    assert text.startswith("#cloud-config\ninstance-id: ")
    assert "\nlocal-hostname: guest\n" in text
    devices = json.loads(ask(tiny, guest, "/1.0/devices")[1])
    assert devices["eth0"]["hwaddr"]
    assert ask(tiny, guest, "/1.0/images/abc/export")[0] == 403


def test_only_its_root_user_is_answered(tiny: Machine, guest: str):
    assert ask(tiny, guest, "/1.0", uid=1000)[0] == 401


def test_the_host_is_not_answered(tiny: Machine, guest: str):
    path = str(tiny.directory / "devlxd" / "sock")
    assert len(path) < 100
    assert ask(tiny, "", "/1.0/config", path=path)[0] == 403
    assert ask(tiny, "", "/1.0/config", path=path, uid=65534)[0] == 403
    # The uid of the container's root, but on the host.
    pid = tiny.get("/1.0/instances/guest/state")["pid"]
    root = os.stat(f"/proc/{pid}").st_uid
    assert ask(tiny, "", "/1.0/config", path=path, uid=root)[0] == 403


def test_each_container_sees_itself(tiny: Machine, guest: str):
    launch(tiny, "neighbour", {"user.color": "red"})
    try:
        assert ask(tiny, "neighbour", "/1.0/config/user.color") == (200, "red")
        assert ask(tiny, guest, "/1.0/config/user.color") == (200, "blue")
    finally:
        tiny.lxc("delete", "-f", "neighbour")


def test_a_name_makes_no_container(tiny: Machine, guest: str):
    """A process that calls itself a monitor of another container (which fools LXD's search) is nobody else for it."""
    launch(tiny, "liar", {"security.privileged": "true"})
    try:
        script = "exec -a '[lxc monitor] /x guest' sleep 60 & sleep 0.1; cat /dev/lxd/../lxd >/dev/null; true"
        tiny.lxc("exec", "liar", "--", "sh", "-c", script, check=False)
        assert ask(tiny, "liar", "/1.0/config/user.color")[0] == 404
    finally:
        tiny.lxc("delete", "-f", "liar")


def test_the_socket_cannot_be_replaced(tiny: Machine, guest: str):
    for command in ("rm /dev/lxd/sock", "touch /dev/lxd/x", "mv /dev/incus/sock /dev/incus/y"):
        assert tiny.lxc("exec", guest, "--", "sh", "-c", command, check=False).returncode != 0


def test_ready_and_a_restart_of_the_daemon(tiny: Machine, guest: str):
    assert ask(tiny, guest, "/1.0", method="PATCH", body='{"state":"Ready"}')[0] == 200
    shown = tiny.get("/1.0/instances/guest")
    assert (shown["status"], shown["status_code"]) == ("Ready", 113)
    assert tiny.get("/1.0/instances/guest/state")["status"] == "Ready"
    tiny.restart()
    assert tiny.get("/1.0/instances/guest")["status"] == "Ready"
    assert json.loads(ask(tiny, guest, "/1.0")[1])["state"] == "Ready"
    assert ask(tiny, guest, "/1.0", method="PATCH", body='{"state":"Dancing"}')[0] == 400
    assert ask(tiny, guest, "/1.0", method="PATCH", body='{"state":"Started"}')[0] == 200
    assert tiny.get("/1.0/instances/guest")["status"] == "Running"


def test_a_new_run_is_not_ready(tiny: Machine, guest: str):
    assert ask(tiny, guest, "/1.0", method="PATCH", body='{"state":"Ready"}')[0] == 200
    tiny.call("PUT", "/1.0/instances/guest/state", {"action": "restart", "force": True})
    assert tiny.get("/1.0/instances/guest")["status"] == "Running"


def test_events_until_the_end(tiny: Machine):
    launch(tiny, "watched", {"user.a": "1"})
    pid = tiny.get("/1.0/instances/watched/state")["pid"]
    argv = [sys.executable, str(_PROGRAM), str(pid), "0", "/dev/lxd/sock", "GET", "/1.0/events"]
    watching = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        path = f"/proc/{pid}/root/dev/lxd/sock"
        assert Path(path).is_socket()
        wait_until(lambda: _is_connected(watching.pid))
        time.sleep(0.3)  # for the daemon to see the request: nothing tells from outside that it did
        tiny.lxc("config", "set", "watched", "user.a", "2")
        tiny.lxc("config", "set", "watched", "limits.processes", "500")
        tiny.lxc("config", "device", "add", "watched", "tmp", "disk", "source=/var/tmp", "path=/mnt/x")
        tiny.lxc("stop", "-f", "watched")
        out, _ = watching.communicate(timeout=20)
        lines = [line for line in out.splitlines() if line.startswith("{")]
        events = [json.loads(line) for line in lines]
        assert [event["type"] for event in events] == ["config", "device"]
        assert events[0]["metadata"] == {"key": "user.a", "old_value": "1", "value": "2"}
        assert events[1]["metadata"]["action"] == "added"
    finally:
        watching.kill()
        tiny.lxc("delete", "-f", "watched")


def _is_connected(pid: int) -> bool:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any(
        os.readlink(fd).startswith("socket:") for child in children for fd in Path(f"/proc/{child}/fd").iterdir()
    )


def test_switched_off(tiny: Machine):
    launch(tiny, "silent", {"security.devlxd": "false"})
    try:
        assert tiny.lxc("exec", "silent", "--", "test", "-e", "/dev/lxd/sock", check=False).returncode != 0
    finally:
        tiny.lxc("delete", "-f", "silent")
