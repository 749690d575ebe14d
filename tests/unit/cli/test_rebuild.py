# SPDX-License-Identifier: Apache-2.0
"""rebuild: from an image, empty, and only of what is stopped unless forced."""

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import FINGERPRINT, image, instance
from tests.unit.client.fake_server import FakeServer

C1 = "/1.0/instances/c1"


@pytest.fixture(autouse=True)
def stopped(server: FakeServer) -> None:
    server.say("/1.0/images/aliases/debian/12", {"name": "debian/12", "target": FINGERPRINT})
    server.say(f"/1.0/images/{FINGERPRINT}", image())
    server.say(C1, instance(status="Stopped"))
    server.work("POST", f"{C1}/rebuild")
    server.work("PUT", f"{C1}/state")


def test_from_an_image(run: Run, server: FakeServer) -> None:
    assert run("rebuild", "debian/12", "c1").status == 0
    assert server.sent("POST", f"{C1}/rebuild")["source"]["type"] == "image"
    assert server.requests("PUT", f"{C1}/state") == []


def test_empty(run: Run, server: FakeServer) -> None:
    assert run("rebuild", "--empty", "c1").status == 0
    assert server.sent("POST", f"{C1}/rebuild") == {"source": {"type": "none"}}


def test_of_one_that_runs(run: Run, server: FakeServer) -> None:
    server.say(C1, instance(status="Running"))
    assert "Use --force" in run("rebuild", "debian/12", "c1").err
    assert run("rebuild", "debian/12", "c1", "-f").status == 0
    assert [each.document["action"] for each in server.requests("PUT", f"{C1}/state")] == ["stop", "start"]


@pytest.mark.parametrize("words", [["debian/12"], ["--empty", "debian/12", "c1"]])
def test_wrong_words(run: Run, words: list[str]) -> None:
    assert "Invalid number of arguments" in run("rebuild", *words).err
