# SPDX-License-Identifier: Apache-2.0
"""evacuate and restore of servers, as far as no instance leaves: words, stopping, starting, what is reported."""

import json
from pathlib import Path
from typing import Any

import pytest

from flexd.cli.evacuation import Crew
from flexd.cli.evacuation_transport import Row
from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import instance
from tests.unit.client.fake_server import FakeServer

C1 = "/1.0/instances/c1"
HOME = "5e1f"


def introduce(server: FakeServer, fingerprint: str, *instances: dict[str, Any]) -> None:
    """What a server is asked before anything is done."""
    environment = {"certificate_fingerprint": fingerprint, "criu_problem": "", "architectures": ["x86_64"]}
    server.say("/1.0", {"environment": environment, "api_extensions": []})
    server.say("/1.0/resources", {"memory": {"total": 1 << 30, "used": 0}, "cpu": {"total": 2}})
    server.say("/1.0/instances", list(instances))
    server.say("/1.0/storage-pools", ["/1.0/storage-pools/default"])
    server.say("/1.0/networks", ["/1.0/networks/flexbr0"])
    server.say("/1.0/profiles", ["/1.0/profiles/default"])
    for each in instances:
        server.say(f"/1.0/instances/{each['name']}", each)
        server.work("PATCH", f"/1.0/instances/{each['name']}")
        server.work("PUT", f"/1.0/instances/{each['name']}/state")


@pytest.fixture
def two(run: Run, server: FakeServer, tmp_path: Path) -> Any:
    """`local:` with c1 running, and `other:`, which is empty."""
    introduce(server, HOME, instance(config={}, expanded_config={}))
    with FakeServer(tmp_path / "o") as other:
        introduce(other, "0123")
        assert run("remote", "add", "other", f"unix://{other.socket_path}").status == 0
        yield other


@pytest.mark.parametrize("words", [[], ["local:", "--to", "other:", "--to-any"]])
def test_where_to_must_be_said(run: Run, two: FakeServer, words: list[str]) -> None:
    assert "Say where to" in run("evacuate", *words).err


def test_not_to_itself(run: Run, two: FakeServer) -> None:
    assert 'is the same server as "local:"' in run("evacuate", "--to", "local:").err
    assert "is not a remote" in run("evacuate", "--to", "other").err


def test_it_asks_first(run: Run, two: FakeServer, server: FakeServer) -> None:
    result = run("evacuate", "--to", "other:", stdin="no\n")
    assert "Evacuate 1 instances" in result.err
    assert "nothing was done" in result.err
    assert server.requests("PATCH", C1) == []


def test_stopped_ones_are_marked_first(run: Run, two: FakeServer, server: FakeServer) -> None:
    result = run("evacuate", "--to", "other:", "--action", "stop", "--force", "-f", "json")
    assert result.status == 0, result.err
    (row,) = json.loads(result.out)
    assert (row["instance"], row["action"], row["error"]) == ("c1", "stop", "")
    marks = server.sent("PATCH", C1)["config"]
    assert marks == {"volatile.evacuate.origin": HOME, "volatile.evacuate.power": "RUNNING"}
    order = [each.method for each in server.asked if each.path.startswith(C1) and each.method != "GET"]
    assert order == ["PATCH", "PUT"]
    assert server.sent("PUT", f"{C1}/state")["action"] == "stop"


def test_ephemeral_ones_are_not_deleted_by_stopping(run: Run, two: FakeServer, server: FakeServer) -> None:
    introduce(server, HOME, instance(ephemeral=True))
    result = run("evacuate", "--to", "other:", "--action", "stop", "--force")
    assert "stopping it would delete it" in result.out
    assert "1 of 1 instances failed" in result.err
    assert result.status == 1
    assert server.requests("PUT", f"{C1}/state") == []


def test_what_fits_nowhere_is_reported_and_left_alone(run: Run, two: FakeServer, server: FakeServer) -> None:
    two.say("/1.0/storage-pools", [])
    result = run("evacuate", "--to-any", "--force")
    assert 'other has no storage pool "default"' in result.out
    assert result.status == 1
    assert server.requests("PATCH", C1) == []


def test_what_was_moved_and_not_started_is_started(run: Run, two: FakeServer) -> None:
    marks = {"volatile.evacuate.origin": HOME, "volatile.evacuate.power": "RUNNING"}
    introduce(two, "0123", instance("c2", "Stopped", config=marks, expanded_config=marks))
    result = run("evacuate", "--to", "other:", "--action", "stop", "--force", "-f", "csv")
    assert result.out.startswith("c2,start,other,")
    assert two.sent("PUT", "/1.0/instances/c2/state")["action"] == "start"
    assert two.sent("PATCH", "/1.0/instances/c2")["config"] == {
        "volatile.evacuate.origin": HOME,
        "volatile.evacuate.power": "",
    }


SHELL = {"volatile.migration.handed_over": "token", "volatile.evacuate.origin": HOME}


def test_what_a_live_move_left_after_the_hand_over_goes(run: Run, two: FakeServer, server: FakeServer) -> None:
    introduce(server, HOME, instance(status="Stopped", config=SHELL, expanded_config=SHELL))
    marks = {"volatile.evacuate.origin": HOME, "volatile.evacuate.power": "RUNNING"}
    introduce(two, "0123", instance(config=marks, expanded_config=marks))
    server.work("DELETE", C1)
    result = run("evacuate", "--to", "other:", "--force", "-f", "csv")
    assert result.out.startswith("c1,live-migrate,other,")
    assert len(server.requests("DELETE", C1)) == 1
    assert two.requests("PUT", f"{C1}/state") == []
    assert two.sent("PATCH", C1)["config"]["volatile.evacuate.power"] == ""


@pytest.mark.parametrize("others", [[], [instance()]])
def test_what_is_nowhere_else_is_not_deleted(run: Run, two: FakeServer, server: FakeServer, others: list[Any]) -> None:
    """Nor if only an instance of the same name is there."""
    introduce(server, HOME, instance(status="Stopped", config=SHELL, expanded_config=SHELL))
    introduce(two, "0123", *others)
    result = run("evacuate", "--to", "other:", "--force", "-f", "csv")
    assert "handed over to a server that is none of these" in result.out
    assert result.status == 1
    assert server.requests("DELETE", C1) == []


def test_restore_starts_what_was_stopped(run: Run, two: FakeServer, server: FakeServer) -> None:
    marks = {"volatile.evacuate.origin": HOME, "volatile.evacuate.power": "RUNNING"}
    introduce(server, HOME, instance(status="Stopped", config=marks, expanded_config=marks))
    result = run("restore", "local:")
    assert result.status == 0, result.err
    assert server.sent("PUT", f"{C1}/state")["action"] == "start"
    assert set(server.sent("PATCH", C1)["config"].values()) == {""}


def test_restore_tells_servers_from_instances(run: Run, two: FakeServer, server: FakeServer) -> None:
    server.work("PUT", C1)
    assert run("restore", "c1", "before").status == 0
    assert server.sent("PUT", C1)["restore"] == "c1/before"
    assert "flexc restore REMOTE:" in run("restore", "c1").err
    assert "--stateful is about a snapshot" in run("restore", "local:", "--stateful").err
    assert "--from is about servers" in run("restore", "c1", "before", "--from", "other:").err


def test_an_interrupted_crew_begins_no_more() -> None:
    reported: list[Row] = []
    crew = Crew(2, reported.append)

    def interrupted() -> Row:
        crew.interrupted = True
        return Row("a", "stop")

    def never() -> Row:
        raise AssertionError("begun after the interrupt")

    crew.work([[interrupted], [never], [never]])
    assert [row.instance for row in reported] == ["a"]
