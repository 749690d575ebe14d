# SPDX-License-Identifier: Apache-2.0
"""Envelope, methods, projects, lists: what every path has in common. Wordings are LXD 5.0.2's, recorded."""

import pytest

from flexd.api.extensions import API_EXTENSIONS, PARTIAL
from tests.unit.server.conftest import EMPTY, Client


async def test_the_root_names_the_version(client: Client) -> None:
    answer = await client.call("GET", "/")
    assert answer.body == EMPTY.replace(b"{}", b'["/1.0"]')


async def test_an_empty_answer_is_lxds_byte_by_byte(client: Client) -> None:
    answer = await client.call("PATCH", "/1.0", {"config": {"user.x": "y"}})
    assert answer.body == EMPTY


@pytest.mark.parametrize("path", ["/nope", "/1.0/nope", "/2.0", "/1.0/", "/1.0/instances/", "//1.0/instances"])
async def test_unknown_paths(client: Client, path: str) -> None:
    answer = await client.call("GET", path)
    assert (answer.status, answer.error, answer.envelope["error_code"]) == (404, "not found", 404)
    assert answer.envelope["type"] == "error"


async def test_a_method_that_a_path_does_not_have_is_not_implemented(client: Client) -> None:
    answer = await client.call("DELETE", "/1.0/instances")
    assert (answer.status, answer.error) == (501, "not implemented")
    assert answer.headers["Allow"] == "GET, HEAD, POST, PUT"


async def test_options_is_answered_everywhere(client: Client) -> None:
    for path in ("/1.0/instances", "/nope"):
        answer = await client.call("OPTIONS", path)
        assert (answer.status, answer.body) == (200, b"")


async def test_head_is_get_without_a_body(client: Client) -> None:
    answer = await client.call("HEAD", "/1.0/profiles/default")
    assert answer.status == 200
    assert answer.body == b""
    assert answer.headers["ETag"].startswith('"')


async def test_the_connection_is_closed_when_the_client_asks_for_it(client: Client) -> None:
    answer = await client.call("GET", "/1.0", Connection="close")
    assert answer.headers["Connection"] == "close"


async def test_an_empty_project_is_the_default_one(client: Client) -> None:
    answer = await client.call("GET", "/1.0/profiles?project=")
    assert answer.metadata == ["/1.0/profiles/default"]


@pytest.mark.parametrize("path", ["/1.0/instances", "/1.0/profiles/default", "/1.0/networks", "/1.0/images"])
async def test_an_unknown_project(client: Client, path: str) -> None:
    answer = await client.call("GET", path + "?project=nope")
    assert (answer.status, answer.error) == (404, "Project not found")


async def test_all_projects_and_one_project_exclude_each_other(client: Client) -> None:
    answer = await client.call("GET", "/1.0/instances?all-projects=true&project=default")
    assert (answer.status, answer.error) == (400, "Cannot specify a project when requesting all projects")


async def test_a_bug_is_told_to_the_log_and_not_to_the_client(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    client.host.fail(method="links.create_bridge", error=RuntimeError("a secret of ours"))
    answer = await client.call("POST", "/1.0/networks", {"name": "br0"})
    assert answer.status == 500
    assert "secret" not in answer.error
    assert answer.headers["X-Request-Id"] in answer.error
    logged = next(record for record in caplog.records if record.levelname == "ERROR")
    assert answer.headers["X-Request-Id"] in logged.getMessage()
    assert logged.exc_info is not None


async def test_a_get_with_a_body_is_served(client: Client) -> None:
    """Ansible sends `null`."""
    answer = await client.call("GET", "/1.0/profiles", b"null")
    assert answer.status == 200


async def test_the_server_describes_itself(client: Client) -> None:
    answer = await client.call("GET", "/1.0")
    metadata = answer.metadata
    assert metadata["api_extensions"] == list(API_EXTENSIONS)
    assert (metadata["auth"], metadata["api_status"], metadata["api_version"]) == ("trusted", "stable", "1.0")
    environment = metadata["environment"]
    assert (environment["server"], environment["server_version"], environment["project"]) == (
        "flexd",
        "5.0.2",
        "default",
    )
    assert environment["driver_version"] == "5.0.2"
    criu = {name: value for name, value in environment.items() if name.startswith("criu_")}
    assert criu == {"criu_version": "4.2.1", "criu_problem": "", "criu_memory_tracking": True}
    assert answer.headers["Server"].startswith("flexd/")
    assert {driver["Name"] for driver in environment["storage_supported_drivers"]} >= {"dir"}


def test_extensions_are_named_once_and_partial_ones_never() -> None:
    assert len(set(API_EXTENSIONS)) == len(API_EXTENSIONS)
    assert not set(API_EXTENSIONS) & set(PARTIAL)


async def test_server_config_is_checked_kept_and_removed(client: Client) -> None:
    wrong = await client.call("PUT", "/1.0", {"config": {"bogus": "1", "user.x": 3}})
    assert wrong.status == 400
    assert wrong.error == "config.user.x: expected a string, got 3; config.bogus: unknown configuration key"
    await client.call("PATCH", "/1.0", {"config": {"user.a": "1"}})
    await client.call("PATCH", "/1.0", {"config": {"user.b": "2"}})
    assert (await client.call("GET", "/1.0")).metadata["config"] == {"user.a": "1", "user.b": "2"}
    await client.call("PATCH", "/1.0", {"config": {"user.a": ""}})
    assert (await client.call("GET", "/1.0")).metadata["config"] == {"user.b": "2"}
    await client.call("PUT", "/1.0", {"config": {}})
    assert (await client.call("GET", "/1.0")).metadata["config"] == {}


async def test_an_edit_of_something_changed_meanwhile_is_refused(client: Client) -> None:
    etag = (await client.call("GET", "/1.0/profiles/default")).headers["ETag"]
    for accepted in (etag, etag.strip('"')):
        answer = await client.call("PUT", "/1.0/profiles/default", {}, If_Match=accepted)
        assert answer.status == (200 if accepted == etag else 412)
        await client.call("PUT", "/1.0/profiles/default", {"description": "other"})
    answer = await client.call("PUT", "/1.0/profiles/default", {}, If_Match='"abc"')
    assert answer.status == 412
    assert answer.error.startswith("ETag doesn't match: ")
    assert answer.error.endswith(" vs abc")


async def test_profiles_from_creation_to_deletion(client: Client) -> None:
    made = await client.call("POST", "/1.0/profiles", {"name": "p1", "config": {"user.a": "1"}})
    assert (made.status, made.headers["Location"], made.metadata) == (201, "/1.0/profiles/p1", None)
    await client.call("PATCH", "/1.0/profiles/p1", {"config": {"user.b": "2"}, "description": None})
    shown = (await client.call("GET", "/1.0/profiles/p1")).metadata
    assert shown["config"] == {"user.a": "1", "user.b": "2"}
    moved = await client.call("POST", "/1.0/profiles/p1", {"name": "p2"})
    assert moved.headers["Location"] == "/1.0/profiles/p2"
    assert (await client.call("DELETE", "/1.0/profiles/p2")).body == EMPTY
    assert (await client.call("GET", "/1.0/profiles")).metadata == ["/1.0/profiles/default"]


async def test_the_default_project_is_shown_and_cannot_go(client: Client) -> None:
    assert (await client.call("GET", "/1.0/projects")).metadata == ["/1.0/projects/default"]
    shown = (await client.call("GET", "/1.0/projects?recursion=1")).metadata[0]
    assert shown["config"]["features.networks"] == "true"
    assert "/1.0/profiles/default" in shown["used_by"]
    assert (await client.call("GET", "/1.0/projects/nope")).error == "Project not found"
    assert (await client.call("DELETE", "/1.0/projects/default")).status == 403
    assert (await client.call("POST", "/1.0/projects/default", {"name": "p"})).status == 403
    state = (await client.call("GET", "/1.0/projects/default/state")).metadata
    assert state["resources"]["instances"] == {"Limit": -1, "Usage": 0}


async def test_certificates_and_warnings_are_empty(client: Client) -> None:
    for path in ("/1.0/certificates", "/1.0/warnings"):
        assert (await client.call("GET", path)).metadata == []
        assert (await client.call("GET", path + "/abc")).status == 404
    assert (await client.call("POST", "/1.0/certificates", {})).status == 400


async def test_configuration_keys_are_described(client: Client) -> None:
    configs = (await client.call("GET", "/1.0/metadata/configuration")).metadata["configs"]
    keys = [name for row in configs["instance"]["boot"]["keys"] for name in row]
    assert "boot.autostart" in keys


async def test_a_body_beyond_the_limit_is_refused(client: Client) -> None:
    answer = await client.call("PUT", "/1.0/profiles/default", b" " * (17 * 1024 * 1024))
    assert answer.status == 413
