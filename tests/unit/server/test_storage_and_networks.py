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


async def test_snapshots_of_volumes(client: Client) -> None:
    await client.prepare()
    await client.call("POST", VOLUMES + "/custom", {"name": "v1", "config": {"snapshots.expiry": "1d"}})
    snapshots = f"{VOLUMES}/custom/v1/snapshots"
    await client.done("POST", snapshots, {"name": "one"})
    await client.done("POST", snapshots, {})
    assert (await client.call("GET", snapshots)).metadata == [f"{snapshots}/one", f"{snapshots}/snap0"]
    assert [found["name"] for found in (await client.call("GET", snapshots + "?recursion=1")).metadata] == [
        "v1/one",
        "v1/snap0",
    ]
    assert f"{snapshots}/one" in (await client.call("GET", VOLUMES)).metadata
    shown = await client.call("GET", snapshots + "/one")
    assert shown.metadata["expires_at"] > shown.metadata["created_at"]
    await client.call("PATCH", snapshots + "/one", {"description": "x"}, If_Match=shown.headers["ETag"])
    await client.done("POST", snapshots + "/one", {"name": "two"})
    assert (await client.call("GET", snapshots + "/two")).metadata["description"] == "x"
    assert (await client.call("PUT", f"{VOLUMES}/custom/v1", {"restore": "two"})).body == EMPTY
    assert (await client.call("PUT", f"{VOLUMES}/custom/v1", {"restore": "none"})).status == 404
    for name in ("two", "snap0"):
        await client.done("DELETE", f"{snapshots}/{name}")
    assert (await client.call("GET", snapshots + "/two")).error == "Storage volume snapshot not found"
    assert (await client.call("POST", snapshots, {"name": "a b"})).status == 400


async def test_copies_and_moves_of_volumes(client: Client) -> None:
    await client.prepare()
    await client.call("POST", "/1.0/storage-pools", {"name": "p1", "driver": "dir"})
    await client.call("POST", VOLUMES + "/custom", {"name": "v1"})
    await client.done("POST", f"{VOLUMES}/custom/v1/snapshots", {"name": "one"})
    source = {"type": "copy", "name": "v1", "pool": "default"}
    there = "/1.0/storage-pools/p1/volumes/custom"
    await client.done("POST", there, {"name": "v2", "source": source})
    assert (await client.call("GET", there)).metadata == [f"{there}/v2", f"{there}/v2/snapshots/one"]
    await client.done("POST", there, {"name": "v2", "source": {**source, "refresh": True}})
    await client.done("POST", f"{there}/v2", {"name": "v3", "pool": "default"})
    assert (await client.call("GET", there)).metadata == []
    assert (await client.call("GET", f"{VOLUMES}/custom/v3/snapshots/one")).status == 200
    assert (await client.call("POST", there, {"name": "v4", "source": {**source, "name": "none"}})).status == 404


async def test_devices_follow_a_renamed_volume(busy: Client) -> None:
    await busy.call("POST", VOLUMES + "/custom", {"name": "v1"})
    entry = {"type": "disk", "pool": "default", "source": "v1", "path": "/data"}
    profile = {"name": "shared", "devices": {"data": entry}}
    assert (await busy.call("POST", "/1.0/profiles", profile)).status == 201
    assert (await busy.call("POST", f"{VOLUMES}/custom/v1", {"name": "v2"})).status == 201
    shown = (await busy.call("GET", "/1.0/profiles/shared")).metadata
    assert shown["devices"]["data"]["source"] == "v2"
    assert (await busy.call("GET", f"{VOLUMES}/custom/v2")).metadata["used_by"] == ["/1.0/profiles/shared"]


async def test_an_iso_is_imported(client: Client) -> None:
    await client.prepare()
    headers = {"X_LXD_name": "setup", "X_LXD_type": "iso", "Content_Type": "application/octet-stream"}
    await client.done("POST", VOLUMES + "/custom", b"\0" * 4096, **headers)
    assert (await client.call("GET", f"{VOLUMES}/custom/setup")).metadata["content_type"] == "iso"
    refused = await client.call("POST", VOLUMES + "/custom", b"x", Content_Type="application/octet-stream")
    assert "neither a tar archive" in refused.error
