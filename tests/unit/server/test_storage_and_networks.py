# SPDX-License-Identifier: Apache-2.0
"""Pools, volumes and networks over HTTP."""

from tests.unit.server.conftest import EMPTY, Client

VOLUMES = "/1.0/storage-pools/default/volumes"


async def test_pools(client: Client) -> None:
    made = await client.call("POST", "/1.0/storage-pools", {"name": "p1", "driver": "dir"})
    assert (made.status, made.headers["Location"], made.metadata) == (201, "/1.0/storage-pools/p1", None)
    assert (await client.call("GET", "/1.0/storage-pools")).metadata == ["/1.0/storage-pools/p1"]
    shown = await client.call("GET", "/1.0/storage-pools/p1")
    assert (shown.metadata["driver"], shown.metadata["status"]) == ("dir", "Created")
    put = {"description": "d", "config": shown.metadata["config"]}
    assert (await client.call("PUT", "/1.0/storage-pools/p1", put, If_Match=shown.headers["ETag"])).status == 200
    assert (await client.call("PATCH", "/1.0/storage-pools/p1", {"config": {"user.a": "1"}})).body == EMPTY
    shown = await client.call("GET", "/1.0/storage-pools/p1")
    assert (shown.metadata["description"], shown.metadata["config"]["user.a"]) == ("d", "1")
    resources = (await client.call("GET", "/1.0/storage-pools/p1/resources")).metadata
    assert resources["space"]["total"] > 0
    environment = (await client.call("GET", "/1.0")).metadata["environment"]
    assert environment["storage"] == "dir"
    assert (await client.call("DELETE", "/1.0/storage-pools/p1")).status == 200
    assert (await client.call("GET", "/1.0/storage-pools/p1")).error == "Storage pool not found"


async def test_volumes(client: Client) -> None:
    await client.prepare()
    await client.create("c1")
    assert (await client.call("POST", VOLUMES, {"name": "v1", "type": "custom"})).body == EMPTY
    assert (await client.call("POST", VOLUMES + "/custom", {"name": "v2"})).body == EMPTY
    assert (await client.call("GET", VOLUMES)).metadata == [
        f"{VOLUMES}/container/c1",
        f"{VOLUMES}/custom/v1",
        f"{VOLUMES}/custom/v2",
    ]
    assert (await client.call("GET", VOLUMES + "/custom?filter=name+eq+v2")).metadata == [f"{VOLUMES}/custom/v2"]
    assert (await client.call("GET", VOLUMES + "/container?recursion=1")).metadata[0]["used_by"] == [
        "/1.0/instances/c1"
    ]
    shown = await client.call("GET", VOLUMES + "/custom/v1")
    await client.call("PATCH", VOLUMES + "/custom/v1", {"description": "x"}, If_Match=shown.headers["ETag"])
    await client.call("PUT", VOLUMES + "/custom/v2", {"description": "y"})
    moved = await client.call("POST", VOLUMES + "/custom/v1", {"name": "v3"})
    assert (moved.status, moved.headers["Location"]) == (201, f"{VOLUMES}/custom/v3")
    assert (await client.call("GET", VOLUMES + "/custom/v3")).metadata["description"] == "x"
    assert (await client.call("GET", VOLUMES + "/custom/v3/state")).status == 200
    for name in ("v2", "v3"):
        assert (await client.call("DELETE", f"{VOLUMES}/custom/{name}")).status == 200
    assert (await client.call("GET", VOLUMES + "/bogus")).status == 400


async def test_networks(client: Client) -> None:
    config = {"ipv4.address": "198.18.40.1/24", "ipv6.address": "none"}
    made = await client.call("POST", "/1.0/networks", {"name": "br0", "config": config})
    assert (made.status, made.headers.get("Location")) == (201, "/1.0/networks/br0"), made.body
    assert "/1.0/networks/br0" in (await client.call("GET", "/1.0/networks")).metadata
    listed = (await client.call("GET", "/1.0/networks?recursion=1&filter=managed+eq+true")).metadata
    assert [network["name"] for network in listed] == ["br0"]
    shown = await client.call("GET", "/1.0/networks/br0")
    patch = {"config": {"user.a": "1"}, "description": "d"}
    assert (await client.call("PATCH", "/1.0/networks/br0", patch, If_Match=shown.headers["ETag"])).status == 200
    assert (await client.call("PUT", "/1.0/networks/br0", {}, If_Match=shown.headers["ETag"])).status == 412
    edited = (await client.call("GET", "/1.0/networks/br0")).metadata
    assert (edited["config"]["ipv4.address"], edited["config"]["user.a"]) == ("198.18.40.1/24", "1")
    assert (await client.call("GET", "/1.0/networks/br0/state")).metadata["type"] == "broadcast"
    leases = (await client.call("GET", "/1.0/networks/br0/leases")).metadata
    assert [lease["address"] for lease in leases] == ["198.18.40.1"]
    moved = await client.call("POST", "/1.0/networks/br0", {"name": "br1"})
    assert (moved.status, moved.headers.get("Location")) == (201, "/1.0/networks/br1"), moved.body
    assert (await client.call("DELETE", "/1.0/networks/br1")).status == 200
    assert (await client.call("GET", "/1.0/networks/br1")).error == "Network not found"
