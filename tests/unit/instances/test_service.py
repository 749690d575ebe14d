# SPDX-License-Identifier: Apache-2.0
"""The whole daemon on fakes: what instances do, and that a failure at any step leaves the host as it was."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, Conflict, FlexdError, Forbidden, InvalidInput, NotFound
from flexd.api.instance import InstancePost, InstancePut, InstanceSource, InstancesPost
from flexd.api.instance_state import InstanceStatePut
from flexd.api.profile import ProfilePost, ProfilePut, ProfilesPost
from flexd.host.contract import HostError
from flexd.server.decode import narrow
from tests.unit.instances.house import NIC, PROJECT, ROOT, House, house, restart


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        yield made


async def _settled(check) -> None:
    """Background work has no operation to wait for; each turn of the loop lets it go on."""
    for _ in range(2000):
        if check():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


def _put(home: House, name: str = "c1", **changes: object) -> InstancePut:
    put = narrow(home.daemon.instances.show(PROJECT, name), InstancePut)
    for field, value in changes.items():
        setattr(put, field, value)
    return put


# --- create ---


async def test_create(home: House):
    await home.create(config={"user.colour": "red"}, description="mine")
    shown = home.daemon.instances.show(PROJECT, "c1")
    assert (shown.status, shown.status_code, shown.description) == ("Stopped", 102, "mine")
    assert shown.profiles == ["default"]
    assert shown.expanded_devices == {"root": ROOT, "eth0": NIC}
    assert shown.config["user.colour"] == "red"
    assert shown.config["volatile.eth0.hwaddr"].startswith("00:16:3e:")
    assert shown.config["volatile.uuid"]
    assert home.host_state()["volumes"] == ["c1"]


async def test_create_without_a_name_makes_one_up(home: House):
    operation = await home.daemon.instances.create(PROJECT, InstancesPost(source=InstanceSource(type="none")))
    await home.done(operation)
    assert len(home.daemon.instances.names(PROJECT)) == 1


async def test_every_fault_of_a_new_instance_is_told(home: House):
    post = InstancesPost(
        name="c1",
        source=InstanceSource(type="none"),
        architecture="z80",
        profiles=["default", "nope"],
        config={"no.such": "1", "boot.autostart": "perhaps"},
        devices={"eth1": {"type": "nic"}, "x": {"type": "spaceship"}, "d": {"type": "disk", "path": "../etc"}},
    )
    with pytest.raises(InvalidInput) as caught:
        await home.daemon.instances.create(PROJECT, post)
    paths = {fault.path for fault in caught.value.faults}
    assert paths == {
        "architecture",
        "profiles.1",
        "config.no.such",
        "config.boot.autostart",
        "devices.eth1",
        "devices.x",
        "devices.d.path",
        "devices.d.source",
    }
    assert home.daemon.instances.names(PROJECT) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"profiles": []}, "No root device"),
        ({"devices": {"eth0": {**NIC, "network": "nope"}}}, 'Network "nope" not found'),
        ({"devices": {"root": {**ROOT, "pool": "nope"}}}, 'Storage pool "nope" not found'),
        ({"devices": {"d": {"type": "disk", "path": "/x", "source": "/no/such"}}}, "Missing source path"),
        ({"type": "virtual-machine"}, "not supported"),
        ({"instance_type": "t1.micro"}, "not known"),
    ],
)
async def test_bad_creates(home: House, fields: dict, message: str):
    with pytest.raises(BadRequest, match=message):
        await home.create(**fields)
    assert home.host_state()["volumes"] == []


async def test_names_are_taken_once(home: House):
    await home.create()
    with pytest.raises(Conflict, match="already exists"):
        await home.create()


async def test_two_creates_of_one_name_at_once(home: House):
    first = await home.daemon.instances.create(PROJECT, InstancesPost(name="c1", source=InstanceSource(type="none")))
    second = await home.daemon.instances.create(PROJECT, InstancesPost(name="c1", source=InstanceSource(type="none")))
    await first.wait()
    await second.wait()
    assert sorted([first.status, second.status]) == ["Failure", "Success"]
    await home.act("start")
    assert home.status() == "Running"


# --- life ---


async def test_start_and_stop(home: House):
    before = home.host_state()
    await home.create()
    created = home.host_state()
    await home.act("start")
    assert home.status() == "Running"
    spec = home.runtime.specs["c1"]
    assert spec.hostname == "c1"
    assert spec.idmap.host_uid(0) == 1_000_000
    assert [nic.name for nic in spec.nics] == ["eth0"]
    await home.act("stop", force=True)
    assert home.status() == "Stopped"
    after = home.host_state()
    # The container's end of the pair goes with its namespace in reality; the fake keeps none of it either.
    assert after == created
    await home.delete()
    assert home.host_state() == before


async def test_clean_stop_waits_for_init(home: House):
    await home.create()
    await home.act("start")
    await home.act("stop", timeout=10)
    assert home.status() == "Stopped"


async def test_stop_that_times_out_leaves_it_running(home: House):
    await home.create()
    await home.act("start")
    home.runtime.ignoring_shutdown.add("c1")
    with pytest.raises(FlexdError, match="did not end within 1 seconds"):
        await home.act("stop", timeout=1)
    assert home.status() == "Running"
    await home.act("stop", force=True)
    assert home.status() == "Stopped"


@pytest.mark.parametrize(
    ("before", "action", "message"),
    [
        ([], "stop", "already stopped"),
        ([], "freeze", "is stopped"),
        ([], "restart", "is stopped"),
        (["start"], "start", "already running"),
        (["start"], "unfreeze", "is running"),
        (["start", "freeze"], "freeze", "already frozen"),
    ],
)
async def test_actions_that_do_not_fit(home: House, before: list[str], action: str, message: str):
    await home.create()
    for step in before:
        await home.act(step)
    with pytest.raises(BadRequest, match=message):
        await home.act(action)


async def test_unknown_actions(home: House):
    await home.create()
    with pytest.raises(BadRequest, match="Unknown action"):
        await home.daemon.lifecycle.change_state(PROJECT, "c1", InstanceStatePut(action="explode"))
    with pytest.raises(NotFound, match="Instance not found"):
        await home.act("start", "nobody")


async def test_freeze_and_start_thaws(home: House):
    await home.create()
    await home.act("start")
    await home.act("freeze")
    assert home.status() == "Frozen"
    await home.act("start")
    assert home.status() == "Running"
    await home.act("freeze")
    await home.act("stop", force=True)
    assert home.status() == "Stopped"


async def test_restart_is_a_new_run(home: House):
    await home.create(ephemeral=True)
    await home.act("start")
    before = await home.runtime.find("c1")
    await home.act("restart", force=True)
    after = await home.runtime.find("c1")
    assert before is not None
    assert after is not None
    assert before.init != after.init
    assert home.status() == "Running"


async def test_poweroff_and_reboot_from_inside(home: House):
    await home.create()
    await home.act("start")
    first = await home.runtime.find("c1")
    home.runtime.end("c1", "reboot")
    await _settled(
        lambda: home.status() == "Running" and home.runtime._running and home.runtime._running["c1"].container != first
    )
    home.runtime.end("c1")
    await _settled(lambda: home.status() == "Stopped")
    assert home.daemon.instances.show(PROJECT, "c1").config["volatile.last_state.power"] == "STOPPED"


async def test_ephemeral_goes_with_its_end(home: House):
    await home.create(ephemeral=True)
    await home.act("start")
    home.runtime.end("c1")
    await _settled(lambda: home.daemon.instances.names(PROJECT) == [])
    assert home.host_state()["volumes"] == []


async def test_bulk_state_changes(home: House):
    for name in ("a", "b", "c"):
        await home.create(name)
    await home.act("start", "b")
    await home.done(await home.daemon.lifecycle.change_states(PROJECT, InstanceStatePut(action="start")))
    assert [home.status(name) for name in "abc"] == ["Running"] * 3
    await home.done(await home.daemon.lifecycle.change_states(PROJECT, InstanceStatePut(action="stop", force=True)))
    assert [home.status(name) for name in "abc"] == ["Stopped"] * 3


async def test_start_that_fails_takes_everything_back(home: House):
    await home.create()
    before = home.host_state()
    home.runtime.failing["c1"] = "init ended at once"
    with pytest.raises(FlexdError, match="init ended at once"):
        await home.act("start")
    assert home.host_state() == before
    assert home.status() == "Stopped"
    assert home.daemon.instances.show(PROJECT, "c1").config["volatile.last_state.power"] == "STOPPED"
    await home.act("start")
    assert home.status() == "Running"


@pytest.mark.parametrize(
    "method",
    ["mounts.bind", "links.create_veth", "links.set_master", "links.set_up", "links.set_sysctl"],
)
async def test_any_failing_call_of_a_start_is_undone(home: House, method: str):
    await home.create()
    before = home.host_state()
    home.host.fail(method=method, error=HostError(f"{method}: no (EPERM)", 1))
    with pytest.raises(FlexdError, match="no \\(EPERM\\)"):
        await home.act("start")
    home.host.heal()
    assert home.host_state() == before
    await home.act("start")
    assert home.status() == "Running"


@pytest.mark.parametrize("position", range(6))
async def test_a_start_that_fails_before_any_step_is_undone(home: House, position: int):
    await home.create()
    before = home.host_state()

    async def fail_at(_plan: object, index: int, _step: object) -> None:
        if index == position:
            raise HostError("power cut", 5)

    home.daemon.journal.before_step = fail_at
    if position < 4:  # mount, two devices, launch
        with pytest.raises(FlexdError, match="power cut"):
            await home.act("start")
        assert home.host_state() == before
    home.daemon.journal.before_step = None
    await home.act("start")
    assert home.status() == "Running"


# --- edit ---


async def test_edit(home: House):
    await home.create()
    put = _put(home, description="new", config={**_put(home).config, "user.a": "b"})
    await home.done(await home.daemon.instances.update(PROJECT, "c1", put))
    shown = home.daemon.instances.show(PROJECT, "c1")
    assert (shown.description, shown.config["user.a"]) == ("new", "b")


async def test_edit_keeps_what_is_the_daemons(home: House):
    await home.create()
    before = home.daemon.instances.show(PROJECT, "c1").config
    await home.daemon.instances.patch(PROJECT, "c1", _put(home, config={"user.a": "b"}))
    after = home.daemon.instances.show(PROJECT, "c1").config
    assert after["volatile.uuid"] == before["volatile.uuid"]
    await home.daemon.instances.patch(PROJECT, "c1", _put(home, config={"volatile.uuid": "another's"}))
    assert home.daemon.instances.show(PROJECT, "c1").config["volatile.uuid"] == before["volatile.uuid"]


async def test_edit_cannot_take_the_root_away(home: House):
    await home.create()
    with pytest.raises(BadRequest, match='root disk is on pool "default"'):
        await home.daemon.instances.patch(PROJECT, "c1", _put(home, profiles=[]))


async def test_profile_edits(home: House):
    await home.daemon.profiles.create(PROJECT, ProfilesPost(name="extra", config={"user.x": "1"}))
    await home.create(profiles=["default", "extra"])
    assert home.daemon.instances.show(PROJECT, "c1").expanded_config["user.x"] == "1"
    assert home.daemon.profiles.show(PROJECT, "extra").used_by == ["/1.0/instances/c1"]
    with pytest.raises(BadRequest, match="currently in use"):
        await home.daemon.profiles.delete(PROJECT, "extra")
    await home.daemon.profiles.rename(PROJECT, "extra", ProfilePost(name="other"))
    assert home.daemon.instances.show(PROJECT, "c1").profiles == ["default", "other"]
    with pytest.raises(BadRequest, match="would lose its root disk"):
        await home.daemon.profiles.update(PROJECT, "default", ProfilePut())
    with pytest.raises(Forbidden):
        await home.daemon.profiles.delete(PROJECT, "default")
    with pytest.raises(Conflict, match="already exists"):
        await home.daemon.profiles.create(PROJECT, ProfilesPost(name="other"))


# --- rename and delete ---


async def test_rename(home: House):
    await home.create()
    await home.done(await home.daemon.instances.rename(PROJECT, "c1", InstancePost(name="c2")))
    assert home.daemon.instances.names(PROJECT) == ["c2"]
    assert home.host_state()["volumes"] == ["c2"]
    await home.act("start", "c2")
    with pytest.raises(BadRequest, match="running"):
        await home.daemon.instances.rename(PROJECT, "c2", InstancePost(name="c3"))


@pytest.mark.parametrize("position", range(3))
async def test_rename_that_fails_is_undone(home: House, position: int):
    await home.create()
    before = home.host_state()

    async def fail_at(_plan: object, index: int, _step: object) -> None:
        if index == position:
            raise HostError("power cut", 5)

    home.daemon.journal.before_step = fail_at
    with pytest.raises(FlexdError, match="power cut"):
        await home.done(await home.daemon.instances.rename(PROJECT, "c1", InstancePost(name="c2")))
    home.daemon.journal.before_step = None
    assert home.host_state() == before
    await home.act("start")


async def test_delete_is_refused_where_it_must_be(home: House):
    await home.create(config={"security.protection.delete": "true"})
    with pytest.raises(Forbidden, match="protected"):
        await home.delete()
    await home.daemon.instances.patch(PROJECT, "c1", _put(home, config={}))
    await home.act("start")
    with pytest.raises(BadRequest, match="Instance is running"):
        await home.delete()
    await home.act("stop", force=True)
    await home.delete()
    assert home.daemon.instances.names(PROJECT) == []


# --- restarts ---


async def test_a_new_daemon_finds_what_runs(home: House, tmp_path: Path):
    await home.create()
    await home.act("start")
    await restart(home, tmp_path)
    assert home.status() == "Running"
    home.runtime.end("c1")
    await _settled(lambda: home.status() == "Stopped")


async def test_what_ended_unseen_is_cleaned_up(home: House, tmp_path: Path):
    await home.create()
    created = home.host_state()
    await home.act("start")
    await home.daemon.lifecycle.close()
    home.runtime.end("c1")
    await restart(home, tmp_path)
    await _settled(lambda: home.host_state() == created)
    assert home.status() == "Stopped"


async def test_after_a_reboot_of_the_host(home: House, tmp_path: Path):
    await home.create("ran")
    await home.create("never", config={"boot.autostart": "false"})
    await home.create("always", config={"boot.autostart": "true", "boot.autostart.priority": "10"})
    await home.create("rested")
    for name in ("ran", "never"):
        await home.act("start", name)
        home.runtime._running.pop(name)
    await restart(home, tmp_path, rebooted=True)
    await _settled(lambda: home.status("ran") == "Running")
    assert [home.status(name) for name in ("always", "never", "rested")] == ["Running", "Stopped", "Stopped"]


async def test_isolated_maps_differ(home: House):
    for name in ("a", "b"):
        await home.create(name, config={"security.idmap.isolated": "true"})
        await home.act("start", name)
    maps = [home.runtime.specs[name].idmap for name in ("a", "b")]
    assert maps[0].host_uid(0) != maps[1].host_uid(0)
    assert {idmap.entries[0].count for idmap in maps} == {65536}
