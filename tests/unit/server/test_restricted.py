# SPDX-License-Identifier: Apache-2.0
"""What a certificate restricted to one project learns of another: nothing, on any route and by any method.

Whatever belongs to the other project has "hidden" in its name."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from flexd.server.app import endpoints
from tests.unit.server.conftest import Client, tiny_image
from tests.unit.server.network_house import Network, Remote, network_of
from tests.unit.server.pki_house import make

ROOT = {"type": "disk", "path": "/", "pool": "default"}
OTHER = "?project=hidden-p"
# Everybody may read these, and nothing of the other project is in them; the socket stays open.
WEBSOCKETS = ("/1.0/events",)
# Their aliases (`/1.0/containers`) have the same handlers, and rows in `access.py` that test_access.py looks at.
PATHS = sorted({endpoint.path for endpoint in endpoints()} - set(WEBSOCKETS))
METHODS = sorted({(endpoint.path, m) for endpoint in endpoints() for m in endpoint.handlers if m != "GET"})


class House:
    """`mine` has a certificate for `mine`, `shared` for a project that shares everything with `default`."""

    def __init__(self, client: Client, network: Network) -> None:
        self.client, self.network = client, network
        self.values: dict[str, list[str]] = {}

    async def furnish(self) -> None:
        client = self.client
        await client.prepare()
        nothing = dict.fromkeys(("features.images", "features.profiles", "features.storage.volumes"), "false")
        for name, config in (("mine", {}), ("hidden-p", {}), ("shared", nothing)):
            await client.call("POST", "/1.0/projects", {"name": name, "config": config})
        network = {"name": "fxpjbr", "config": {"ipv4.address": "198.18.52.1/24"}}
        assert (await client.call("POST", "/1.0/networks", network)).status == 201
        await self._fill("hidden-p", "hidden")
        await self._fill("mine", "own")
        await client.call("POST", "/1.0/profiles", {"name": "common"})
        fingerprint = (await client.call("GET", f"/1.0/images{OTHER}")).metadata[0].rpartition("/")[2].partition("?")[0]
        operation = self.client.daemon.operations.list("hidden-p")[0]
        self.values = {
            "name": ["hidden", "hidden-i", "hidden-v", "hidden-p"],
            "fingerprint": [fingerprint],
            "pool": ["default"],
            "type": ["custom", "container"],
            "snapshot": ["hidden-s"],
            "backup": ["hidden-b"],
            "id": [operation.id],
            "file": ["lxc.log"],
            "uuid": ["hidden"],
            "token": ["hidden"],
        }

    async def _fill(self, project: str, name: str) -> None:
        """One of everything."""
        client, query = self.client, f"?project={project}"
        client.host.processes.harmless |= {"unshare", "setpriv", "rsync", "find"}
        nic = {"type": "nic", "network": "fxpjbr"}
        devices = {"root": ROOT, "eth0": nic}
        await client.call("PATCH", f"/1.0/profiles/default{query}", {"devices": devices})
        await client.call("POST", f"/1.0/profiles{query}", {"name": name, "config": {f"user.{name}": name}})
        if project == "hidden-p":
            made = await client.done(
                "POST", f"/1.0/images{query}", tiny_image(), X_LXD_properties=f"description={name}"
            )
            fingerprint = made["metadata"]["fingerprint"]
            await client.call("POST", f"/1.0/images/aliases{query}", {"name": name, "target": fingerprint})
        body = {"name": f"{name}-i", "source": {"type": "none"}, "profiles": ["default", name]}
        await client.done("POST", f"/1.0/instances{query}", body)
        await client.done("POST", f"/1.0/instances/{name}-i/snapshots{query}", {"name": f"{name}-s"})
        await client.done("POST", f"/1.0/instances/{name}-i/backups{query}", {"name": f"{name}-b"})
        await client.done("PUT", f"/1.0/instances/{name}-i/state{query}", {"action": "start"})
        url = "/1.0/storage-pools/default/volumes/custom"
        await client.call("POST", f"{url}{query}", {"name": f"{name}-v"})
        await client.done("POST", f"{url}/{name}-v/snapshots{query}", {"name": f"{name}-s"})

    async def remote(self, project: str) -> Remote:
        holder = make()
        await self.network.trust(holder, restricted=True, projects=[project])
        return await self.network.remote(holder)

    def filled(self, path: str) -> list[str]:
        """The path with everything of the other project's in the place of its parameters."""
        found = [path]
        for parameter in re.findall(r"{([^}:]+)(?::[^}]*)?}", path):
            place = re.compile(f"{{{parameter}(?::[^}}]*)?}}")
            found = [place.sub(quote(value), each, count=1) for each in found for value in self.values[parameter]]
        return found


@pytest.fixture
async def house(client: Client, tmp_path: Path) -> AsyncIterator[House]:
    async with network_of(client, tmp_path) as network:
        made = House(client, network)
        await made.furnish()
        yield made


async def test_no_route_shows_anything_of_another_project(house: House):
    remote = await house.remote("mine")
    queries = ["", "?project=mine", OTHER, "?all-projects=true"]
    queries += [f"{query}{'&' if query else '?'}recursion=2" for query in queries]
    fingerprint = house.values["fingerprint"][0]
    seen = 0
    for path in PATHS:
        for filled in house.filled(path):
            for query in queries:
                answer = await remote.call("GET", filled + query)
                told = answer.body.replace(filled.encode(), b"")  # an error may repeat what was asked for
                told = told.replace(b'project \\"hidden-p\\"', b"")
                where = f"{filled}{query}: {answer.status} {answer.body[:300]!r}"
                assert answer.status != 500, where
                if answer.status < 300:
                    assert b"hidden" not in told, where
                    assert fingerprint.encode() not in told, where
                    seen += 1
                elif "hidden-p" in query:
                    assert answer.status in (403, 404, 501), where  # 501: no GET there
    assert seen > 50  # the routes were answered, not only refused


@pytest.mark.parametrize("project", ["hidden-p", "default"])
async def test_no_method_changes_anything_of_another_project(house: House, project: str):
    remote = await house.remote("mine")
    before = _everything(house)
    for path, method in METHODS:
        for filled in house.filled(path):
            answer = await remote.call(method, f"{filled}?project={project}", {})
            assert answer.status in (403, 404), f"{method} {filled}: {answer.status} {answer.body[:200]!r}"
    assert _everything(house) == before


def _everything(house: House) -> dict[str, bytes]:
    return {entry.key: entry.value for entry in house.client.daemon._mirror.list("/")}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        (
            "POST",
            "/1.0/instances",
            {"name": "x", "source": {"type": "copy", "source": "hidden-i", "project": "hidden-p"}},
        ),
        ("POST", "/1.0/instances/own-i", {"name": "own-i", "project": "hidden-p", "migration": True}),
        ("POST", "/1.0/images", {"source": {"type": "instance", "name": "hidden-i", "project": "hidden-p"}}),
        (
            "POST",
            "/1.0/storage-pools/default/volumes/custom",
            {"name": "x", "source": {"type": "copy", "name": "hidden-v", "pool": "default", "project": "hidden-p"}},
        ),
        ("POST", "/1.0/storage-pools/default/volumes/custom/own-v", {"name": "x", "project": "hidden-p"}),
    ],
)
async def test_no_body_names_another_project(house: House, method: str, path: str, body: Any):
    remote = await house.remote("mine")
    answer = await remote.call(method, f"{path}?project=mine", body)
    assert (answer.status, "hidden-p" in answer.error) == (403, True)


async def test_what_is_its_own_it_sees_and_changes(house: House):
    remote = await house.remote("mine")
    assert (await remote.call("GET", "/1.0/projects")).metadata == ["/1.0/projects/mine"]
    listed = (await remote.call("GET", "/1.0/instances?all-projects=true")).metadata
    assert listed == ["/1.0/instances/own-i?project=mine"]
    network = (await remote.call("GET", "/1.0/networks/fxpjbr?project=mine")).metadata
    assert network["used_by"] == ["/1.0/instances/own-i?project=mine", "/1.0/profiles/default?project=mine"]
    assert (await remote.call("GET", "/1.0/networks?project=mine")).metadata == ["/1.0/networks/fxpjbr"]
    await house.client.call("PATCH", "/1.0/projects/mine", {"config": {"user.a": "b"}})
    assert (await remote.call("PATCH", "/1.0/projects/mine", {"config": {"user.a": "c"}})).status == 403
    made = await remote.call("POST", "/1.0/profiles?project=mine", {"name": "new"})
    assert made.status == 201
    assert (await remote.call("DELETE", "/1.0/profiles/new?project=mine")).status == 200


async def test_its_operations_need_no_project(house: House):
    """As Debian's client asks for them; others' are refused, which nothing tells from a project that it may not use."""
    remote = await house.remote("mine")
    state = "/1.0/instances/own-i/state?project=mine"
    own = (await remote.call("PUT", state, {"action": "stop", "force": True})).metadata["id"]
    assert (await remote.call("GET", f"/1.0/operations/{own}/wait")).metadata["status"] == "Success"
    assert (await remote.call("GET", f"/1.0/operations/{own}")).metadata["id"] == own
    for method, path in (("GET", ""), ("GET", "/wait"), ("GET", "/websocket?secret=x"), ("DELETE", "")):
        answer = await remote.call(method, f"/1.0/operations/{house.values['id'][0]}{path}")
        assert (answer.status, answer.error) == (403, "not authorized"), path


async def test_what_is_shared_with_it_it_uses_and_does_not_change(house: House):
    remote = await house.remote("shared")
    assert (await remote.call("GET", "/1.0/profiles?project=shared")).metadata == [
        "/1.0/profiles/common",
        "/1.0/profiles/default",
    ]
    body = {"name": "c1", "source": {"type": "none"}, "profiles": ["default", "common"]}
    assert (await remote.call("POST", "/1.0/instances?project=shared", body)).status == 202
    volumes = "/1.0/storage-pools/default/volumes/custom"
    for method, path, sent in (
        ("PUT", "/1.0/profiles/common", {"config": {"security.privileged": "true"}}),
        ("POST", "/1.0/profiles", {"name": "x"}),
        ("DELETE", "/1.0/profiles/common", None),
        ("POST", "/1.0/images", {"source": {"type": "instance", "name": "c1"}}),
        ("POST", "/1.0/images/aliases", {"name": "x", "target": "y"}),
        ("POST", volumes, {"name": "x"}),
        ("POST", "/1.0/storage-pools/default/volumes", {"name": "x", "type": "custom"}),
    ):
        answer = await remote.call(method, f"{path}?project=shared", sent)
        assert (answer.status, 'project "default"' in answer.error) == (403, True), path


async def test_networks_that_its_project_may_not_use_are_not_shown(house: House):
    remote = await house.remote("mine")
    config = {"restricted": "true", "restricted.networks.access": "fxother"}
    await house.client.done("PUT", "/1.0/instances/own-i/state?project=mine", {"action": "stop", "force": True})
    await house.client.done("DELETE", "/1.0/instances/own-i?project=mine")
    await house.client.call("PUT", "/1.0/profiles/default?project=mine", {"devices": {"root": ROOT}})
    assert (await house.client.call("PATCH", "/1.0/projects/mine", {"config": config})).status == 200
    assert (await remote.call("GET", "/1.0/networks?project=mine")).metadata == []
    for path in ("", "/state", "/leases"):
        assert (await remote.call("GET", f"/1.0/networks/fxpjbr{path}?project=mine")).status == 404


async def test_events(house: House):
    """Only its own project's, and none of the daemon's log."""
    remote = await house.remote("mine")
    for refused in ("", OTHER, "?project=default", "?all-projects=true", "?project=mine&type=logging"):
        assert (await remote.call("GET", f"/1.0/events{refused}")).status == 403
    async with remote.session.ws_connect(f"{remote.url}/1.0/events?project=mine") as events:
        for project, name in (("hidden-p", "hidden"), ("default", "common"), ("mine", "own")):
            await house.client.call("PATCH", f"/1.0/profiles/{name}?project={project}", {"description": "x"})
        event = await asyncio.wait_for(events.receive_json(), 20)
    assert (event["project"], event["metadata"]["source"]) == ("mine", "/1.0/profiles/own?project=mine")


async def test_a_certificate_follows_its_projects_name_and_end(house: House):
    holder = make()
    await house.network.trust(holder, restricted=True, projects=["shared", "mine"])
    await house.client.done("POST", "/1.0/projects/shared", {"name": "renamed"})
    url = f"/1.0/certificates/{holder.fingerprint}"
    assert sorted((await house.client.call("GET", url)).metadata["projects"]) == ["mine", "renamed"]
    remote = await house.network.remote(holder)
    assert (await remote.call("GET", "/1.0/instances?project=renamed")).status == 200
    assert (await house.client.call("DELETE", "/1.0/projects/renamed")).status == 200
    assert (await house.client.call("GET", url)).metadata["projects"] == ["mine"]
    # A new project of the old name is not its.
    await house.client.call("POST", "/1.0/projects", {"name": "renamed"})
    assert (await remote.call("GET", "/1.0/instances?project=renamed")).status == 403
