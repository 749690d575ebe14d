# SPDX-License-Identifier: Apache-2.0
"""Instances over HTTP: the paths, lists, edits, state, logs."""

import pytest

from tests.unit.server.conftest import Client


async def test_lists_by_recursion(busy: Client) -> None:
    await busy.create("c2")
    assert (await busy.call("GET", "/1.0/instances")).metadata == ["/1.0/instances/c1", "/1.0/instances/c2"]
    one = (await busy.call("GET", "/1.0/instances?recursion=1")).metadata
    assert [(i["name"], i["status"], "state" in i) for i in one] == [("c1", "Running", False), ("c2", "Stopped", False)]
    full = (await busy.call("GET", "/1.0/instances?recursion=2&filter=")).metadata
    assert [i["state"]["status_code"] for i in full] == [103, 102]
    assert (await busy.call("GET", "/1.0/instances?recursion=x")).metadata[0] == "/1.0/instances/c1"


async def test_filters(busy: Client) -> None:
    await busy.create("c2")
    for query in ("filter=status+eq+running", "filter=name+eq+(^c1$|^c1.*)"):
        assert (await busy.call("GET", f"/1.0/instances?{query}")).metadata == ["/1.0/instances/c1"]
        full = (await busy.call("GET", f"/1.0/instances?recursion=2&{query}")).metadata
        assert [instance["name"] for instance in full] == ["c1"]
    assert (await busy.call("GET", "/1.0/instances?filter=name")).status == 400


async def test_older_names_of_the_collection(busy: Client) -> None:
    assert (await busy.call("GET", "/1.0/containers")).metadata == ["/1.0/containers/c1"]
    assert (await busy.call("GET", "/1.0/containers/c1")).metadata["name"] == "c1"
    assert (await busy.call("GET", "/1.0/virtual-machines")).metadata == []
    assert (await busy.call("GET", "/1.0/virtual-machines?recursion=2")).metadata == []
    answer = await busy.call("GET", "/1.0/virtual-machines/c1")
    assert (answer.status, answer.error) == (404, "Instance not found")


async def test_show_plain_and_full_have_the_same_etag(busy: Client) -> None:
    plain = await busy.call("GET", "/1.0/instances/c1")
    full = await busy.call("GET", "/1.0/instances/c1?recursion=1")
    assert plain.headers["ETag"] == full.headers["ETag"]
    assert full.metadata["state"]["pid"] > 0


async def test_edit_as_lxc_config_set_does_it(busy: Client) -> None:
    """GET, then PUT of everything with If-Match, answered 202."""
    shown = await busy.call("GET", "/1.0/instances/c1")
    put = {k: shown.metadata[k] for k in ("architecture", "config", "devices", "profiles", "ephemeral", "description")}
    put["config"]["user.a"] = "1"
    await busy.done("PUT", "/1.0/instances/c1", put, If_Match=shown.headers["ETag"])
    again = await busy.call("GET", "/1.0/instances/c1")
    assert again.metadata["config"]["user.a"] == "1"
    answer = await busy.call("PUT", "/1.0/instances/c1", put, If_Match=shown.headers["ETag"])
    assert answer.status == 412


async def test_patch_is_answered_at_once(busy: Client) -> None:
    answer = await busy.call("PATCH", "/1.0/instances/c1", {"config": {"user.b": "2"}})
    assert (answer.status, answer.metadata) == (200, {})
    assert (await busy.call("GET", "/1.0/instances/c1")).metadata["config"]["user.b"] == "2"
    wrong = await busy.call("PATCH", "/1.0/instances/c1", {"config": {"user.b": 2}, "profiles": "x"})
    assert wrong.error == "config.user.b: expected str, got int; profiles: expected array, got str"


async def test_every_fault_of_a_new_instance_is_in_one_answer(client: Client) -> None:
    await client.prepare()
    body = {
        "name": "c9",
        "source": {"type": "none"},
        "config": {"bogus": "1", "boot.autostart": "maybe"},
        "devices": {"x": {"type": "zzz"}},
        "profiles": ["nope"],
    }
    answer = await client.call("POST", "/1.0/instances", body)
    assert answer.status == 400
    for path in ("config.bogus", "config.boot.autostart", "devices.x", "profiles"):
        assert path in answer.error


async def test_state_changes_and_bulk(busy: Client) -> None:
    operation = await busy.done("PUT", "/1.0/instances/c1/state", {"action": "freeze", "timeout": -1})
    assert operation["description"] == "Freezing instance"
    assert operation["resources"]["instances"] == ["/1.0/instances/c1"]
    assert (await busy.call("GET", "/1.0/instances/c1/state")).metadata["status"] == "Frozen"
    await busy.done("PUT", "/1.0/instances", {"state": {"action": "unfreeze"}})
    assert (await busy.call("GET", "/1.0/instances/c1/state")).metadata["status"] == "Running"
    await busy.done("PUT", "/1.0/instances", {"state": {"action": "stop", "force": True}})
    assert (await busy.call("GET", "/1.0/instances/c1")).metadata["status"] == "Stopped"


async def test_rename_and_delete(client: Client) -> None:
    await client.prepare()
    await client.create("c1")
    await client.done("POST", "/1.0/instances/c1", {"name": "c2", "migration": False})
    assert (await client.call("GET", "/1.0/instances/c1")).status == 404
    await client.done("DELETE", "/1.0/instances/c2")
    assert (await client.call("GET", "/1.0/instances")).metadata == []


async def test_logs(busy: Client) -> None:
    files = (await busy.call("GET", "/1.0/instances/c1/logs")).metadata
    assert "/1.0/instances/c1/logs/lxc.conf" in files
    log = await busy.call("GET", "/1.0/instances/c1/logs/lxc.conf")
    assert log.headers["Content-Disposition"] == "inline;filename=lxc.conf"
    assert b"lxc." in log.body
    for name in ("nope.log", "..%2F..%2Fx"):
        assert (await busy.call("GET", f"/1.0/instances/c1/logs/{name}")).status == 404


async def test_console_log(busy: Client) -> None:
    await busy.runtime.write_console("c1", b"booting\r\n")
    assert (await busy.call("GET", "/1.0/instances/c1/console")).body == b"booting\r\n"
    assert (await busy.call("DELETE", "/1.0/instances/c1/console")).status == 200
    assert (await busy.call("GET", "/1.0/instances/c1/console")).body == b""


@pytest.mark.parametrize("content_type", ["application/json", ""])
async def test_json_is_json_whatever_it_is_called(client: Client, content_type: str) -> None:
    body = b'{"name": "a b", "source": {"type": "none"}}'
    answer = await client.call("POST", "/1.0/instances", body, Content_Type=content_type)
    assert answer.status == 400
    assert "name" in answer.error


async def test_what_is_no_backup_is_refused(client: Client) -> None:
    answer = await client.call("POST", "/1.0/instances", b"no archive", Content_Type="application/octet-stream")
    message = "Invalid backup file: neither a tar archive (plain or compressed) nor a squashfs"
    assert (answer.status, answer.error) == (400, message)


async def test_metrics_of_running_instances(busy: Client) -> None:
    await busy.create("c2")
    answer = await busy.call("GET", "/1.0/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    text = answer.body.decode()
    assert 'lxd_procs_total{name="c1",project="default",type="container"}' in text
    assert 'lxd_cpu_seconds_total{name="c1"' in text
    assert "c2" not in text
