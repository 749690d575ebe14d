# SPDX-License-Identifier: Apache-2.0
"""remote, and the person's settings file."""

import json
import os
from pathlib import Path

import pytest

from flexd.cli.commands.remote import _decode_token
from flexd.cli.config import Config, load_config
from flexd.cli.errors import CliError
from flexd.cli.remotes import client_certificate, https_endpoint, split_address
from tests.unit.cli.conftest import Run
from tests.unit.client.fake_server import FakeServer


def test_list_starts_with_the_local_daemon(run: Run) -> None:
    listed = run("remote", "list", "-f", "csv").out.splitlines()
    assert [line.split(",")[0] for line in listed] == [
        "debian",
        "docker",
        "images",
        "local (current)",
        "ubuntu",
        "ubuntu-daily",
    ]
    assert listed[3] == "local (current),unix://,lxd,file access,NO,YES"
    assert listed[0] == "debian,build:debian,build,none,YES,YES"
    assert run("remote", "get-default").out == "local\n"


def test_a_socket_elsewhere_is_a_remote(run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXD_SOCKET", "/nowhere")
    server.say("/1.0/instances", [])
    assert run("remote", "add", "other", f"unix://{server.socket_path}").status == 0
    assert run("list", "other:", "-f", "csv").status == 0
    assert run("remote", "switch", "other").status == 0
    assert run("list", "-f", "csv").status == 0
    assert run("list", "--force-local").status == 1
    assert "Can't remove the default remote" in run("remote", "remove", "other").err
    assert run("remote", "rename", "other", "another").status == 0
    assert run("remote", "get-default").out == "another\n"
    assert run("remote", "set-url", "another", "unix:///elsewhere").status == 0
    assert "/elsewhere" in run("list").err
    assert run("remote", "switch", "local").status == 0
    assert run("remote", "remove", "another").status == 0
    assert "another" not in run("remote", "list", "-f", "csv").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["switch", "nope"], 'The remote "nope" doesn\'t exist. Known remotes: debian, docker, images, local'),
        (["switch", "images"], "serves images only"),
        (["remove", "ubuntu"], "built in"),
        (["remove", "local"], "built in"),
        (["rename", "local", "x"], "built in"),
        (["set-url", "local", "x"], "FLEXD_DIR"),
        (["add", "local", "198.18.0.1"], "Remote local exists"),
        (["add", "a/b", "198.18.0.1"], "Invalid name"),
        (["add", "x", "127.0.0.1:1"], "Connection refused"),
    ],
)
def test_wrong_remotes(run: Run, words: list[str], message: str) -> None:
    assert message in run("remote", *words).err


def test_names_of_unknown_remotes(run: Run) -> None:
    assert 'The remote "nope" doesn\'t exist' in run("info", "nope:c1").err


def test_image_servers_have_no_instances(run: Run) -> None:
    assert run("remote", "add", "images", "https://images.example", "--protocol=simplestreams").status == 0
    assert "serves images only" in run("list", "images:").err
    listed = run("remote", "list", "-f", "csv").out.splitlines()
    assert listed[2] == "images,https://images.example,simplestreams,none,YES,NO"
    assert run("remote", "remove", "images").status == 0
    assert "linuxcontainers" in run("remote", "list", "-f", "csv").out  # the one that is built in shows again
    assert "serves images only" in run("list", "debian:").err


def test_a_launch_from_an_image_server_names_it_to_the_daemon(run: Run, server: FakeServer) -> None:
    run("remote", "add", "images", "https://images.example", "--protocol=simplestreams")
    server.work("POST", "/1.0/instances")
    assert run("init", "images:debian/12", "c1").status == 0
    assert server.sent("POST", "/1.0/instances")["source"] == {
        "type": "image",
        "mode": "pull",
        "server": "https://images.example",
        "protocol": "simplestreams",
        "alias": "debian/12",
    }


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://big:8443", ("big", 8443)),
        ("big", ("big", 8443)),
        ("https://big/", ("big", 8443)),
        ("198.18.0.1:443", ("198.18.0.1", 443)),
        ("[fd42::1]:443", ("fd42::1", 443)),
        ("https://[fd42::1]", ("fd42::1", 8443)),
        ("fd42::1", ("fd42::1", 8443)),
    ],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


def test_wrong_addresses(settings: Path) -> None:
    with pytest.raises(CliError, match="expected https://HOST"):
        split_address("big:port")
    with pytest.raises(CliError, match="neither unix:// nor https://"):
        https_endpoint("x", "ftp://x", {})


def test_our_certificate_is_made_once_and_the_key_is_ours_alone(settings: Path) -> None:
    certificate, key = client_certificate()
    assert os.stat(key).st_mode & 0o777 == 0o600
    first = Path(certificate).read_text()
    assert client_certificate() == (certificate, key)
    assert Path(certificate).read_text() == first
    assert https_endpoint("x", "https://big", {}).url == "https://big:8443"


def test_tokens() -> None:
    from base64 import b64encode

    token = b64encode(json.dumps({"secret": "s", "addresses": []}).encode()).decode()
    assert _decode_token(token) == {"secret": "s", "addresses": []}
    assert _decode_token("198.18.0.1") is None
    assert _decode_token("big.example") is None
    assert _decode_token(b64encode(b"[1]").decode()) is None


def test_settings_are_read_again_when_the_file_changes(settings: Path) -> None:
    assert load_config().aliases == {}
    Config({"aliases": {"a": "list"}}).save()
    assert load_config().aliases == {"a": "list"}
    assert (settings / ".config.parsed.json").exists()
    assert load_config().aliases == {"a": "list"}
    (settings / "config.yml").write_text("aliases: {b: info}\n")
    assert load_config().aliases == {"b": "info"}
    (settings / ".config.parsed.json").write_text("{broken")
    assert load_config().aliases == {"b": "info"}


@pytest.mark.parametrize("text", ["- a\n", "a: ["])
def test_broken_settings_are_named(settings: Path, text: str) -> None:
    settings.mkdir()
    (settings / "config.yml").write_text(text)
    with pytest.raises(CliError, match=r"config\.yml"):
        load_config()
