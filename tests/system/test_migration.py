# SPDX-License-Identifier: Apache-2.0
"""Cold copies and moves between two servers, with both commands, every kind of pool, and an LXD at the other end."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.hosts import Host, Hosts, Person
from tests.system.images import tiny_image
from tests.system.machine import wait_until

_MIB = 1 << 20


@pytest.fixture(scope="module")
def world(state_root: Path) -> Iterator[Hosts]:
    """`a` (overlay, with pools of the other kinds) and `b` (overlay), both with the image `tiny`."""
    made = Hosts(state_root / "mig")
    try:
        for name in ("a", "b"):
            host = made.add(name)
            host.add_pool("dir", "dir")
            host.add_pool("btrfs", "btrfs")
            host.import_image(tiny_image(), "tiny")
        yield made
    finally:
        left = made.close()
    assert left == [], left


@pytest.fixture
def clean(world: Hosts) -> Iterator[Hosts]:
    yield world
    for host in world.all:
        host.clear()


def hosts_of(world: Hosts) -> tuple[Host, Host, Person]:
    a, b = world.all[:2]
    return a, b, world.person


def push(person: Person, where: str, text: str) -> None:
    person.run("flexc", "file", "push", "-", where, stdin=text.encode())


def pull(person: Person, where: str) -> str:
    return person.flexc("file", "pull", where, "-").stdout


def make(person: Person, name: str, *options: str) -> None:
    """A stopped container with two snapshots and something new."""
    person.flexc("init", "a:tiny", f"a:{name}", *options)
    push(person, f"a:{name}/etc/then", "zero")
    person.flexc("snapshot", f"a:{name}", "s0")
    push(person, f"a:{name}/etc/then", "one")
    person.flexc("snapshot", f"a:{name}", "s1")
    push(person, f"a:{name}/etc/now", "two")


@pytest.mark.parametrize("mode", ["pull", "push", "relay"])
@pytest.mark.parametrize("command", ["flexc", "lxc"])
def test_copies(clean: Hosts, command: str, mode: str) -> None:
    a, b, person = hosts_of(clean)
    make(person, "c1")
    person.run(command, "copy", "a:c1", "b:c2", "--mode", mode)
    assert pull(person, "b:c2/etc/now") == "two"
    person.flexc("restore", "b:c2", "s0")
    assert pull(person, "b:c2/etc/then") == "zero"
    person.run(command, "start", "b:c2")
    owner = person.run(command, "exec", "b:c2", "--", "stat", "-c", "%u:%g", "/etc/then").stdout
    assert owner.strip() == "0:0"
    assert a.instances() == {"c1": "Stopped"}
    assert b.instances() == {"c2": "Running"}


@pytest.mark.parametrize("source", ["default", "dir", "btrfs"])
@pytest.mark.parametrize("target", ["default", "dir", "btrfs"])
def test_between_drivers(clean: Hosts, source: str, target: str) -> None:
    _, _, person = hosts_of(clean)
    make(person, "c1", "--storage", source)
    person.flexc("copy", "a:c1", "b:c1", "--storage", target)
    push(person, "a:c1/etc/later", "three")
    person.flexc("snapshot", "a:c1", "s2")
    person.flexc("copy", "a:c1", "b:c1", "--refresh", "--storage", target)
    assert pull(person, "b:c1/etc/later") == "three"
    names = person.flexc("query", "b:/1.0/instances/c1/snapshots").stdout
    assert [name in names for name in ("s0", "s1", "s2")] == [True] * 3
    person.flexc("start", "b:c1")


def test_a_move_there_and_back(clean: Hosts) -> None:
    a, b, person = hosts_of(clean)
    clean.serve_dhcp()
    make(person, "c1")
    person.flexc("start", "a:c1")
    address = wait_until(lambda: _address(a))
    person.flexc("stop", "-f", "a:c1")
    person.flexc("move", "a:c1", "b:")
    assert a.instances() == {}
    person.flexc("start", "b:c1")
    assert wait_until(lambda: _address(b)) == address
    person.flexc("stop", "-f", "b:c1")
    person.lxc("move", "b:c1", "a:")
    assert (a.instances(), b.instances()) == ({"c1": "Stopped"}, {})


def _address(host: Host) -> str:
    networks = host.get("/1.0/instances/c1/state")["network"] or {}
    found = [each for each in networks.get("eth0", {}).get("addresses", []) if each["family"] == "inet"]
    return str(found[0]["address"]) if found else ""


def test_other_settings_on_the_way(clean: Hosts) -> None:
    _, b, person = hosts_of(clean)
    b.call("POST", "/1.0/profiles", {"name": "other"})
    make(person, "c1")
    person.flexc("copy", "a:c1", "b:c9", "-p", "default", "-p", "other", "-c", "user.note=x", "--storage", "dir")
    found = b.get("/1.0/instances/c9")
    assert (found["profiles"], found["config"]["user.note"]) == (["default", "other"], "x")
    assert found["expanded_devices"]["root"]["pool"] == "dir"
    b.call("DELETE", "/1.0/instances/c9")
    b.call("DELETE", "/1.0/profiles/other")


def test_an_attached_volume_is_not_forgotten(clean: Hosts) -> None:
    """It does not come along: the target refuses what it could not start."""
    a, b, person = hosts_of(clean)
    make(person, "c1")
    person.flexc("storage", "volume", "create", "a:default", "data")
    person.flexc("config", "device", "add", "a:c1", "data", "disk", "pool=default", "source=data", "path=/data")
    refused = person.flexc("move", "a:c1", "b:", check=False)
    assert "data" in refused.stderr
    assert (a.instances(), b.instances()) == ({"c1": "Stopped"}, {})
    person.flexc("storage", "volume", "copy", "a:default/data", "b:default/data")
    person.flexc("move", "a:c1", "b:")
    assert b.instances() == {"c1": "Stopped"}


# --- killed and cut ---


def fill(person: Person, a: Host) -> None:
    """A container whose copy takes a while."""
    person.flexc("init", "a:tiny", "a:big")
    file = a.directory.parent / "noise"
    with file.open("wb") as made:
        subprocess.run(["head", "-c", str(200 * _MIB), "/dev/urandom"], stdout=made, check=True)
    person.flexc("file", "push", str(file), "a:big/noise")
    file.unlink()


@pytest.mark.parametrize("delay_s", [0.1, 0.4, 0.8, 1.5])
@pytest.mark.parametrize("victim", ["a", "b", "link"])
def test_whoever_dies(clean: Hosts, victim: str, delay_s: float) -> None:
    """At whatever moment it is: the source has all of it, the target all or nothing, and a repetition works."""
    a, b, person = hosts_of(clean)
    fill(person, a)
    copying = person.spawn("flexc", "copy", "a:big", "b:big")
    try:
        time.sleep(delay_s)
        if victim == "link":
            clean.cut(b)
        else:
            (a if victim == "a" else b).restart(signal.SIGKILL)
        if victim == "link":
            wait_until(lambda: not _under_way(a), 60)
            wait_until(lambda: not _under_way(b), 60)
            clean.mend(b)
    finally:
        copying.kill()
        copying.wait()
    wait_until(lambda: not _under_way(a) and not _under_way(b), 60)
    assert "big" in a.instances()
    if "big" in b.instances():
        person.flexc("file", "pull", "b:big/noise", "/dev/null")
        person.flexc("delete", "b:big")
    assert _volumes(b) == []
    person.flexc("copy", "a:big", "b:big")


def _under_way(host: Host) -> list[str]:
    return list(host.get("/1.0/operations").get("running", []))


def _volumes(host: Host) -> list[str]:
    found = host.directory / "storage-pools" / "default"
    return sorted(path.name for path in (found / "containers").iterdir())


# --- an LXD ---


@pytest.mark.skipif(shutil.which("lxd") is None, reason="lxd is not installed")
@pytest.mark.parametrize("driver", ["dir", "btrfs"])
def test_an_lxd_at_the_other_end(state_root: Path, driver: str) -> None:
    world = Hosts(state_root / f"lxd-{driver}")
    try:
        a = world.add("a")
        lxd = world.add("l", driver=driver, daemon="lxd")
        for host in (a, lxd):
            host.import_image(tiny_image(), "tiny")
        person = world.person
        make(person, "c1")
        for number, mode in enumerate(("pull", "push", "relay")):
            person.lxc("copy", "a:c1", f"l:there{number}", "--mode", mode)
            person.lxc("copy", f"l:there{number}", f"a:back{number}", "--mode", mode)
            assert pull(person, f"a:back{number}/etc/now") == "two"
            person.flexc("restore", f"a:back{number}", "s0")
            assert pull(person, f"a:back{number}/etc/then") == "zero"
        person.lxc("copy", "a:c1", "l:there0", "--refresh")
        person.lxc("copy", "l:there0", "a:back0", "--refresh")
        person.lxc("start", "l:there0", "a:back0")
        assert person.lxc("exec", "l:there0", "--", "stat", "-c", "%u", "/etc/now").stdout.strip() == "0"
        person.lxc("storage", "volume", "create", "a:default", "v")
        person.lxc("storage", "volume", "copy", "a:default/v", "l:default/v")
        person.lxc("storage", "volume", "copy", "l:default/v", "a:default/w")
    finally:
        left = world.close()
    assert left == [], left
