# SPDX-License-Identifier: Apache-2.0
"""evacuate and restore between two whole daemons on fakes, said as somebody says them."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster

from flexd.host.contract import HostError
from tests.unit.instances.house import PROJECT, House, house

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="receiving trees needs root (chown, chroot)")
STOPPED, RUNNING = "Stopped", "Running"


class Town:
    """Two servers, `a` and `b`, and somebody who knows both."""

    def __init__(self, directory: Path, a: House, b: House) -> None:
        self.a, self.b = a, b
        self._environment = os.environ | {"FLEXC_CONF": str(directory / "person")}

    async def say(self, *words: str) -> "subprocess.Popen[bytes]":
        argv = [sys.executable, "-m", "flexd.cli.main", *words]
        quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
        return await asyncio.to_thread(
            subprocess.Popen, argv, env=self._environment, stdin=quiet, stdout=pipe, stderr=pipe
        )

    async def rows(self, *words: str, status: int = 0) -> dict[str, dict[str, Any]]:
        """Of the report, by instance."""
        process = await self.say(*words, "-f", "json")
        out, err = await asyncio.to_thread(process.communicate)
        assert process.returncode == status, out.decode() + err.decode()
        return {row["instance"]: row for row in json.loads(out)}

    def evacuate(self, *words: str, status: int = 0) -> Any:
        return self.rows("evacuate", "a:", "--to", "b:", "--force", *words, status=status)

    def states(self) -> tuple[dict[str, str], dict[str, str]]:
        """Of the instances of both."""
        a, b = ({name: home.status(name) for name in home.daemon.instances.names(PROJECT)} for home in (self.a, self.b))
        return a, b

    def marks(self) -> dict[str, str]:
        """What evacuations have left in configurations."""
        return {
            key: value
            for home in (self.a, self.b)
            for name in home.daemon.instances.names(PROJECT)
            for key, value in home.daemon.instances.show(PROJECT, name).config.items()
            if key.startswith("volatile.evacuate.")
        }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def town(tmp_path: Path, blockbuster: BlockBuster) -> AsyncIterator[Town]:
    async with house(tmp_path / "a") as a, house(tmp_path / "b") as b:
        made = Town(tmp_path, a, b)
        for name, home in (("a", a), ("b", b)):
            home.host.processes.harmless.add(sys.executable)
            blockbuster.deactivate()
            await home.daemon.serve(tmp_path / f"{name}.socket", "root")
            await home.daemon.config.update({"core.https_address": f"127.0.0.1:{free_port()}"})
            blockbuster.activate()
            added = await made.say("remote", "add", name, f"unix://{tmp_path / name}.socket")
            assert await asyncio.to_thread(added.communicate) == (b"", b"")
        yield made


async def populate(home: House, count: int, *, live: bool = False) -> None:
    """Running ones, c1 before c2."""
    for number in range(1, count + 1):
        config = {"boot.stop.priority": str(-number), "migration.stateful": str(live).lower()}
        await home.create(f"c{number}", config=config)
        await home.act("start", f"c{number}")


async def test_there_and_back(town: Town) -> None:
    await populate(town.a, 2)
    await town.a.create("asleep")
    await town.a.create("stays", config={"cluster.evacuate": "stop"})
    await town.a.act("start", "stays")
    before = town.states()
    rows = await town.evacuate()
    assert {row["error"] for row in rows.values()} == {""}
    assert [row["action"] for _, row in sorted(rows.items())] == ["migrate", "migrate", "migrate", "stop"]
    assert town.states() == ({"stays": STOPPED}, {"asleep": STOPPED, "c1": RUNNING, "c2": RUNNING})
    assert await town.evacuate() == {}
    rows = await town.rows("restore", "a:")
    assert {row["error"] for row in rows.values()} == {""}
    assert (rows["stays"]["action"], rows["c1"]["target"]) == ("start", "a")
    assert town.states() == before
    assert town.marks() == {}


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("arrived", [0, 1, 2])
async def test_killed_and_said_again(town: Town, arrived: int, live: bool) -> None:
    """Whatever was under way: each instance is on one server at the end, and runs."""
    await populate(town.a, 3, live=live)
    words = ("evacuate", "a:", "--to", "b:", "--force", "--parallel", "1")
    process = await town.say(*words)
    while process.poll() is None and len(town.states()[1]) <= arrived:
        await asyncio.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(process.communicate)
    await operations_ended(town)
    rows = await town.evacuate()
    assert {row["error"] for row in rows.values()} <= {""}
    assert town.states() == ({}, {"c1": RUNNING, "c2": RUNNING, "c3": RUNNING})
    rows = await town.rows("restore", "a:")
    assert town.states() == ({"c1": RUNNING, "c2": RUNNING, "c3": RUNNING}, {})
    assert town.marks() == {}


async def operations_ended(town: Town) -> None:
    """What a client asked for that is no more there ends by itself."""
    for home in (town.a, town.b):
        for operation in home.daemon.operations.list():
            await operation.wait()


async def test_an_instance_that_cannot_go_runs_on(town: Town) -> None:
    await populate(town.a, 1)
    await town.a.create("taken")
    await town.a.act("start", "taken")
    await town.b.create("taken")
    rows = await town.evacuate(status=1)
    assert rows["taken"]["error"] == "b has an instance of this name"
    assert (rows["c1"]["error"], rows["c1"]["target"]) == ("", "b")
    assert town.states() == ({"taken": RUNNING}, {"c1": RUNNING, "taken": STOPPED})


async def test_a_failure_on_the_way_lets_it_run_on_where_it_was(town: Town) -> None:
    await populate(town.a, 1)
    town.b.host.fail(method="processes.spawn", error=HostError("no space left"))
    rows = await town.evacuate(status=1)
    assert "no space left" in rows["c1"]["error"]
    assert town.states() == ({"c1": RUNNING}, {})
    assert town.marks() == {}


async def test_live_there_and_back(town: Town) -> None:
    """One goes live; one may and cannot, so that it goes with a stop, and it is told why; one has to and cannot."""
    for name, policy in (("live", "auto"), ("reluctant", "auto"), ("proud", "live-migrate")):
        await town.a.create(name, config={"cluster.evacuate": policy})
        await town.a.act("start", name)
    for name in ("reluctant", "proud"):
        town.a.runtime.unsavable[name] = "it holds a lock"
    rows = await town.evacuate(status=1)
    assert town.states() == ({"proud": RUNNING}, {"live": RUNNING, "reluctant": RUNNING})
    actions = {name: row["action"] for name, row in rows.items()}
    assert actions == {"live": "live-migrate", "reluctant": "migrate", "proud": "live-migrate"}
    assert "it holds a lock" in rows["reluctant"]["note"]
    assert "it holds a lock" in rows["proud"]["error"]
    rows = await town.rows("restore", "a:")
    assert town.states() == ({"proud": RUNNING, "live": RUNNING, "reluctant": RUNNING}, {})
    assert town.marks() == {}
    assert rows["live"]["action"] == "live-migrate"
