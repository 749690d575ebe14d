# SPDX-License-Identifier: Apache-2.0
"""`flexc project`, and lists over all projects."""

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import network, profile
from tests.unit.client.fake_server import FakeServer

P = "/1.0/projects/p"
PROJECT = {
    "name": "p",
    "description": "ours",
    "config": {"features.images": "true", "features.profiles": "false", "limits.cpu": "4"},
    "used_by": ["/1.0/instances/c1?project=p"],
}


@pytest.fixture(autouse=True)
def projects(server: FakeServer) -> None:
    default = {**PROJECT, "name": "default", "description": "", "used_by": None}
    server.say("/1.0/projects", [PROJECT, default])
    server.say("/1.0/projects", {}, method="POST")
    server.say(P, PROJECT, etag="tag")
    for method in ("PUT", "DELETE"):
        server.say(P, {}, method=method)


def test_list(run: Run) -> None:
    assert run("project", "list", "-f", "csv").out == ("default (current),YES,NO,NO,NO,,0\np,YES,NO,NO,NO,ours,1\n")


def test_create(run: Run, server: FakeServer) -> None:
    words = ("project", "create", "q", "-c", "limits.cpu=4", "-c", "restricted=true", "--description", "theirs")
    assert run(*words).out == "Project q created\n"
    config = {"limits.cpu": "4", "restricted": "true"}
    assert server.sent("POST", "/1.0/projects") == {"name": "q", "description": "theirs", "config": config}


def test_verbs(run: Run, server: FakeServer) -> None:
    assert run("project", "get", "p", "limits.cpu").out == "4\n"
    assert "limits.cpu: '4'" in run("project", "show", "p").out.replace('"', "'")
    assert run("project", "set", "p", "limits.cpu=5").status == 0
    assert server.sent("PUT", P)["config"]["limits.cpu"] == "5"
    assert run("project", "unset", "p", "limits.cpu").status == 0
    assert run("project", "delete", "p").out == "Project p deleted\n"


def test_rename_waits_for_its_operation(run: Run, server: FakeServer) -> None:
    server.work("POST", P)
    assert run("project", "rename", "p", "q").out == "Project p renamed to q\n"
    assert server.sent("POST", P) == {"name": "q"}


def test_info(run: Run, server: FakeServer) -> None:
    state = {
        "memory": {"Limit": 2**30, "Usage": 2**29},
        "instances": {"Limit": -1, "Usage": 3},
        "disk.fast": {"Limit": 2**40, "Usage": 0},
    }
    server.say(f"{P}/state", {"resources": state})
    assert run("project", "info", "p", "-f", "csv").out == (
        "DISK.FAST,1.00TiB,0B\nINSTANCES,UNLIMITED,3\nMEMORY,1.00GiB,512.00MiB\n"
    )


def test_switch(run: Run, server: FakeServer) -> None:
    assert run("project", "switch", "p").status == 0
    server.say("/1.0/instances", [])
    run("list")
    assert server.requests("GET", "/1.0/instances")[0].query["project"] == "p"


@pytest.mark.parametrize(("words", "path"), [("profile", "/1.0/profiles"), ("network", "/1.0/networks")])
def test_lists_of_all_projects(run: Run, server: FakeServer, words: str, path: str) -> None:
    thing = {"profile": profile, "network": network}[words]()
    server.say(path, [{**thing, "project": "p"}])
    assert run(words, "list", "--all-projects", "-f", "csv").out.startswith(f"p,{thing['name']},")
    assert server.requests("GET", path)[0].query["all-projects"] == "true"
    assert run(words, "list", "-f", "csv").out.startswith(f"{thing['name']},")
