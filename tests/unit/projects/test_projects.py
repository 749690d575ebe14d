# SPDX-License-Identifier: Apache-2.0
"""Whose things a project uses, and writing with its limits held, by one daemon and by two on one store."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, FlexdError, Forbidden
from flexd.operations.locks import Locks
from flexd.projects.keys import FEATURES, KEYS, Rules, config_faults, parse_ranges
from flexd.projects.projects import Feature, Projects
from flexd.projects.record import ProjectNotFound, ProjectRecord, check_project_name
from flexd.store.contract import Put, RevisionConflict
from flexd.store.mirror import StoreMirror
from flexd.store.sqlite import SqliteStore

ALL: tuple[Feature, ...] = ("images", "networks", "profiles", "storage.volumes")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "store.db")
    yield store
    await store.close()


@pytest.fixture
async def mirror(store: SqliteStore) -> AsyncIterator[StoreMirror]:
    mirror = await StoreMirror.open(store)
    yield mirror
    await mirror.close()


@pytest.fixture
async def projects(mirror: StoreMirror) -> Projects:
    projects = Projects(mirror, Locks())
    await projects.start()
    return projects


async def add(projects: Projects, name: str, **config: str) -> None:
    record = ProjectRecord(name, config={key.replace("__", "."): value for key, value in config.items()})
    await projects.documents.create((name,), record)


# --- features ---


async def test_the_default_project_has_every_feature_and_owns_its_things(projects: Projects):
    await projects.start()  # once more: it is there already
    assert projects.names() == ["default"]
    assert set(projects.find("default").value.config) == set(FEATURES)
    assert [projects.owner("default", feature) for feature in ALL] == ["default"] * 4


@pytest.mark.parametrize("feature", ALL)
@pytest.mark.parametrize(("value", "own"), [("true", True), ("1", True), ("false", False), ("", False)])
async def test_a_feature_decides_whose_things_are_used(projects: Projects, feature: Feature, value: str, own: bool):
    await projects.documents.create(("p",), ProjectRecord("p", config={f"features.{feature}": value}))
    assert projects.owner("p", feature) == ("p" if own else "default")
    assert projects.owner(projects.owner("p", feature), feature) == projects.owner("p", feature)
    for other in set(ALL) - {feature}:
        assert projects.owner("p", other) == "default"
    assert projects.sharing("default", feature) == (["default"] if own else ["default", "p"])
    assert projects.sharing("p", feature) == (["p"] if own else [])


async def test_a_project_that_is_not_there(projects: Projects):
    assert not projects.has("nope")
    assert projects.value("nope", "limits.cpu") == ""
    assert projects.owner("nope", "images") == "default"
    with pytest.raises(ProjectNotFound):
        projects.find("nope")


@pytest.mark.parametrize("name", ["p", "A.b-c", "9", "x" * 63])
def test_names(name: str):
    check_project_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "No name provided"),
        ("a/b", "may not contain slashes"),
        ("a_b", "may not contain underscores"),
        ("a b", "may not contain spaces"),
        ("a'b", "may not contain quotes"),
        ('a"b', "may not contain quotes"),
        ("*", "Reserved project name"),
        (".", "Invalid project name"),
        ("..", "Invalid project name"),
        ("-a", "Invalid project name"),
        ("a+b", "Invalid project name"),
        ("a\nb", "Invalid project name"),
        ("x" * 64, "Invalid project name"),
    ],
)
def test_names_that_are_none(name: str, message: str):
    with pytest.raises(BadRequest, match=message):
        check_project_name(name)


# --- keys ---


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("features.images", "maybe"),
        ("limits.instances", "-1"),
        ("limits.cpu", "0-3"),
        ("limits.memory", "50%"),
        ("limits.memory", "-1"),
        ("limits.processes", "many"),
        ("limits.disk.pool.nope", "1GiB"),
        ("limits.disk.pool.p", "large"),
        ("restricted", "maybe"),
        ("restricted.devices.disk", "some"),
        ("restricted.devices.disk.paths", "relative"),
        ("restricted.devices.disk.paths", "/a/../b"),
        ("restricted.containers.privilege", "block"),
        ("restricted.idmap.uid", "1000-x"),
        ("restricted.idmap.gid", "2000-1000"),
        ("restricted.networks.subnets", "x"),
        ("restricted.snapshots", "full"),
        ("unknown", "1"),
        ("user", "1"),
    ],
)
def test_wrong_values(key: str, value: str):
    (fault,) = config_faults({key: value}, KEYS, ["p"])
    assert fault.path == f"config.{key}"


def test_right_values():
    config = {
        "features.networks": "true",
        "limits.containers": "0",
        "limits.disk.pool.p": "1GiB",
        "limits.memory": "1GiB",
        "restricted.devices.disk.paths": "/srv/a, /srv/b",
        "restricted.idmap.uid": "1000-1999,5",
        "restricted.networks.subnets": "up:192.0.2.0/24",
        "user.owner": "somebody",
    }
    assert config_faults(config, KEYS, ["p"]) == []
    assert parse_ranges("1000-1999, 5") == [(1000, 1999), (5, 5)]


def test_rules_count_only_while_restricted():
    assert not Rules("p", {"restricted.snapshots": "block"}).blocks("snapshots")
    assert Rules("p", {"restricted": "true"}).blocks("snapshots")
    assert not Rules("p", {"restricted": "true", "restricted.snapshots": "allow"}).blocks("snapshots")
    assert Rules("p", {"restricted.networks.access": "a,b"}).listed("networks.access") is None
    assert Rules("p", {"restricted": "true", "restricted.networks.access": "a, b"}).listed("networks.access") == [
        "a",
        "b",
    ]
    assert Rules("p", {"restricted": "true"}).listed("networks.access") is None


@pytest.mark.parametrize(
    ("config", "check", "message"),
    [
        ({}, lambda p: p.check_snapshots("p"), "snapshot creation"),
        ({}, lambda p: p.check_backups("p"), "backup creation"),
        ({}, lambda p: p.check_target("p", "one"), "targeting"),
        (
            {"restricted.cluster.target": "allow", "restricted.cluster.groups": "fast"},
            lambda p: p.check_target("p", "@slow"),
            'group "slow"',
        ),
        ({"restricted.storage-pools.access": "a,b"}, lambda p: p.check_pool("p", "c"), 'storage pool "c"'),
        (
            {"restricted.images.servers": "images.example"},
            lambda p: p.check_image_server("p", "other.example"),
            "other.example",
        ),
    ],
)
async def test_what_a_project_alone_decides(projects: Projects, config: dict[str, str], check, message: str):
    await projects.documents.create(("p",), ProjectRecord("p", config={"restricted": "true", **config}))
    with pytest.raises(Forbidden, match=message):
        check(projects)
    free = {"restricted.snapshots": "allow", "restricted.backups": "allow", "restricted.cluster.target": "allow"}
    found = projects.find("p")
    await projects.documents.update(("p",), ProjectRecord("p", config={"restricted": "true", **free}), found.revision)
    check(projects)


# --- writing ---


def _things(mirror: StoreMirror) -> int:
    return len(mirror.list("/things/"))


async def _take(projects: Projects, mirror: StoreMirror, name: str, limit: int) -> bool:
    """Write a document unless there are enough."""

    def check() -> None:
        if _things(mirror) >= limit:
            raise Forbidden("enough")

    try:
        await projects.write(["default"], [Put(f"/things/{name}", b"{}")], check=check)
    except Forbidden:
        return False
    return True


async def test_of_many_at_once_no_more_get_in_than_fit(projects: Projects, mirror: StoreMirror):
    taken = await asyncio.gather(*(_take(projects, mirror, f"t{n}", 3) for n in range(20)))
    assert sum(taken) == 3
    assert _things(mirror) == 3


async def test_nor_of_two_daemons_on_one_store(projects: Projects, mirror: StoreMirror, store: SqliteStore):
    """They share no locks: the store's transactions decide."""
    other = await StoreMirror.open(store)
    others = Projects(other, Locks())
    work = [_take(projects, mirror, f"a{n}", 3) for n in range(8)]
    work += [_take(others, other, f"b{n}", 3) for n in range(8)]
    assert sum(await asyncio.gather(*work)) == 3
    assert _things(mirror) == 3
    await other.close()


async def test_nothing_is_written_in_a_project_that_goes(projects: Projects, mirror: StoreMirror):
    await add(projects, "p")
    await projects.write(["p"], projects.gone("p"))
    assert not projects.has("p")
    with pytest.raises(ProjectNotFound):
        await projects.write(["p"], [Put("/things/x", b"{}")])
    assert _things(mirror) == 0
    assert mirror.list("/project-turns/") == []


async def test_a_failed_check_and_a_failed_condition_write_nothing(projects: Projects, mirror: StoreMirror):
    def refuse() -> None:
        raise Forbidden("no")

    with pytest.raises(Forbidden):
        await projects.write(["default"], [Put("/things/x", b"{}")], check=refuse)
    taken = projects.documents.unchanged(("nope",), 7)
    with pytest.raises(RevisionConflict):
        await projects.write(["default"], [Put("/things/x", b"{}")], [taken])
    assert _things(mirror) == 0


async def test_who_loses_every_time_is_told(projects: Projects, mirror: StoreMirror):
    """Somebody else writes between each look and each write: as another daemon would that never stops."""
    real = mirror.txn

    async def late(ops, conditions=()):
        await real([Put("/project-turns/default", b"{}")])
        return await real(ops, conditions)

    mirror.txn = late
    with pytest.raises(FlexdError, match="try again"):
        await projects.write(["default"], [Put("/things/x", b"{}")])
    mirror.txn = real
    await projects.write(["default"], [Put("/things/x", b"{}")])
