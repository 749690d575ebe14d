# SPDX-License-Identifier: Apache-2.0
"""A host is emptied onto another one and filled again: policies, an evacuation that is killed, one that fails."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.hosts import Host, Hosts, hosts
from tests.system.images import tiny_image
from tests.system.machine import wait_until

STOPPED, RUNNING = "Stopped", "Running"


@pytest.fixture(scope="module")
def segment(state_root: Path) -> Iterator[Hosts]:
    with hosts(state_root / "evacuation") as made:
        for host in made.all:
            host.import_image(tiny_image(), "tiny")
        yield made


@pytest.fixture
def pair(segment: Hosts) -> Iterator[tuple[Hosts, Host, Host]]:
    a, b = segment.all
    yield segment, a, b
    for host in (a, b):
        host.clear()


def launch(host: Host, name: str, **config: str) -> None:
    options = [f"-c{key.replace('__', '.')}={value}" for key, value in config.items()]
    host.flexc("launch", "tiny", name, *options)


def evacuated(segment: Hosts, *words: str, check: bool = True) -> dict[str, dict[str, Any]]:
    """Runs the command; its rows by instance."""
    done = segment.person.flexc(*words, "-f", "json", check=check)
    return {row["instance"]: row for row in json.loads(done.stdout)}


def marks(host: Host) -> dict[str, str]:
    """What evacuations have left in configurations."""
    return {
        f"{each['name']}: {key}": value
        for each in host.get("/1.0/instances?recursion=1")
        for key, value in each["config"].items()
        if key.startswith("volatile.evacuate.")
    }


def test_killed_in_the_middle_and_continued(pair: tuple[Hosts, Host, Host]) -> None:
    segment, a, b = pair
    for number in range(1, 5):
        launch(a, f"c{number}", boot__stop__priority=str(-number))
    launch(a, "stays", cluster__evacuate="stop")
    a.flexc("init", "tiny", "asleep")
    before = a.instances()
    killed = segment.person.spawn("flexc", "evacuate", "a:", "--to", "b:", "--force", "--parallel", "1")
    wait_until(lambda: b.instances().get("c1") == RUNNING, 60)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    rows = evacuated(segment, "evacuate", "a:", "--to", "b:", "--force")
    assert {row["error"] for row in rows.values()} <= {""}
    assert a.instances() == {"stays": STOPPED}
    assert b.instances() == {"c1": RUNNING, "c2": RUNNING, "c3": RUNNING, "c4": RUNNING, "asleep": STOPPED}
    assert evacuated(segment, "evacuate", "a:", "--to", "b:", "--force") == {}
    rows = evacuated(segment, "restore", "a:")
    assert {row["error"] for row in rows.values()} == {""}
    assert (rows["stays"]["action"], rows["c1"]["target"]) == ("start", "a")
    assert (a.instances(), b.instances()) == (before, {})
    assert marks(a) == {}


def test_interrupted_it_finishes_what_it_has_begun(pair: tuple[Hosts, Host, Host]) -> None:
    segment, a, b = pair
    for number in range(1, 4):
        launch(a, f"c{number}", boot__stop__priority=str(-number))
    running = segment.person.spawn("flexc", "evacuate", "a:", "--to", "b:", "--force", "--parallel", "1")
    wait_until(lambda: "c1" in b.instances(), 60)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 1
    assert b.instances()["c1"] == RUNNING
    assert a.instances()["c3"] == RUNNING
    assert set(a.instances()) | set(b.instances()) == {"c1", "c2", "c3"}
    assert not set(a.instances()) & set(b.instances())


def test_one_failure_stops_no_other(pair: tuple[Hosts, Host, Host]) -> None:
    segment, a, b = pair
    for name in ("c1", "taken"):
        launch(a, name)
    b.flexc("init", "tiny", "taken")
    rows = evacuated(segment, "evacuate", "a:", "--to-any", "--force", check=False)
    assert rows["taken"]["error"] == "b has an instance of this name"
    assert rows["c1"]["error"] == ""
    assert a.instances() == {"taken": RUNNING}
    assert b.instances() == {"c1": RUNNING, "taken": STOPPED}
    assert marks(a) == {}
