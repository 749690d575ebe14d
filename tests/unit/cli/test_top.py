# SPDX-License-Identifier: Apache-2.0
"""`flexc top`: who runs, in which order."""

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import instance
from tests.unit.client.fake_server import FakeServer


@pytest.fixture(autouse=True)
def instances(server: FakeServer) -> None:
    small, big = instance("small"), instance("big")
    big["state"]["memory"]["usage"] = 1 << 30
    server.say("/1.0/instances", [small, big, instance("off", "Stopped")])


def test_running_instances_by_memory(run: Run) -> None:
    result = run("top", "--once", "--sort", "memory")
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "big", "small"]
    assert "1.00GiB" in lines[1]


def test_a_bad_interval(run: Run) -> None:
    result = run("top", "--interval", "soon")
    assert result.status == 1
    assert 'Invalid interval "soon"' in result.err
