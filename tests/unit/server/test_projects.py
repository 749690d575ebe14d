# SPDX-License-Identifier: Apache-2.0
"""Projects over the API of a whole daemon on fakes: made, changed, kept apart, limited and restricted."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs

from flexd.api.times import now
from tests.unit.server.conftest import Client, tiny_image

ROOT = {"type": "disk", "path": "/", "pool": "default"}
P = "?project=p"


async def make(client: Client, name: str = "p", **config: str) -> None:
    """A project whose default profile has a root disk, where profiles are its own."""
    settings = {key.replace("__", "."): value for key, value in config.items()}
    answer = await client.call("POST", "/1.0/projects", {"name": name, "config": settings})
    assert answer.status == 201, answer.body
    if settings.get("features.profiles") != "false":
        await client.call("PATCH", f"/1.0/profiles/default?project={name}", {"devices": {"root": ROOT}})


async def configure(client: Client, config: dict[str, str], name: str = "p") -> str:
    """Its error, if there is one."""
    return (await client.call("PATCH", f"/1.0/projects/{name}", {"config": config})).error


async def create(client: Client, name: str, project: str = "p", **fields: Any) -> str:
    """An instance; the error if that fails."""
    body = {"name": name, "source": {"type": "none"}, **fields}
    answer = await client.call("POST", f"/1.0/instances?project={project}", body)
    if answer.status != 202:
        return answer.error
    ended = await client.call("GET", f"{answer.envelope['operation']}/wait?timeout=20")
    return str(ended.metadata["err"])


async def names(client: Client, path: str) -> list[str]:
    return [url.rpartition("/")[2] for url in (await client.call("GET", path)).metadata]


@pytest.fixture
async def house(client: Client) -> Client:
    await client.prepare()
    return client


# --- made, changed, removed ---


async def test_a_project_from_birth_to_death(house: Client):
    answer = await house.call("POST", "/1.0/projects", {"name": "p", "description": "mine", "config": {"user.a": "b"}})
    assert (answer.status, answer.headers["Location"]) == (201, "/1.0/projects/p")
    shown = await house.call("GET", "/1.0/projects/p")
    own = {"features.images": "true", "features.profiles": "true", "features.storage.volumes": "true"}
    assert shown.metadata == {
        "name": "p",
        "description": "mine",
        "config": {**own, "user.a": "b"},
        "used_by": ["/1.0/profiles/default?project=p"],
    }
    put = {"description": "ours", "config": {**own, "limits.cpu": "4", "user.a": ""}}
    stale = await house.call("PUT", "/1.0/projects/p", put, If_Match="wrong")
    assert stale.status == 412
    assert (await house.call("PUT", "/1.0/projects/p", put, If_Match=shown.headers["ETag"])).status == 200
    assert await configure(house, {"user.c": "d"}) == ""
    changed = (await house.call("GET", "/1.0/projects/p")).metadata
    assert (changed["description"], changed["config"]) == ("ours", {**own, "limits.cpu": "4", "user.c": "d"})
    await house.done("POST", "/1.0/projects/p", {"name": "q"})
    assert await names(house, "/1.0/projects") == ["default", "q"]
    profile = (await house.call("GET", "/1.0/profiles/default?project=q")).metadata
    assert profile["description"] == "Default LXD profile for project p"
    assert (await house.call("DELETE", "/1.0/projects/q")).status == 200
    assert await names(house, "/1.0/projects") == ["default"]
    assert (await house.call("GET", "/1.0/profiles?project=q")).status == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "", {"name": "a_b"}, 400, "underscores"),
        ("POST", "", {"name": "p"}, 409, 'Project "p" already exists'),
        ("POST", "", {"name": "x", "config": {"features.nothing": "true"}}, 400, "unknown configuration key"),
        ("POST", "", {"name": "x", "config": {"limits.disk.pool.nope": "1GiB"}}, 400, 'pool "nope" not found'),
        ("PATCH", "/default", {"config": {"features.images": "false"}}, 400, "features of the default project"),
        ("POST", "/default", {"name": "x"}, 403, "cannot be renamed"),
        ("DELETE", "/default", None, 403, "cannot be deleted"),
        ("DELETE", "/nope", None, 404, "Project not found"),
        ("GET", "/nope/state", None, 404, "Project not found"),
        ("PATCH", "/nope", {}, 404, "Project not found"),
        ("POST", "/nope", {"name": "x"}, 404, "Project not found"),
        ("POST", "/p", {"name": "a b"}, 400, "spaces"),
        ("PATCH", "/p", {"config": {"restricted.snapshots": "some"}}, 400, "config.restricted.snapshots"),
    ],
)
async def test_refusals(house: Client, method: str, path: str, body: Any, status: int, message: str):
    await make(house)
    answer = await house.call(method, f"/1.0/projects{path}", body)
    assert answer.status == status
    assert message in answer.error


async def test_a_project_with_something_in_it_stays(house: Client):
    await make(house)
    await create(house, "c1")
    answer = await house.call("DELETE", "/1.0/projects/p")
    assert (answer.status, answer.error) == (
        400,
        "Only empty projects can be removed (used by /1.0/instances/c1?project=p)",
    )
    renaming = await house.call("POST", "/1.0/projects/p", {"name": "q"})
    ended = await house.call("GET", f"{renaming.envelope['operation']}/wait")
    assert "Only empty projects can be renamed" in ended.metadata["err"]
    for feature in ("images", "profiles", "storage.volumes"):
        error = await configure(house, {f"features.{feature}": "false"})
        assert f'Project feature "features.{feature}" cannot be disabled on non-empty projects' in error
    await house.done("DELETE", f"/1.0/instances/c1{P}")
    assert (await house.call("DELETE", "/1.0/projects/p")).status == 200


async def test_renaming_to_a_name_that_is_taken(house: Client):
    await make(house)
    await make(house, "q")
    renaming = await house.call("POST", "/1.0/projects/p", {"name": "q"})
    ended = await house.call("GET", f"{renaming.envelope['operation']}/wait")
    assert ended.metadata["err"] == 'A project named "q" already exists'
    assert await names(house, "/1.0/projects") == ["default", "p", "q"]


async def test_the_default_project_can_be_limited(house: Client):
    assert await configure(house, {"limits.instances": "1"}, "default") == ""
    assert await create(house, "c1", "default") == ""
    assert "Reached maximum number of instances" in await create(house, "c2", "default")


async def test_the_default_profile_comes_and_goes_with_its_feature(house: Client):
    await make(house, features__profiles="false")
    assert (await house.call("GET", "/1.0/projects/p")).metadata["used_by"] == []
    assert await names(house, f"/1.0/profiles{P}") == ["default"]
    assert await configure(house, {"features.profiles": "true"}) == ""
    assert await names(house, f"/1.0/profiles{P}") == ["default?project=p"]
    assert await configure(house, {"features.profiles": "false"}) == ""
    assert (await house.call("GET", "/1.0/projects/p")).metadata["used_by"] == []


# --- kept apart ---


async def test_the_same_name_in_two_projects(house: Client):
    await make(house)
    for project in ("default", "p"):
        assert await create(house, "c1", project) == ""
        await house.done("PUT", f"/1.0/instances/c1/state?project={project}", {"action": "start"})
    running = [await house.runtime.find(name) for name in ("c1", "p_c1")]
    assert len({container.init.pid for container in running if container is not None}) == 2
    both = (await house.call("GET", "/1.0/instances?all-projects=true&recursion=1")).metadata
    assert [(each["project"], each["name"], each["status"]) for each in both] == [
        ("default", "c1", "Running"),
        ("p", "c1", "Running"),
    ]
    assert await names(house, "/1.0/instances") == ["c1"]
    await house.done("PUT", f"/1.0/instances/c1/state{P}", {"action": "stop", "force": True})
    assert (await house.call("GET", "/1.0/instances/c1")).metadata["status"] == "Running"
    assert (await house.call("GET", f"/1.0/instances/c1{P}")).metadata["status"] == "Stopped"
    await house.done("POST", f"/1.0/instances/c1/snapshots{P}", {"name": "s"})
    assert await names(house, "/1.0/instances/c1/snapshots") == []
    await house.done("DELETE", f"/1.0/instances/c1{P}")
    assert await names(house, "/1.0/instances") == ["c1"]


async def test_profiles_of_its_own_and_shared_ones(house: Client):
    await make(house)
    await make(house, "shared", features__profiles="false")
    for project in ("default", "p"):
        assert (await house.call("POST", f"/1.0/profiles?project={project}", {"name": f"{project}s"})).status == 201
    assert await names(house, "/1.0/profiles?project=shared") == ["default", "defaults"]
    assert await names(house, f"/1.0/profiles{P}") == ["default?project=p", "ps?project=p"]
    assert "doesn't exist" in await create(house, "c1", "p", profiles=["default", "defaults"])
    assert await create(house, "c1", "shared", profiles=["default"]) == ""
    assert await create(house, "c1", "p", profiles=["default", "ps"]) == ""
    shown = (await house.call("GET", "/1.0/profiles/default")).metadata
    assert shown["used_by"] == ["/1.0/instances/c1?project=shared"]
    # Through the project that shares it, a change is one of the default project's profile, and reaches its users.
    await house.call("PATCH", "/1.0/profiles/default?project=shared", {"config": {"user.k": "v"}})
    assert (await house.call("GET", "/1.0/instances/c1?project=shared")).metadata["expanded_config"]["user.k"] == "v"
    assert "user.k" not in (await house.call("GET", f"/1.0/instances/c1{P}")).metadata["expanded_config"]
    everything = await names(house, "/1.0/profiles?all-projects=true")
    assert everything == ["default", "defaults", "default?project=p", "ps?project=p"]
    renamed = await house.call("POST", f"/1.0/profiles/ps{P}", {"name": "q"})
    assert renamed.headers["Location"] == "/1.0/profiles/q?project=p"
    assert (await house.call("GET", f"/1.0/instances/c1{P}")).metadata["profiles"] == ["default", "q"]


async def test_images_of_its_own_and_shared_ones(house: Client):
    await make(house)
    await make(house, "shared", features__images="false")
    operation = await house.done("POST", "/1.0/images", tiny_image())
    fingerprint = operation["metadata"]["fingerprint"]
    await house.call("POST", "/1.0/images/aliases", {"name": "tiny", "target": fingerprint})
    assert await names(house, f"/1.0/images{P}") == []
    assert (await house.call("GET", f"/1.0/images/{fingerprint}{P}")).status == 404
    assert await names(house, "/1.0/images?project=shared") == [fingerprint]
    assert await names(house, "/1.0/images/aliases?project=shared") == ["tiny"]
    assert await create(house, "c1", "shared", source={"type": "image", "alias": "tiny"}) == ""
    assert "not found" in await create(house, "c1", "p", source={"type": "image", "alias": "tiny"})
    await house.done("POST", f"/1.0/images{P}", tiny_image())
    assert await names(house, f"/1.0/images{P}") == [f"{fingerprint}?project=p"]
    both = await names(house, "/1.0/images?all-projects=true")
    assert both == [fingerprint, f"{fingerprint}?project=p"]
    await house.done("DELETE", f"/1.0/images/{fingerprint}")
    assert await create(house, "c1", "p", source={"type": "image", "fingerprint": fingerprint}) == ""


async def test_publishing_from_one_project_into_another(house: Client):
    house.host.processes.harmless |= {"unshare", "setpriv", "rsync", "find"}
    await make(house)
    assert await create(house, "c1", "p") == ""
    source = {"type": "instance", "name": "c1", "project": "p"}
    operation = await house.done("POST", "/1.0/images", {"source": source, "compression_algorithm": "none"})
    fingerprint = operation["metadata"]["fingerprint"]
    assert await names(house, "/1.0/images") == [fingerprint]
    assert await names(house, f"/1.0/images{P}") == []


async def test_volumes_of_its_own_and_shared_ones(house: Client):
    await make(house)
    await make(house, "shared", features__storage__volumes="false")
    url = "/1.0/storage-pools/default/volumes"
    # As storage names these would be the same if an underscore stood between project and name.
    for project, name in (("default", "p_data"), ("p", "data"), ("default", "data")):
        answer = await house.call("POST", f"{url}/custom?project={project}", {"name": name})
        assert answer.status == 200, answer.error
    assert await names(house, f"{url}/custom?project=shared") == ["data", "p_data"]
    assert await names(house, f"{url}/custom{P}") == ["data?project=p"]
    everything = await names(house, f"{url}?all-projects=true")
    assert everything == ["data", "p_data", "data?project=p"]
    disk = {"type": "disk", "path": "/d", "pool": "default", "source": "data"}
    for project in ("p", "shared"):
        assert await create(house, "c1", project, devices={"d": disk}) == ""
        await house.done("PUT", f"/1.0/instances/c1/state?project={project}", {"action": "start"})
    assert (await house.call("GET", f"{url}/custom/data{P}")).metadata["used_by"] == ["/1.0/instances/c1?project=p"]
    shown = (await house.call("GET", f"{url}/custom/data?project=shared")).metadata
    assert (shown["project"], shown["used_by"]) == ("default", ["/1.0/instances/c1?project=shared"])
    assert "not found" in await create(house, "c2", "p", devices={"d": {**disk, "source": "p_data"}})
    assert (await house.call("DELETE", f"{url}/custom/data{P}")).status == 400
    assert (await house.call("DELETE", f"{url}/custom/p_data")).status == 200
    assert (await house.call("GET", f"{url}/container/c1{P}")).metadata["used_by"] == ["/1.0/instances/c1?project=p"]


async def test_a_volume_moves_to_another_project(house: Client):
    await make(house)
    url = "/1.0/storage-pools/default/volumes/custom"
    await house.call("POST", url, {"name": "data", "config": {"user.a": "b"}})
    await house.done("POST", f"{url}/data", {"name": "data", "pool": "default", "project": "p"})
    assert await names(house, url) == []
    assert (await house.call("GET", f"{url}/data{P}")).metadata["config"]["user.a"] == "b"
    source = {"type": "copy", "pool": "default", "name": "data", "project": "p"}
    await house.done("POST", url, {"name": "copy", "source": source})
    assert await names(house, url) == ["copy"]


async def test_networks_are_the_default_projects(house: Client):
    await house.call("POST", "/1.0/networks", {"name": "fxpjbr", "config": {"ipv4.address": "198.18.52.1/24"}})
    await make(house)
    await make(house, "alone", features__networks="true")
    assert "fxpjbr" in await names(house, f"/1.0/networks{P}")
    assert await names(house, "/1.0/networks?project=alone") == []
    assert (await house.call("GET", "/1.0/networks/fxpjbr?project=alone")).status == 404
    for path in ("/1.0/networks/fxpjbr/state", "/1.0/networks/fxpjbr/leases"):
        assert (await house.call("GET", f"{path}?project=alone")).status == 404
        assert (await house.call("GET", f"{path}{P}")).status == 200
    answer = await house.call("POST", "/1.0/networks?project=alone", {"name": "fxpjb2"})
    assert (answer.status, answer.error) == (400, "Network type does not support non-default projects")
    nic = {"type": "nic", "network": "fxpjbr"}
    assert await create(house, "c1", "p", devices={"eth0": nic}) == ""
    assert 'Network "fxpjbr" not found' in await create(house, "c1", "alone", devices={"eth0": nic})
    assert (await house.call("GET", "/1.0/networks/fxpjbr")).metadata["used_by"] == ["/1.0/instances/c1?project=p"]
    assert "fxpjbr" in await names(house, "/1.0/networks?all-projects=true")


async def test_operations_and_events_are_a_projects(house: Client):
    await make(house)
    with house.daemon.events.subscribe(["lifecycle"], "p") as heard:
        await create(house, "c1", "default")
        await create(house, "c2", "p")
        event = await anext(aiter(heard))
    assert (event.project, event.metadata["source"]) == ("p", "/1.0/instances/c2?project=p")
    assert len((await house.call("GET", f"/1.0/operations{P}")).metadata["success"]) == 1
    assert len((await house.call("GET", "/1.0/operations?all-projects=true")).metadata["success"]) == 2


async def test_an_instance_moves_to_another_project(house: Client):
    await make(house)
    assert await create(house, "c1", "default", config={"user.a": "b"}) == ""
    await house.done("POST", "/1.0/instances/c1/snapshots", {"name": "s"})
    await house.done("POST", "/1.0/instances/c1", {"name": "c1", "migration": True, "project": "p"})
    assert await names(house, "/1.0/instances") == []
    assert (await house.call("GET", f"/1.0/instances/c1{P}")).metadata["config"]["user.a"] == "b"
    assert await names(house, f"/1.0/instances/c1/snapshots{P}") == ["s?project=p"]
    volumes = await names(house, f"/1.0/storage-pools/default/volumes/container{P}")
    assert volumes == ["c1?project=p", "s?project=p"]
    await house.done("PUT", f"/1.0/instances/c1/state{P}", {"action": "start"})
    moving = await house.call("POST", f"/1.0/instances/c1{P}", {"name": "c1", "project": "default"})
    assert (moving.status, "not allowed" in moving.error) == (400, True)
    await house.done("PUT", f"/1.0/instances/c1/state{P}", {"action": "stop", "force": True})
    await house.done("POST", f"/1.0/instances/c1{P}", {"name": "c2", "project": "default"})
    assert await names(house, "/1.0/instances") == ["c2"]
    await house.done("PUT", "/1.0/instances/c2", {"restore": "s", "profiles": ["default"]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"limits.containers": "0"}, "Reached maximum number of instances"),
        ({"limits.memory": "1GiB"}, 'has no "limits.memory" config'),
        ({"restricted": "true"}, "Container nesting is forbidden"),
    ],
)
async def test_a_move_that_the_other_project_does_not_allow(house: Client, config: dict[str, str], message: str):
    await make(house)
    await configure(house, config)
    assert await create(house, "c1", "default", config={"security.nesting": "true"}) == ""
    answer = await house.call("POST", "/1.0/instances/c1", {"name": "c1", "project": "p"})
    assert (answer.status, message in answer.error) == (403, True)
    assert await names(house, "/1.0/instances") == ["c1"]


async def test_a_move_to_where_something_is_missing(house: Client):
    await make(house)
    await house.call("POST", "/1.0/profiles", {"name": "extra"})
    assert await create(house, "c1", "default", profiles=["default", "extra"]) == ""
    answer = await house.call("POST", "/1.0/instances/c1", {"name": "c1", "project": "p"})
    assert (answer.status, 'profile "extra" doesn\'t exist' in answer.error) == (400, True)
    assert (await house.call("POST", "/1.0/instances/c1", {"name": "c1", "project": "nope"})).status == 404


async def test_a_copy_into_another_project(house: Client):
    await make(house)
    assert await create(house, "c1", "default") == ""
    assert await create(house, "c1", "p", source={"type": "copy", "source": "c1", "project": "default"}) == ""
    assert await names(house, f"/1.0/instances{P}") == ["c1?project=p"]


# --- limited ---


async def test_state(house: Client):
    await make(house, limits__memory="1GiB", limits__disk__pool__default="10GiB", limits__instances="5")
    config = {"limits.memory": "256MiB", "limits.cpu": "2"}
    assert 'has no "size" config set' in await create(house, "c1", config=config)
    state = (await house.call("GET", "/1.0/projects/p/state")).metadata["resources"]
    assert state["disk.default"] == {"Limit": 10 * 2**30, "Usage": 0}
    await configure(house, {"limits.disk.pool.default": ""})
    assert await create(house, "c1", config=config) == ""
    resources = (await house.call("GET", "/1.0/projects/p/state")).metadata["resources"]
    assert resources == {
        "containers": {"Limit": -1, "Usage": 1},
        "cpu": {"Limit": -1, "Usage": 2},
        "disk": {"Limit": -1, "Usage": 0},
        "instances": {"Limit": 5, "Usage": 1},
        "memory": {"Limit": 2**30, "Usage": 2**28},
        "networks": {"Limit": -1, "Usage": 0},
        "processes": {"Limit": -1, "Usage": 0},
        "virtual-machines": {"Limit": -1, "Usage": 0},
    }


async def test_a_limit_that_is_reached(house: Client):
    await make(house, limits__memory="1GiB")
    for name, memory in (("c1", "600MiB"), ("c2", "300MiB")):
        assert await create(house, name, config={"limits.memory": memory}) == ""
    body = {"name": "c3", "source": {"type": "none"}, "config": {"limits.memory": "200MiB"}}
    answer = await house.call("POST", f"/1.0/instances{P}", body)
    assert (answer.status, answer.error) == (
        403,
        'Reached maximum aggregate value for "limits.memory" in project "p": 1100MiB where 1GiB is the limit, '
        'used by instance "c1" (600MiB), instance "c2" (300MiB), instance "c3" (200MiB)',
    )
    changed = await house.call("PATCH", f"/1.0/instances/c2{P}", {"config": {"limits.memory": "500MiB"}})
    assert changed.status == 403
    changed = await house.call("PATCH", f"/1.0/instances/c2{P}", {"config": {"limits.memory": "424MiB"}})
    assert changed.status == 200
    unset = await house.call("PATCH", f"/1.0/instances/c2{P}", {"config": {"limits.memory": ""}})
    assert (unset.status, "has no" in unset.error) == (403, True)
    copy = {"name": "c3", "source": {"type": "copy", "source": "c1"}}
    assert (await house.call("POST", f"/1.0/instances{P}", copy)).status == 403


async def test_a_limit_that_is_too_low(house: Client):
    await make(house)
    assert await create(house, "c1", config={"limits.memory": "600MiB"}) == ""
    assert await create(house, "c2", config={"limits.memory": "100MiB"}) == ""
    answer = await house.call("PATCH", "/1.0/projects/p", {"config": {"limits.memory": "500MiB"}})
    assert answer.status == 400
    assert '700MiB where 500MiB is the limit, used by instance "c1" (600MiB), instance "c2" (100MiB)' in answer.error
    answer = await house.call("PATCH", "/1.0/projects/p", {"config": {"limits.cpu": "5", "limits.instances": "1"}})
    for message in (
        '"limits.instances" is too low',
        'Instance "c1"',
        'Instance "c2" in project "p" has no "limits.cpu"',
    ):
        assert message in answer.error
    assert "limits.cpu" not in (await house.call("GET", "/1.0/projects/p")).metadata["config"]


async def test_an_edit_of_a_profile_counts_for_all_its_users(house: Client):
    await make(house, features__profiles="false", limits__memory="1GiB")
    await house.call("POST", "/1.0/profiles", {"name": "size", "config": {"limits.memory": "400MiB"}})
    for name in ("c1", "c2"):
        assert await create(house, name, profiles=["default", "size"]) == ""
    answer = await house.call("PUT", "/1.0/profiles/size", {"config": {"limits.memory": "600MiB"}})
    assert (answer.status, "1200MiB where 1GiB is the limit" in answer.error) == (403, True)
    assert (await house.call("PUT", "/1.0/profiles/size", {"config": {"limits.memory": "500MiB"}})).status == 200
    assert (await house.call("PUT", "/1.0/profiles/size", {"config": {}})).status == 403


async def test_what_is_the_servers_is_listed_once(house: Client):
    await make(house)
    for query in ("", P, "?all-projects=true"):
        assert (await house.call("GET", f"/1.0/storage-pools{query}")).metadata == ["/1.0/storage-pools/default"]
        recursive = f"/1.0/storage-pools{query}{'&' if query else '?'}recursion=1"
        assert len((await house.call("GET", recursive)).metadata) == 1
    everything = (await house.call("GET", "/1.0/warnings")).metadata
    assert (await house.call("GET", "/1.0/warnings?all-projects=true")).metadata == everything
    assert (await house.call("GET", f"/1.0/warnings{P}")).metadata == []


async def test_networks_are_counted(house: Client):
    assert await configure(house, {"limits.networks": "1"}, "default") == ""
    made = await house.call("POST", "/1.0/networks", {"name": "fxpjb1", "config": {"ipv4.address": "198.18.52.1/24"}})
    assert made.status == 201
    more = await house.call("POST", "/1.0/networks", {"name": "fxpjb2", "config": {"ipv4.address": "198.18.53.1/24"}})
    assert (more.status, 'used by network "fxpjb1", network "fxpjb2"' in more.error) == (403, True)
    assert "is too low" in await configure(house, {"limits.networks": "0"}, "default")


async def test_volumes_and_images_count_as_disk(house: Client):
    await make(house)
    image = tiny_image()
    await house.done("POST", f"/1.0/images{P}", image)
    assert await configure(house, {"limits.disk": "20KiB"}) == ""
    url = f"/1.0/storage-pools/default/volumes/custom{P}"
    without = await house.call("POST", url, {"name": "v"})
    assert (without.status, without.error) == (403, 'Custom volume "v" in project "p" has no "size" config set')
    other = await house.call("POST", f"/1.0/images{P}", image + b"\0" * 10240)
    ended = await house.call("GET", f"{other.envelope['operation']}/wait")
    assert "Reached maximum aggregate value" in ended.metadata["err"]
    assert len(await names(house, f"/1.0/images{P}")) == 1
    assert "is too low" in await configure(house, {"limits.disk": "1KiB"})


@pytest.mark.parametrize("limit", [{"limits.instances": "3"}, {"limits.memory": "300MiB"}])
async def test_of_many_at_once_no_more_get_in_than_fit(house: Client, limit: dict[str, str]):
    await make(house)
    assert await configure(house, limit) == ""
    config = {"limits.memory": "100MiB"}
    errors = await asyncio.gather(*(create(house, f"c{n}", config=config) for n in range(8)))
    assert errors.count("") == 3
    assert all("Reached maximum" in error for error in errors if error)
    assert len(await names(house, f"/1.0/instances{P}")) == 3
    assert len(await names(house, f"/1.0/storage-pools/default/volumes/container{P}")) == 3


async def test_a_limit_and_a_creation_at_once(house: Client):
    """Whoever comes second sees the other: never both a limit of none and an instance."""
    for attempt in range(4):
        name = f"p{attempt}"
        await make(house, name)
        errors = await asyncio.gather(
            create(house, "c1", name), configure(house, {"limits.instances": "0"}, name), return_exceptions=True
        )
        made = len(await names(house, f"/1.0/instances?project={name}"))
        limited = "limits.instances" in (await house.call("GET", f"/1.0/projects/{name}")).metadata["config"]
        assert (made, limited) in ((1, False), (0, True)), errors


async def test_an_instance_and_the_end_of_its_project_at_once(house: Client):
    for attempt in range(4):
        name = f"p{attempt}"
        await make(house, name)
        results = await asyncio.gather(create(house, "c1", name), house.call("DELETE", f"/1.0/projects/{name}"))
        gone = (await house.call("GET", f"/1.0/projects/{name}")).status == 404
        everything = await names(house, "/1.0/instances?all-projects=true")
        assert (f"c1?project={name}" in everything) != gone, results


# --- restricted ---


async def test_a_restricted_project(house: Client):
    await make(house, restricted="true")
    for config in ({"security.nesting": "true"}, {"raw.lxc": "lxc.environment=A=b"}):
        body = {"name": "c1", "source": {"type": "none"}, "config": config}
        answer = await house.call("POST", f"/1.0/instances{P}", body)
        assert (answer.status, 'on container "c1" of project "p"' in answer.error) == (403, True)
    devices = {"d": {"type": "disk", "path": "/x", "source": "/tmp"}}
    assert "not backed by a pool is forbidden" in await create(house, "c1", devices=devices)
    assert await create(house, "c1") == ""
    url = f"/1.0/instances/c1{P}"
    assert (await house.call("PATCH", url, {"config": {"security.privileged": "true"}})).status == 403
    assert (await house.call("PATCH", url, {"config": {"volatile.idmap.next": "[]"}})).status == 403
    shown = (await house.call("GET", url)).metadata
    assert (await house.call("PATCH", url, {"config": {**shown["config"], "user.a": "b"}})).status == 200
    for path in ("snapshots", "backups"):
        answer = await house.call("POST", f"/1.0/instances/c1/{path}{P}", {"name": "x"})
        assert answer.status == 403
        assert f"doesn't allow for {path.removesuffix('s')} creation" in answer.error
    volumes = "/1.0/storage-pools/default/volumes/custom"
    await house.call("POST", f"{volumes}{P}", {"name": "v"})
    assert (await house.call("POST", f"{volumes}/v/snapshots{P}", {"name": "x"})).status == 403
    bad = {"name": "bad", "config": {"security.nesting": "true"}}
    assert (await house.call("POST", f"/1.0/profiles{P}", bad)).status == 403
    assert (await house.call("PATCH", f"/1.0/profiles/default{P}", {"config": {"raw.lxc": "a=b"}})).status == 403
    assert (await house.call("POST", f"/1.0/instances{P}&target=other", {"name": "x"})).status == 403


async def test_restricting_a_project_that_has_what_is_then_forbidden(house: Client):
    await make(house)
    assert await create(house, "c1", config={"security.nesting": "true"}) == ""
    assert await create(house, "c2", config={"raw.lxc": "lxc.environment=A=b"}) == ""
    answer = await house.call("PATCH", "/1.0/projects/p", {"config": {"restricted": "true"}})
    assert answer.status == 400
    for offender in ('container "c1"', 'container "c2"', "Container nesting is forbidden"):
        assert offender in answer.error
    allowing = {"restricted.containers.nesting": "allow", "restricted.containers.lowlevel": "allow"}
    assert await configure(house, {"restricted": "true", **allowing}) == ""
    assert "Container nesting is forbidden" in await configure(house, {"restricted.containers.nesting": "block"})


async def test_a_shared_profile_cannot_smuggle_what_is_forbidden(house: Client):
    await make(house, features__profiles="false", restricted="true")
    await house.call("POST", "/1.0/profiles", {"name": "nest", "config": {"security.nesting": "true"}})
    assert "Container nesting is forbidden" in await create(house, "c1", profiles=["default", "nest"])
    await house.call("POST", "/1.0/profiles", {"name": "plain"})
    assert await create(house, "c1", profiles=["default", "plain"]) == ""
    answer = await house.call("PUT", "/1.0/profiles/plain", {"config": {"security.privileged": "true"}})
    assert (answer.status, 'container "c1" of project "p"' in answer.error) == (403, True)


async def test_a_snapshot_cannot_bring_back_what_is_forbidden(house: Client):
    await make(house)
    assert await create(house, "c1", config={"security.nesting": "true"}) == ""
    await house.done("POST", f"/1.0/instances/c1/snapshots{P}", {"name": "s"})
    await house.done("PUT", f"/1.0/instances/c1{P}", {"profiles": ["default"], "config": {}})
    assert await configure(house, {"restricted": "true"}) == ""
    answer = await house.call("PUT", f"/1.0/instances/c1{P}", {"restore": "s"})
    assert (answer.status, "Container nesting is forbidden" in answer.error) == (403, True)


async def test_images_of_other_servers_only(house: Client):
    await make(house, restricted="true", restricted__images__servers="images.example")
    source = {"type": "image", "server": "https://other.example", "protocol": "simplestreams", "alias": "x"}
    body = {"name": "c1", "source": source}
    for path in ("/1.0/instances", "/1.0/images"):
        answer = await house.call("POST", f"{path}{P}", body)
        assert (answer.status, "restricted.images.servers" in answer.error) == (403, True)


async def test_keys_that_come_before_the_servers(house: Client):
    await make(house)
    daemon = house.daemon
    assert daemon._setting("p", "images.compression_algorithm") == "gzip"
    own = {"images.compression_algorithm": "none", "backups.compression_algorithm": "none"}
    assert await configure(house, own) == ""
    assert daemon._setting("p", "images.compression_algorithm") == "none"
    assert daemon._setting("default", "images.compression_algorithm") == "gzip"
    assert "is not known" in await configure(house, {"images.default_architecture": "zz"})


async def test_cached_images_expire_by_their_projects_rule(house: Client):
    """Two days unused: too long for one project, not for the server's ten days."""
    await make(house, images__remote_cache_expiry="1")
    images = house.daemon.images
    for project in ("default", "p"):
        operation = await house.done("POST", f"/1.0/images?project={project}", tiny_image())
        fingerprint = operation["metadata"]["fingerprint"]
        await images._registry.change(project, fingerprint, lambda record: structs.replace(record, cached=True))
    await house.daemon.upkeep.tick(now() + timedelta(days=2))
    assert images.fingerprints("default") == [fingerprint]
    assert images.fingerprints("p") == []


async def test_images_are_updated_at_their_projects_interval(house: Client):
    await make(house)
    assert await configure(house, {"images.auto_update_interval": "1"}, "p") == ""
    assert await configure(house, {"images.auto_update_interval": "0"}, "default") == ""
    for project in ("default", "p"):
        await house.done("POST", f"/1.0/images?project={project}", tiny_image())
    upkeep, start = house.daemon.upkeep, now()
    due = {}
    for hours in (1, 2):
        at = start + timedelta(hours=hours, minutes=1)
        due[hours] = [project for project in ("default", "p") if upkeep._is_due(project, at)]
        await upkeep.tick(at)
        assert not upkeep._is_due("p", at)
    assert due == {1: ["p"], 2: ["p"]}
