# SPDX-License-Identifier: Apache-2.0
"""config and profile: reading, changing with If-Match, devices, editing."""

from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import instance, profile
from tests.unit.client.fake_server import FakeServer

C1 = "/1.0/instances/c1"
DEFAULT = "/1.0/profiles/default"
DATA = {"type": "disk", "path": "/data", "source": "/srv"}


@pytest.fixture(autouse=True)
def things(server: FakeServer) -> None:
    server.say(C1, instance(config={"user.a": "1", "limits.cpu": "2"}, devices={"data": DATA}), etag="tag")
    server.work("PUT", C1)
    server.say(DEFAULT, profile(config={"user.a": "1"}, devices={"eth0": {"type": "nic"}}), etag="tag")
    server.say(DEFAULT, {}, method="PUT")
    server.say("/1.0", {"config": {"core.https_address": ":8443"}}, etag="tag")
    server.say("/1.0", {}, method="PUT")


def test_get(run: Run) -> None:
    assert run("config", "get", "c1", "user.a").out == "1\n"
    assert run("config", "get", "c1", "user.none").out == "\n"
    assert run("config", "get", "c1", "limits.memory", "-e").out == "96MiB\n"
    assert run("config", "get", "core.https_address").out == ":8443\n"
    assert run("profile", "get", "default", "user.a").out == "1\n"


def test_show(run: Run) -> None:
    assert run("config", "show", "c1").out == (
        'architecture: x86_64\nconfig:\n  limits.cpu: "2"\n  user.a: "1"\ndevices:\n  data:\n    path: /data\n'
        "    source: /srv\n    type: disk\nephemeral: false\nprofiles:\n- default\nstateful: false\n"
        'description: ""\n'
    )
    assert run("config", "show").out == "config:\n  core.https_address: :8443\n"
    assert "limits.memory: 96MiB" in run("config", "show", "c1", "--expanded").out
    assert run("profile", "show", "default").out.startswith('config:\n  user.a: "1"\ndescription: ""\ndevices:\n')


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (["limits.cpu=4", "user.b=x=y"], {"user.a": "1", "limits.cpu": "4", "user.b": "x=y"}),
        (["limits.cpu", "4"], {"user.a": "1", "limits.cpu": "4"}),
        (["user.a="], {"limits.cpu": "2"}),
        (["user.a=-"], {"user.a": "from stdin", "limits.cpu": "2"}),
    ],
)
def test_set(run: Run, server: FakeServer, words: list[str], config: dict[str, str]) -> None:
    assert run("config", "set", "c1", *words, stdin="from stdin").status == 0
    (put,) = server.requests("PUT", C1)
    assert put.document["config"] == config
    assert put.headers["if-match"] == "tag"
    assert "expanded_config" not in put.document
    assert "name" not in put.document


def test_unset(run: Run, server: FakeServer) -> None:
    assert run("config", "unset", "c1", "user.a").status == 0
    assert server.sent("PUT", C1)["config"] == {"limits.cpu": "2"}
    assert "not currently set" in run("config", "unset", "c1", "user.none").err


def test_of_the_server(run: Run, server: FakeServer) -> None:
    assert run("config", "set", "core.https_address=:1", "user.x=y").status == 0
    assert server.sent("PUT", "/1.0") == {"config": {"core.https_address": ":1", "user.x": "y"}}
    server.asked.clear()
    assert run("config", "set", "core.https_address", ":2").status == 0
    assert server.sent("PUT", "/1.0") == {"config": {"core.https_address": ":2"}}
    server.asked.clear()
    assert run("config", "unset", "core.https_address").status == 0
    assert server.sent("PUT", "/1.0") == {"config": {}}


def test_a_missing_value_is_told(run: Run) -> None:
    assert (
        'No value for "limits.memory": expected limits.memory=VALUE' in run("config", "set", "c1", "limits.memory").err
    )


def test_devices_of_an_instance(run: Run, server: FakeServer) -> None:
    assert run("config", "device", "list", "c1").out == "data\n"
    assert run("config", "device", "get", "c1", "data", "path").out == "/data\n"
    assert run("config", "device", "show", "c1").out == "data:\n  path: /data\n  source: /srv\n  type: disk\n"
    assert run("config", "device", "add", "c1", "n", "nic", "network=x").out == "Device n added to c1\n"
    assert server.sent("PUT", C1)["devices"] == {"data": DATA, "n": {"type": "nic", "network": "x"}}


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        (["set", "c1", "data", "path=/x"], {"data": {**DATA, "path": "/x"}}),
        (["set", "c1", "data", "path", "/x"], {"data": {**DATA, "path": "/x"}}),
        (["unset", "c1", "data", "source"], {"data": {"type": "disk", "path": "/data"}}),
        (["remove", "c1", "data"], {}),
        (
            ["override", "c1", "eth0", "hwaddr=00:16:3e:00:00:09"],
            {
                "data": DATA,
                "eth0": {"type": "nic", "name": "eth0", "network": "flexbr0", "hwaddr": "00:16:3e:00:00:09"},
            },
        ),
    ],
)
def test_changing_devices(run: Run, server: FakeServer, words: list[str], devices: dict[str, object]) -> None:
    assert run("config", "device", *words).status == 0
    assert server.sent("PUT", C1)["devices"] == devices


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "c1", "data", "disk"], "The device already exists"),
        (["remove", "c1", "eth0"], "cannot be removed from individual instance"),
        (["set", "c1", "eth0", "a=b"], "cannot be modified for individual instance"),
        (["get", "c1", "nope", "a"], 'Device "nope" doesn\'t exist'),
        (["override", "c1", "nope"], "The profile device doesn't exist"),
        (["override", "c1", "data"], "The device already exists"),
    ],
)
def test_wrong_devices(run: Run, server: FakeServer, words: list[str], message: str) -> None:
    result = run("config", "device", *words)
    assert result.status == 1
    assert message in result.err
    assert not server.requests("PUT")


def test_editing_from_standard_input(run: Run, server: FakeServer) -> None:
    assert run("config", "edit", "c1", stdin="config:\n  limits.cpu: 8\nephemeral: yes\nname: other\n").status == 0
    assert server.sent("PUT", C1) == {"config": {"limits.cpu": "8"}, "ephemeral": True}
    assert run("profile", "edit", "default", stdin="devices: {}\nconfig:\ndescription: hey\n").status == 0
    assert server.sent("PUT", DEFAULT) == {"config": {}, "description": "hey", "devices": {}}
    assert "expected a mapping" in run("config", "edit", "c1", stdin="- a\n").err
    assert "Failed reading standard input" in run("config", "edit", "c1", stdin="a: [").err


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that stands for the editor; a test writes what it does with the file `$1`."""
    path = tmp_path / "editor"
    path.touch(mode=0o755)
    monkeypatch.setenv("VISUAL", str(path))
    return path


def test_editing_in_an_editor(run: Run, server: FakeServer, editor: Path) -> None:
    editor.write_text("#!/bin/sh\nsed -i 's/limits.cpu: .*/limits.cpu: 3/' \"$1\"\n")
    assert run("config", "edit", "c1", person=True).status == 0
    assert server.sent("PUT", C1)["config"] == {"limits.cpu": "3", "user.a": "1"}


def test_nothing_edited_is_nothing_sent(run: Run, server: FakeServer, editor: Path) -> None:
    editor.write_text("#!/bin/sh\n")
    assert run("config", "edit", "c1", person=True).out == "Nothing changed\n"
    assert not server.requests("PUT")


def test_a_mistake_opens_the_editor_again(run: Run, server: FakeServer, editor: Path) -> None:
    first = "if [ ! -e $0.second ]; then touch $0.second; echo 'a: [' > $1; exit; fi"
    editor.write_text(f"#!/bin/sh\n{first}\necho 'config: {{user.b: x}}' > $1\n")
    result = run("config", "edit", "c1", stdin="\n", person=True)
    assert "Press enter to edit again" in result.err
    assert server.sent("PUT", C1) == {"config": {"user.b": "x"}}


@pytest.mark.parametrize(("program", "message"), [("false", "ended with status 1"), ("/no/editor", "$EDITOR")])
def test_an_editor_that_fails(
    run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    monkeypatch.setenv("VISUAL", program)
    assert message in run("config", "edit", "c1", person=True).err
    assert not server.requests("PUT")


def test_a_change_by_somebody_else_is_an_error(run: Run, server: FakeServer) -> None:
    server.fail(C1, 412, "ETag doesn't match: a vs b", method="PUT")
    assert "ETag doesn't match" in run("config", "set", "c1", "user.a=2").err


def test_profiles(run: Run, server: FakeServer) -> None:
    server.say("/1.0/profiles", [profile("default", used_by=["/1.0/instances/c1"]), profile("big")])
    server.say("/1.0/profiles", {}, method="POST")
    server.say(DEFAULT, {}, method="POST")
    server.say(DEFAULT, {}, method="DELETE")
    assert run("profile", "list", "-f", "csv").out == "big,,0\ndefault,,1\n"
    assert run("profile", "create", "p").out == "Profile p created\n"
    assert server.requests("POST", "/1.0/profiles")[0].document["name"] == "p"
    assert run("profile", "copy", "default", "q").status == 0
    assert server.requests("POST", "/1.0/profiles")[1].document == {
        "name": "q",
        "config": {"user.a": "1"},
        "description": "",
        "devices": {"eth0": {"type": "nic"}},
    }
    assert run("profile", "rename", "default", "r").out == "Profile default renamed to r\n"
    assert run("profile", "delete", "default").out == "Profile default deleted\n"
    assert run("profile", "device", "add", "default", "x", "none").status == 0
    assert server.sent("PUT", DEFAULT)["devices"]["x"] == {"type": "none"}


@pytest.mark.parametrize(
    ("words", "profiles"),
    [
        (["assign", "c1", "a,b"], ["a", "b"]),
        (["assign", "c1", ""], []),
        (["add", "c1", "big"], ["default", "big"]),
        (["remove", "c1", "default"], []),
    ],
)
def test_profiles_of_an_instance(run: Run, server: FakeServer, words: list[str], profiles: list[str]) -> None:
    assert run("profile", *words).status == 0
    assert server.sent("PUT", C1)["profiles"] == profiles


def test_profiles_that_are_or_are_not_there(run: Run) -> None:
    assert "is applied to c1 already" in run("profile", "add", "c1", "default").err
    assert "isn't currently applied" in run("profile", "remove", "c1", "big").err


def test_metadata_and_templates(run: Run, server: FakeServer) -> None:
    server.say(f"{C1}/metadata", {"templates": {}, "architecture": "x86_64", "creation_date": 5}, etag="m")
    server.say(f"{C1}/metadata", {}, method="PUT")
    server.say(f"{C1}/metadata/templates", ["b.tpl", "a.tpl"])
    server.say(f"{C1}/metadata/templates", {}, method="POST")
    assert run("config", "metadata", "show", "c1").out == "architecture: x86_64\ncreation_date: 5\ntemplates: {}\n"
    assert run("config", "metadata", "edit", "c1", stdin="creation_date: 9\n").status == 0
    assert server.sent("PUT", f"{C1}/metadata") == {"creation_date": 9}
    assert run("config", "template", "list", "c1").out == "a.tpl\nb.tpl\n"
    assert "exists already" in run("config", "template", "create", "c1", "a.tpl").err
    assert run("config", "template", "edit", "c1", "a.tpl", stdin="{{ x }}").status == 0
    (post,) = server.requests("POST", f"{C1}/metadata/templates")
    assert (post.query, post.body) == ({"path": "a.tpl"}, b"{{ x }}")


def test_trust(run: Run, server: FakeServer, tmp_path: Path) -> None:
    token = {"secret": "s", "fingerprint": "f", "addresses": ["198.18.0.1:8443"], "request": {"name": "me"}}
    server.work("POST", "/1.0/certificates", metadata=token)
    out = run("config", "trust", "add", "--name", "me").out
    from base64 import b64decode
    from json import loads

    assert loads(b64decode(out.splitlines()[1]))["secret"] == "s"
    assert server.sent("POST", "/1.0/certificates")["token"] is True
    assert "Failed reading the certificate" in run("config", "trust", "add", str(tmp_path / "no.crt")).err
    server.say("/1.0/certificates/abc", {}, method="DELETE")
    assert run("config", "trust", "remove", "abc").status == 0


def test_tokens_are_listed_and_taken_back(run: Run, server: FakeServer) -> None:
    token = {"secret": "s", "fingerprint": "f", "addresses": ["a:1"], "request": {"name": "me"}}
    running = [
        {"id": "1", "class": "token", "metadata": token},
        {"id": "2", "class": "token", "metadata": {"secret": "of an image"}},
        {"id": "3", "class": "task", "metadata": None},
    ]
    server.say("/1.0/operations", {"running": running})
    listed = run("config", "trust", "list-tokens", "-f", "csv").out
    assert len(listed.splitlines()) == 1
    assert listed.startswith("me,")
    assert "No token found for the client you" in run("config", "trust", "revoke-token", "you").err
    server.say("/1.0/operations/1", {}, method="DELETE")
    assert "revoked" in run("config", "trust", "revoke-token", "me").out
    assert len(server.requests("DELETE")) == 1
    server.say("/1.0/operations", {})
    assert run("config", "trust", "list-tokens", "-f", "csv").out == ""
