# SPDX-License-Identifier: Apache-2.0
"""Who leaves a server how, in which order, and to which other one."""

from typing import Any

import pytest

from flexd.cli.evacuation_plan import (
    FIT,
    LIVE,
    MIGRATE,
    ORIGIN,
    POWER,
    STOP,
    Job,
    Room,
    choose,
    cpu_count,
    demand,
    in_start_order,
    in_stop_order,
    plan,
    unfit,
)
from tests.unit.cli.documents import instance

MIB = 1 << 20
HOME = "home"


def with_config(config: dict[str, str], **fields: Any) -> dict[str, Any]:
    return instance(config=config, expanded_config=config, **fields)


def job(name: str = "c1", action: str = MIGRATE, memory: int = 48 * MIB, **fields: Any) -> Job:
    made = instance(name, **fields)
    made["state"]["memory"]["usage"] = memory
    return Job(made, action, HOME)


def room(remote: str = "host2", **fields: Any) -> Room:
    standard = {
        "memory_total": 1000 * MIB, "memory_used": 100 * MIB, "cpus": 4, "cpus_taken": 0,
        "architectures": frozenset({"x86_64", "i686"}), "pools": frozenset({"default"}),
        "networks": frozenset({"flexbr0"}), "profiles": frozenset({("default", "default")}),
    }  # fmt: skip
    return Room(remote, **{**standard, **fields})


# --- policy ---


@pytest.mark.parametrize(
    ("config", "status", "forced", "criu_problem", "action"),
    [
        ({}, "Running", "", "", MIGRATE),
        ({FIT: "true"}, "Running", "", "", LIVE),
        ({FIT: "true"}, "Running", "", "too old", MIGRATE),
        ({FIT: "true"}, "Stopped", "", "", MIGRATE),
        ({"migration.stateful": "true"}, "Running", "", "", MIGRATE),  # set since it was started
        ({"cluster.evacuate": "stop"}, "Running", "", "", STOP),
        ({"cluster.evacuate": "migrate", FIT: "true"}, "Running", "", "", MIGRATE),
        ({"cluster.evacuate": "live-migrate"}, "Running", "", "too old", LIVE),
        ({"cluster.evacuate": "live-migrate"}, "Stopped", "", "", MIGRATE),
        ({"cluster.evacuate": "live-migrate"}, "Running", STOP, "", STOP),
        ({"cluster.evacuate": "stop"}, "Running", "auto", "", MIGRATE),
    ],
)
def test_policies(config: dict[str, str], status: str, forced: str, criu_problem: str, action: str) -> None:
    found = plan(with_config(config, status=status), forced=forced, identity=HOME, criu_problem=criu_problem)
    assert found.action == action
    assert found.origin == HOME


def test_only_what_auto_chose_goes_cold_if_live_fails() -> None:
    chosen = plan(with_config({FIT: "true"}), forced="", identity=HOME, criu_problem="")
    demanded = plan(with_config({"cluster.evacuate": LIVE}), forced="", identity=HOME, criu_problem="")
    assert (chosen.falls_back, demanded.falls_back) == (True, False)


def test_the_reason_why_not_live() -> None:
    stateful = with_config({FIT: "true"})
    assert "migration.stateful" in plan(with_config({}), forced="", identity=HOME, criu_problem="").reason
    assert plan(stateful, forced="", identity=HOME, criu_problem="too old").reason == "not live: too old"


@pytest.mark.parametrize(
    ("device", "tied"),
    [
        ({"type": "gpu"}, True),
        ({"type": "unix-char", "path": "/dev/kvm"}, True),
        ({"type": "nic", "nictype": "physical", "parent": "eth1"}, True),
        ({"type": "disk", "source": "/srv/data", "path": "/data"}, True),
        ({"type": "disk", "source": "data", "pool": "default", "path": "/data"}, True),
        ({"type": "disk", "pool": "default", "path": "/"}, False),
        ({"type": "nic", "nictype": "bridged", "parent": "br0"}, False),
        ({"type": "proxy", "listen": "tcp:0.0.0.0:80"}, False),
    ],
)
def test_what_is_tied_to_a_host_stays(device: dict[str, str], tied: bool) -> None:
    found = plan(instance(expanded_devices={"it": device}), forced="", identity=HOME, criu_problem="")
    assert (found.action == STOP) is tied
    assert (found.reason == "tied to this host by it") is tied


def test_the_first_home_is_kept() -> None:
    moved = with_config({ORIGIN: "elsewhere"})
    assert plan(moved, forced="", identity=HOME, criu_problem="").origin == "elsewhere"


# --- order ---


def test_orders() -> None:
    settings = {"a": ("5", "1"), "b": ("0", "9"), "c": ("5", "0"), "d": ("-1", "0")}
    jobs = [
        Job(with_config({"boot.stop.priority": stop, "boot.autostart.priority": start}, name=name), MIGRATE, HOME)
        for name, (stop, start) in sorted(settings.items(), reverse=True)
    ]
    assert [[each.name for each in group] for group in in_stop_order(jobs)] == [["a", "c"], ["b"], ["d"]]
    assert [[each.name for each in group] for group in in_start_order(jobs)] == [["b"], ["a"], ["c", "d"]]


# --- placing ---


@pytest.mark.parametrize(("limit", "count"), [("", 1), ("3", 3), ("0-3", 4), ("0,2", 2), ("0-1,7", 3), ("odd", 1)])
def test_cpu_counts(limit: str, count: int) -> None:
    assert cpu_count(limit) == count


def test_demand() -> None:
    assert demand(job(memory=50 * MIB).instance) == (50 * MIB, 1)
    assert demand(job(status="Stopped").instance) == (0, 0)
    # It was stopped by an evacuation that will start it again.
    assert demand(with_config({POWER: "RUNNING"}, status="Stopped"))[1] == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"instances": {("default", "c1")}}, "has an instance of this name"),
        ({"instances": {("other", "c1")}}, ""),
        ({"architectures": frozenset({"aarch64"})}, "does not run x86_64"),
        ({"profiles": frozenset()}, 'has no profile "default"'),
        ({"pools": frozenset({"fast"})}, 'has no storage pool "default"'),
        ({"networks": frozenset()}, 'has no network "flexbr0"'),
        ({"memory_used": 990 * MIB}, "has 10 MiB of memory left, 48 MiB are needed"),
    ],
)
def test_what_does_not_fit(fields: dict[str, Any], words: str) -> None:
    assert unfit(job(), room(**fields)) == words


def test_a_live_move_needs_criu_there_unless_it_may_be_cold() -> None:
    live = job(action=LIVE)
    assert unfit(live, room(criu_problem="too old")) == "takes nobody live: too old"
    live.falls_back = True
    assert unfit(live, room(criu_problem="too old")) == ""


def test_a_copy_that_an_interrupted_move_left_is_no_obstacle() -> None:
    names = {"instances": {("default", "c1")}}
    assert unfit(job(), room(**names, left_behind={("default", "c1"): HOME})) == ""
    assert "of this name" in unfit(job(), room(**names, left_behind={("default", "c1"): "elsewhere"}))
    assert "of this name" in unfit(job(), room(**names, left_behind={("default", "c1"): ""}))


def test_the_emptiest_is_chosen_and_fills_up() -> None:
    """100 and 300 MiB are taken of 1000: six of 100 MiB go four to one and two to the other."""
    rooms = [room("host2", cpus=100), room("host3", cpus=100, memory_used=300 * MIB)]
    found = [choose(job(f"c{number}", memory=100 * MIB), rooms)[0] for number in range(6)]
    assert sorted(each.remote for each in found if each) == ["host2"] * 4 + ["host3"] * 2
    assert {each.memory_used for each in rooms} == {500 * MIB}


def test_cpus_count_as_memory_does() -> None:
    rooms = [room("host2", cpus_taken=4), room("host3", memory_used=300 * MIB)]
    assert choose(job(), rooms)[0] is rooms[1]


def test_no_place_is_told_for_every_server() -> None:
    found, fault = choose(job(), [room("host2", pools=frozenset()), room("host3", profiles=frozenset())])
    assert found is None
    assert fault == 'host2 has no storage pool "default"; host3 has no profile "default"'
    assert choose(job(), []) == (None, "there is no other server")
