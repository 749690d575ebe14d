# SPDX-License-Identifier: Apache-2.0
"""`flexc list`: columns, filters, and how little it asks for."""

import json

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import FINGERPRINT, instance
from tests.unit.client.fake_server import FakeServer

INSTANCES = "/1.0/instances"


@pytest.fixture(autouse=True)
def instances(server: FakeServer) -> None:
    server.say(INSTANCES, [instance("c10", "Stopped"), instance("c2", ephemeral=True), instance("web", "Frozen")])


def test_the_usual_table(run: Run, server: FakeServer) -> None:
    result = run("list")
    assert result.out.splitlines()[1] == (
        "| NAME |  STATE  |       IPV4        |      IPV6      |         TYPE          | SNAPSHOTS |"
    )
    assert result.out.splitlines()[3] == (
        "| c2   | RUNNING | 198.18.0.7 (eth0) | fd42::7 (eth0) | CONTAINER (EPHEMERAL) | 0         |"
    )
    # One request, with the state of all: GET /1.0 tells nothing that is needed here.
    assert [(each.path, each.query) for each in server.asked] == [(INSTANCES, {"recursion": "2"})]


def test_every_column(run: Run) -> None:
    result = run("list", "c2", "-f", "csv", "-c", "abcdDefFlLmMnNpPsStu")
    assert result.out.strip().split(",") == [
        "x86_64",
        "default",
        "2026/11/23 06:10 UTC",
        "",
        "5.00MiB",
        "default",
        FINGERPRINT[:12],
        FINGERPRINT,
        "2026/11/23 06:12 UTC",
        "none",
        "48.00MiB",
        "50.0%",
        "c2",
        "12",
        "4711",
        "default",
        "RUNNING",
        "0",
        "CONTAINER (EPHEMERAL)",
        "3s",
    ]


def test_a_stopped_instance_has_no_usage(run: Run) -> None:
    assert run("list", "c10", "-f", "csv", "-c", "n46mMNpu").out == "c10,,,,,,,\n"


def test_cheap_columns_ask_for_less(run: Run, server: FakeServer) -> None:
    run("list", "-c", "ns")
    run("list", "--fast")
    assert [each.query["recursion"] for each in server.asked] == ["1", "1"]


def test_columns_of_keys(run: Run) -> None:
    result = run("list", "c2", "-c", "n,user.stage:STAGE:2,limits.memory,devices:eth0.network:NETW:0")
    assert result.out.splitlines()[1] == "| NAME | STAGE | LIMITS.MEMORY | NETW |"
    assert result.out.splitlines()[3] == "| c2   | te    | 96MiB         | flex |"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("n,,s", "Empty column entry"),
        ("nX", 'Unknown column shorthand char "X"'),
        ("user.a:A:wide", 'Invalid max width "wide"'),
        ("user.a:A:-2", "expected -1"),
        ("devices:eth0", "expected devices:<device>.<key>"),
        ("config::A", "Invalid column"),
    ],
)
def test_wrong_columns(run: Run, columns: str, message: str) -> None:
    result = run("list", "-c", columns)
    assert result.status == 1
    assert message in result.err


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["c"], ["c2", "c10"]),
        (["c2"], ["c2"]),
        (["^.*b$"], ["web"]),
        (["(unclosed"], []),
        (["status=running,frozen"], ["c2", "web"]),
        (["status=stopped"], ["c10"]),
        (["type=container", "c1"], ["c10"]),
        (["user.stage=test"], ["c2", "c10", "web"]),
        (["u.s=t.*"], ["c2", "c10", "web"]),
        (["user.stage=tes"], []),
        (["l.m=96MiB"], ["c2", "c10", "web"]),
        (["ipv4=198.18.0.0/24"], ["c2", "web"]),
        (["ipv6=fd42::8"], []),
        (["ipv4=no address"], []),
    ],
)
def test_filters(run: Run, filters: list[str], names: list[str]) -> None:
    assert run("list", *filters, "-f", "csv", "-c", "n").out.split() == names


def test_a_cluster_shows_where(run: Run, server: FakeServer) -> None:
    server.say(INSTANCES, [instance("c1", location="host1")])
    assert "LOCATION" in run("list").out


def test_all_projects(run: Run, server: FakeServer) -> None:
    assert run("list", "--all-projects").out.splitlines()[1].startswith("| PROJECT |")
    assert server.asked[0].query["all-projects"] == "true"


def test_json_is_what_the_server_said(run: Run) -> None:
    names = [each["name"] for each in json.loads(run("list", "--format=json", "c").out)]
    assert names == ["c10", "c2"]
