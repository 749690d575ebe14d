# SPDX-License-Identifier: Apache-2.0
"""`flexc remote add` of a server on the network: what it shows is looked at before it is trusted."""

import json
import ssl
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.unit.cli.conftest import Run
from tests.unit.client.fake_server import FakeServer, envelope
from tests.unit.server.pki_house import Holder, make


@pytest.fixture(scope="module")
def shown() -> Holder:
    """The server's certificate."""
    return make("server")


@pytest.fixture
def far(shown: Holder, tmp_path: Path) -> Iterator[FakeServer]:
    """A server on the network, which trusts after a POST."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*shown.save(tmp_path, "server"))
    with tempfile.TemporaryDirectory(prefix="fxc-") as directory:
        server = FakeServer(Path(directory) / "socket", context)
        trusted = []

        async def show(_request: web.Request) -> web.Response:
            return envelope({"auth": "trusted" if trusted else "untrusted", "api_extensions": []})

        async def trust(_request: web.Request) -> web.Response:
            trusted.append(1)
            return envelope(None)

        server.on("GET", "/1.0", show)
        server.on("POST", "/1.0/certificates", trust)
        server.say("/1.0/projects", ["/1.0/projects/default"])
        server.say("/1.0/instances", [])
        with server:
            yield server


def token(far: FakeServer, fingerprint: str, *addresses: str) -> str:
    content = {
        "client_name": "me",
        "fingerprint": fingerprint,
        "addresses": [*addresses, far.https_address],
        "secret": "s",
        "expires_at": "0001-01-01T00:00:00Z",
    }
    return b64encode(json.dumps(content).encode()).decode()


def settings_of(settings: Path) -> str:
    path = settings / "config.yml"
    return path.read_text() if path.exists() else ""


def test_a_token_needs_no_questions(run: Run, far: FakeServer, shown: Holder, settings: Path) -> None:
    text = token(far, shown.fingerprint, "127.0.0.1:1")  # the first address is wrong
    assert run("remote", "add", "big", text).err == ""
    sent = far.sent("POST", "/1.0/certificates")
    assert (sent["password"], sent["type"]) == (text, "client")
    assert (settings / "servercerts" / "big.crt").read_text() == shown.pem
    assert run("list", "big:", "-f", "csv").status == 0
    assert "project" not in settings_of(settings)


def test_a_token_of_another_server_is_refused(run: Run, far: FakeServer, settings: Path) -> None:
    result = run("remote", "add", "big", token(far, "0" * 64))
    assert result.status == 1
    assert "its certificate is not the one that the token names" in result.err
    assert far.requests() == []
    assert not (settings / "servercerts" / "big.crt").exists()


@pytest.mark.parametrize("answer", ["y", "yes", "the fingerprint"])
def test_a_person_accepts(run: Run, far: FakeServer, shown: Holder, answer: str) -> None:
    typed = shown.fingerprint.upper() if answer == "the fingerprint" else answer
    result = run("remote", "add", "big", far.https_address, "--password", "hunter2", stdin=typed + "\n")
    assert shown.fingerprint in result.err
    assert result.status == 0
    assert far.sent("POST", "/1.0/certificates")["password"] == "hunter2"


@pytest.mark.parametrize("answer", ["n", "", "0" * 64])
def test_a_person_does_not(run: Run, far: FakeServer, settings: Path, answer: str) -> None:
    result = run("remote", "add", "big", far.https_address, "--password", "x", stdin=answer + "\n")
    assert "NACKed by user" in result.err
    assert far.requests() == []
    assert not (settings / "servercerts").exists()


def test_a_server_that_does_not_trust_leaves_nothing(run: Run, far: FakeServer, settings: Path) -> None:
    far.fail("/1.0/certificates", 403, "not authorized", method="POST")
    result = run("remote", "add", "big", far.https_address, "--password", "x", "--accept-certificate")
    assert "not authorized" in result.err
    assert not (settings / "servercerts" / "big.crt").exists()
    assert "big" not in settings_of(settings)


def test_a_client_restricted_to_one_project_means_that_one(
    run: Run, far: FakeServer, shown: Holder, settings: Path
) -> None:
    far.say("/1.0/projects", ["/1.0/projects/mine"])
    assert run("remote", "add", "big", token(far, shown.fingerprint)).status == 0
    assert "project: mine" in settings_of(settings)
    run("list", "big:")
    assert far.requests("GET", "/1.0/instances")[0].query["project"] == "mine"


def test_a_certificate_that_changed_is_not_used(run: Run, far: FakeServer, shown: Holder, settings: Path) -> None:
    assert run("remote", "add", "big", token(far, shown.fingerprint)).status == 0
    (settings / "servercerts" / "big.crt").write_text(make("another").pem)
    result = run("list", "big:")
    assert "not the one that was accepted" in result.err


def test_names(run: Run, far: FakeServer, shown: Holder) -> None:
    assert "a name: flexc remote add NAME [fd42::1]" in run("remote", "add", "[fd42::1]").err
    assert "a name: flexc remote add NAME fd42::1" in run("remote", "add", "fd42::1").err
    args: Any = ("--password", "x", "--accept-certificate")
    assert run("remote", "add", f"https://{far.https_address}/", *args).status == 0
    assert "127.0.0.1,https://127.0.0.1:" in run("remote", "list", "-f", "csv").out
