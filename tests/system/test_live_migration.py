# SPDX-License-Identifier: Apache-2.0
"""Running Debians move between two servers: connection, memory and clock go along, and one side at most runs, whatever
is killed."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexd.host.contract import CriuFacts
from flexd.host.linux import LinuxHost
from tests.system.hosts import Host, Hosts, hosts
from tests.system.machine import wait_until
from tests.system.traveller import NAME, Traveller

# Knows a text by heart and compares it, and looks whether the clock runs backwards; what is wrong is written down.
_WATCHMAN = """\
text=$(head -c 200000 /dev/urandom | base64 -w 0); sum=$(printf %s "$text" | sha256sum); last=0; count=0
while :; do
  now=$(date +%s%N); [ "$now" -ge "$last" ] || echo "clock: $last, $now" >>/root/wrong; last=$now
  [ "$(printf %s "$text" | sha256sum)" = "$sum" ] || echo "memory" >>/root/wrong
  count=$((count + 1)); echo $count >/root/count; sleep 0.2
done
"""
_MEMORY_LIMIT = "700MiB"
_SETTLED_S = 120.0


@pytest.fixture(scope="module")
def world(state_root: Path) -> Iterator[Hosts]:
    criu = asyncio.run(_criu())
    if not criu.usable:
        pytest.skip(criu.reason)
    with hosts(state_root / "live") as made:
        yield made


async def _criu() -> CriuFacts:
    host = LinuxHost()
    try:
        return await host.criu.facts()
    finally:
        await host.close()


@pytest.fixture(scope="module")
def traveller(world: Hosts) -> Traveller:
    made = Traveller(world, "debian/12")
    made.place.flexc("config", "set", NAME, f"limits.memory={_MEMORY_LIMIT}")
    made.inside("systemd-run", "--unit", "watchman", "sh", "-c", _WATCHMAN)
    wait_until(lambda: _count(made))
    return made


def _count(traveller: Traveller) -> int:
    return int(traveller.inside("cat", "/root/count", check=False) or 0)


def _goes_on(traveller: Traveller) -> None:
    """Where it is now, it is whole, and alone."""
    before = _count(traveller)
    wait_until(lambda: _count(traveller) > before)
    assert traveller.inside("cat", "/root/wrong", check=False) == ""
    traveller.check()
    place = traveller.place
    assert place.get(f"/1.0/instances/{NAME}/state")["memory"]["usage"] > 0
    assert place.get(f"/1.0/instances/{NAME}")["config"]["limits.memory"] == _MEMORY_LIMIT


def test_there_and_back_with_one_connection(world: Hosts, traveller: Traveller, tmp_path: Path) -> None:
    a, b = world.all
    with traveller.client(tmp_path / "client.log") as client:
        wait_until(lambda: client.ask()["lines"] > 0)
        for target, other in ((b, a), (a, b)):
            before = _count(traveller)
            traveller.move("--live")
            assert traveller.place is target
            assert (target.instances(), other.instances()) == ({NAME: "Running"}, {})
            assert _count(traveller) >= before
            _goes_on(traveller)
            wait_until(lambda: client.ask()["lines"] > 0)


def test_limits_and_console_work_after(traveller: Traveller) -> None:
    traveller.move("--live")
    place = traveller.place
    place.flexc("config", "set", NAME, "limits.memory=650MiB")
    place.flexc("config", "set", NAME, f"limits.memory={_MEMORY_LIMIT}")
    place.flexc("pause", NAME)
    assert place.instances() == {NAME: "Frozen"}
    place.flexc("start", NAME)
    _goes_on(traveller)


def test_debians_own_client_moves_it(world: Hosts, traveller: Traveller) -> None:
    source = traveller.place
    (target,) = (host for host in world.all if host is not source)
    world.person.lxc("move", f"{source.name}:{NAME}", f"{target.name}:")
    traveller.place = target
    assert (target.instances(), source.instances()) == ({NAME: "Running"}, {})
    _goes_on(traveller)


@pytest.mark.parametrize("stage", ["Saving its state", ""])
@pytest.mark.parametrize("victim", ["source", "target"])
def test_whoever_is_killed_one_side_runs(world: Hosts, traveller: Traveller, victim: str, stage: str) -> None:
    source = traveller.place
    (target,) = (host for host in world.all if host is not source)
    moving = world.person.spawn("flexc", "move", "--live", f"{source.name}:{NAME}", f"{target.name}:")
    try:
        wait_until(lambda: _stage(source, stage) or moving.poll() is not None, _SETTLED_S)
        (source if victim == "source" else target).restart(signal.SIGKILL)
        moving.wait(_SETTLED_S)
    finally:
        moving.kill()
        moving.wait()
    runs = wait_until(lambda: _settled(source, target), _SETTLED_S)
    traveller.place = runs
    _goes_on(traveller)
    for host in (source, target):
        if host is not runs and NAME in host.instances():
            assert host.instances()[NAME] == "Stopped"
            host.flexc("delete", NAME)


def _stage(source: Host, stage: str) -> bool:
    """Whether the source has come as far as that; with no name, whether it has begun."""
    operations: list[dict[str, Any]] = source.get("/1.0/operations?recursion=1").get("running", [])
    told = [str((each.get("metadata") or {}).get("progress", "")) for each in operations]
    return any(stage in each for each in told) if stage else bool(operations)


def _settled(source: Host, target: Host) -> Host | None:
    """The one that runs it, when nothing is under way any more."""
    for host in (source, target):
        with contextlib.suppress(AssertionError, OSError):
            if host.get("/1.0/operations").get("running"):
                return None
    running = [host for host in (source, target) if host.instances().get(NAME) == "Running"]
    assert len(running) < 2, "it runs on both sides"
    return running[0] if running else None
