# SPDX-License-Identifier: Apache-2.0
"""SIGKILL of the daemon: nothing half-made stays, and what runs runs on and is found again."""

import contextlib
import json
import os
import random
import threading
import time
from pathlib import Path

import pytest

from tests.system.machine import ApiError, Machine, wait_until


def test_running_container_survives(tiny: Machine):
    tiny.lxc("launch", "tiny", "stays")
    before = tiny.get("/1.0/instances/stays/state")["pid"]
    tiny.restart(9)
    state = tiny.get("/1.0/instances/stays/state")
    assert (state["status"], state["pid"]) == ("Running", before)
    assert tiny.lxc("exec", "stays", "--", "echo", "alive").stdout == "alive\n"
    tiny.lxc("stop", "-f", "stays")
    assert tiny.get("/1.0/instances/stays")["status"] == "Stopped"
    tiny.lxc("delete", "stays")


def test_clean_restart_touches_no_container(tiny: Machine):
    tiny.lxc("launch", "tiny", "stays2")
    before = tiny.get("/1.0/instances/stays2/state")["pid"]
    tiny.restart()
    assert tiny.get("/1.0/instances/stays2/state")["pid"] == before
    tiny.lxc("delete", "-f", "stays2")


def test_end_that_the_daemon_did_not_see(tiny: Machine):
    tiny.lxc("launch", "tiny", "gone")
    pid = tiny.get("/1.0/instances/gone/state")["pid"]
    tiny.kill()
    os.kill(pid, 9)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    tiny.start()
    wait_until(lambda: tiny.get("/1.0/instances/gone")["status"] == "Stopped")
    wait_until(lambda: not [left for left in tiny.leftovers() if "/gone" in left and left.startswith("mount")])
    tiny.lxc("start", "gone")
    tiny.lxc("delete", "-f", "gone")


@pytest.mark.parametrize("round_number", range(12))
def test_kill_at_any_moment_of_create_start_delete(tiny: Machine, round_number: int):
    """A client works while the daemon is killed at a random moment; after a restart everything is whole or absent."""
    name = f"crash{round_number}"
    delay_s = random.Random(round_number).uniform(0.0, 0.35)

    def work() -> None:
        with contextlib.suppress(OSError, ApiError, json.JSONDecodeError, Exception):
            source = {"type": "image", "alias": "tiny"}
            tiny.call("POST", "/1.0/instances", {"name": name, "source": source})
            tiny.call("PUT", f"/1.0/instances/{name}/state", {"action": "start"})
            tiny.call("PUT", f"/1.0/instances/{name}/state", {"action": "stop", "force": True})
            tiny.call("DELETE", f"/1.0/instances/{name}")

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(delay_s)
    tiny.kill()
    worker.join(timeout=60)
    tiny.start()
    if name in [instance["name"] for instance in tiny.get("/1.0/instances?recursion=1")]:
        _check_whole(tiny, name)
        with contextlib.suppress(ApiError):
            tiny.call("PUT", f"/1.0/instances/{name}/state", {"action": "stop", "force": True})
        tiny.call("DELETE", f"/1.0/instances/{name}")
    assert not [left for left in tiny.leftovers() if f"/{name}" in left]
    # The name is free: nothing of it is left that a new one would stumble over.
    tiny.lxc("launch", "tiny", name)
    tiny.lxc("delete", "-f", name)


def _check_whole(machine: Machine, name: str) -> None:
    """It can do what an instance can."""
    if machine.get(f"/1.0/instances/{name}")["status"] == "Stopped":
        machine.call("PUT", f"/1.0/instances/{name}/state", {"action": "start"})
    assert machine.lxc("exec", name, "--", "echo", "whole").stdout == "whole\n"
