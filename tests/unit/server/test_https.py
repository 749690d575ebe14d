# SPDX-License-Identifier: Apache-2.0
"""The API over HTTPS, as clients of every kind meet it. Wordings are LXD 5.0.2's, recorded."""

import asyncio
import json
import shutil
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.unit.server.conftest import Client
from tests.unit.server.network_house import Network, Remote, free_address, network_of
from tests.unit.server.pki_house import NOW, Holder, make, revocations


@pytest.fixture
async def network(client: Client, tmp_path: Path) -> AsyncIterator[Network]:
    (tmp_path / "clients").mkdir()
    async with network_of(client, tmp_path / "clients") as found:
        yield found


async def refused(remote: Remote, path: str = "/1.0/instances", method: str = "GET") -> str:
    answer = await remote.call(method, path)
    assert answer.status == 403, answer.body
    return answer.error


async def token(network: Network, **members: Any) -> str:
    """As `lxc config trust add` prints it."""
    body = {"type": "client", "name": "laptop", "token": True, **members}
    answer = await network.client.call("POST", "/1.0/certificates", body)
    assert answer.status == 202, answer.body
    made = answer.metadata["metadata"]
    text = {
        "client_name": made["request"]["name"],
        "fingerprint": made["fingerprint"],
        "addresses": made["addresses"],
        "secret": made["secret"],
        "expires_at": made.get("expiresAt", "0001-01-01T00:00:00Z"),
    }
    return b64encode(json.dumps(text).encode()).decode()


def join(remote: Remote, password: str) -> Any:
    return remote.call("POST", "/1.0/certificates", {"type": "client", "password": password})


@pytest.mark.parametrize("holder", [None, make()], ids=["no certificate", "an unknown one"])
async def test_strangers_see_what_is_public(network: Network, holder: Holder | None) -> None:
    remote = await network.remote(holder)
    shown = (await remote.call("GET", "/1.0")).metadata
    assert set(shown) == {"api_extensions", "api_status", "api_version", "auth", "auth_methods", "public"}
    assert (shown["auth"], shown["auth_methods"], shown["public"]) == ("untrusted", ["tls"], False)
    assert (await remote.call("GET", "/")).metadata == ["/1.0"]
    assert (await remote.call("GET", "/1.0/images")).status == 200
    for path in ("/1.0/instances", "/1.0/certificates", "/1.0/operations", "/1.0/metrics", "/1.0/events"):
        assert await refused(remote, path) == "not authorized"
    assert await refused(remote, "/1.0", "PUT") == "not authorized"
    assert (await remote.call("GET", "/1.0/operations/x/websocket")).error == "missing secret"


async def test_trusted_clients_see_all_and_where_the_server_is(network: Network) -> None:
    holder = make("alice")
    await network.trust(holder)
    remote = await network.remote(holder)
    shown = (await remote.call("GET", "/1.0")).metadata
    environment = shown["environment"]
    assert (shown["auth"], environment["addresses"]) == ("trusted", [network.address])
    certificate = (network.client.daemon.directory / "server.crt").read_text()
    assert environment["certificate"] == certificate
    assert len(environment["certificate_fingerprint"]) == 64
    assert (await remote.call("GET", "/1.0/instances")).status == 200


async def test_the_certificate_of_the_server(network: Network) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    directory = network.client.daemon.directory
    assert (directory / "server.key").stat().st_mode & 0o777 == 0o600
    found = x509.load_pem_x509_certificate((directory / "server.crt").read_bytes())
    key = found.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp384r1"
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert found.not_valid_after_utc - found.not_valid_before_utc == timedelta(days=3650)


async def test_a_token_lets_one_client_in_once(network: Network) -> None:
    text = await token(network)
    first, second = await network.remote(make("first")), await network.remote(make("second"))
    assert await first.auth() == "untrusted"
    answer = await join(first, text)
    assert (answer.status, answer.headers["Location"].rpartition("/")[0]) == (201, "/1.0/certificates")
    assert await first.auth() == "trusted"  # on the same connection
    assert (await join(first, text)).error == "Client is already trusted"
    answer = await join(second, text)
    assert (answer.status, answer.error) == (403, "No matching certificate add operation found")
    listed = (await first.call("GET", "/1.0/certificates?recursion=1")).metadata
    assert [(each["name"], each["type"], each["restricted"]) for each in listed] == [("laptop", "client", False)]


async def test_a_tokens_client_gets_what_its_maker_said(network: Network) -> None:
    text = await token(network, restricted=True, projects=["default"])
    remote = await network.remote(make())
    body = {"type": "metrics", "name": "other", "password": text, "restricted": False}
    assert (await remote.call("POST", "/1.0/certificates", body)).status == 201
    listed = (await network.client.call("GET", "/1.0/certificates?recursion=1")).metadata
    assert [(each["name"], each["type"], each["restricted"], each["projects"]) for each in listed] == [
        ("laptop", "client", True, ["default"])
    ]


async def test_a_token_needs_a_certificate_and_is_not_lost_without(network: Network) -> None:
    text = await token(network)
    answer = await join(await network.remote(), text)
    assert (answer.status, answer.error) == (400, "No client certificate provided")
    assert (await join(await network.remote(make()), text)).status == 201


async def test_tokens_expire(network: Network) -> None:
    await network.set("core.remote_token_expiry", "1S")
    made = await network.client.call("POST", "/1.0/certificates", {"type": "client", "name": "x", "token": True})
    operation = made.envelope["operation"]
    assert made.metadata["metadata"]["expiresAt"] > made.metadata["created_at"]
    ended = await network.client.call("GET", f"{operation}/wait?timeout=20")
    assert ended.metadata["status"] == "Cancelled"


async def test_tokens_can_be_taken_back(network: Network) -> None:
    text = await token(network)
    operations = (await network.client.call("GET", "/1.0/operations")).metadata["running"]
    assert (await network.client.call("DELETE", operations[0])).status == 200
    assert (await join(await network.remote(make()), text)).status == 403


async def test_a_token_needs_an_address(client: Client) -> None:
    body = {"type": "client", "name": "x", "token": True}
    answer = await client.call("POST", "/1.0/certificates", body)
    assert (answer.status, answer.error) == (400, "Can't issue token when server isn't listening on network")


async def test_the_password(network: Network) -> None:
    remote = await network.remote(make("alice"))
    assert (await join(remote, "hunter2")).status == 403  # there is none yet
    await network.set("core.trust_password", "hunter2")
    shown = (await network.client.call("GET", "/1.0")).metadata["config"]
    assert shown["core.trust_password"] == "true"
    assert (await join(remote, "hunter3")).error == "not authorized"
    assert (await join(remote, "hunter2")).status == 201
    listed = (await remote.call("GET", "/1.0/certificates?recursion=1")).metadata
    assert [each["name"] for each in listed] == ["alice"]


async def test_a_password_survives_clients_that_send_back_what_they_saw(network: Network) -> None:
    await network.set("core.trust_password", "hunter2")
    for shown in ("true", True):
        body = {"config": {"core.https_address": network.address, "core.trust_password": shown}}
        assert (await network.client.call("PUT", "/1.0", body)).status == 200
    assert (await join(await network.remote(make()), "hunter2")).status == 201
    await network.set("core.trust_password", "")
    assert (await join(await network.remote(make()), "hunter2")).status == 403


async def test_guessing_is_slowed_down(network: Network) -> None:
    await network.set("core.trust_password", "hunter2")
    remote = await network.remote(make())
    statuses = [(await join(remote, f"guess {number}")).status for number in range(5)]
    assert statuses == [403, 403, 403, 429, 429]
    answer = await join(remote, "hunter2")
    assert answer.status == 429
    assert "too many wrong passwords" in answer.error


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"type": "client", "token": True, "certificate": "x"}, "Can't use certificate if token is requested"),
        ({"type": "metrics", "token": True}, "Tokens can only be issued for client certificates"),
        ({"type": "server", "certificate": "x"}, "Invalid certificate type"),
        ({"type": "client"}, "No client certificate provided"),
        ({"type": "client", "certificate": "!"}, "Invalid certificate: it is not base64 of DER"),
        ({"type": "client", "certificate": "eHh4"}, "Invalid certificate material"),
        ({"type": "client", "certificate": "eHh4", "projects": ["nope"]}, "Project not found"),
    ],
)
async def test_wrong_requests(network: Network, body: dict[str, Any], error: str) -> None:
    answer = await network.client.call("POST", "/1.0/certificates", body)
    assert answer.status in (400, 404)
    assert answer.error.startswith(error)


async def test_a_certificate_is_added_once(network: Network) -> None:
    holder = make()
    await network.trust(holder)
    body = {"type": "client", "certificate": b64encode(holder.der).decode()}
    answer = await network.client.call("POST", "/1.0/certificates", body)
    assert (answer.status, answer.error) == (409, "Certificate already in trust store")


async def test_expired_ones_are_told_so(network: Network) -> None:
    holder = make(begin=NOW - timedelta(days=9), end=NOW - timedelta(days=1))
    remote = await network.remote(holder)
    assert await remote.auth() == "untrusted"
    assert (await refused(remote)).startswith("not authorized: the certificate expired on ")
    answer = await join(remote, await token(network))
    assert (answer.status, "expired" in answer.error) == (403, True)
    body = {"type": "client", "certificate": b64encode(holder.der).decode()}
    assert "expired" in (await network.client.call("POST", "/1.0/certificates", body)).error


async def test_removal_takes_effect_on_open_connections(network: Network) -> None:
    holder = make()
    await network.trust(holder)
    remote = await network.remote(holder)
    events = await remote.session.ws_connect(f"{remote.url}/1.0/events")
    assert await remote.auth() == "trusted"
    assert (await network.client.call("DELETE", f"/1.0/certificates/{holder.fingerprint}")).status == 200
    while (message := await asyncio.wait_for(events.receive(), 10)).type is aiohttp.WSMsgType.TEXT:
        assert b"secret" not in str(message.data).encode()
    assert await refused(remote) == "not authorized"
    assert not network.client.daemon.connections.strangers or await remote.auth() == "untrusted"


async def test_who_removes_itself_is_answered(network: Network) -> None:
    holder = make()
    await network.trust(holder)
    remote = await network.remote(holder)
    answer = await remote.call("DELETE", f"/1.0/certificates/{holder.fingerprint[:12]}")
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert await refused(remote) == "not authorized"


async def test_restriction_takes_effect_on_open_connections(network: Network) -> None:
    holder = make()
    await network.trust(holder)
    remote = await network.remote(holder)
    assert (await remote.call("GET", "/1.0/warnings")).status == 200
    url = f"/1.0/certificates/{holder.fingerprint}"
    await network.client.call("PATCH", url, {"restricted": True, "projects": ["default"]})
    assert await refused(remote, "/1.0/warnings") == "not authorized"
    assert (await remote.call("GET", "/1.0/instances")).status == 200
    await network.client.call("PATCH", url, {"projects": []})
    assert await refused(remote) == 'not authorized: the certificate is not for the project "default"'
    assert (await remote.call("GET", "/1.0/instances?all-projects=true")).metadata == []
    assert (await remote.call("GET", "/1.0/projects")).metadata == []


async def test_a_restricted_certificate(network: Network) -> None:
    holder, other = make(), make()
    await network.trust(holder, restricted=True, projects=["default"])
    await network.trust(other)
    await network.client.prepare()
    await token(network)
    remote = await network.remote(holder)
    assert (await remote.call("GET", "/1.0")).metadata["config"] == {}
    assert (await remote.call("GET", "/1.0/storage-pools/default")).metadata["config"] == {}
    assert (await remote.call("GET", "/1.0/certificates")).metadata == [f"/1.0/certificates/{holder.fingerprint}"]
    assert await refused(remote, f"/1.0/certificates/{other.fingerprint}") == "not authorized"
    # Tokens hold secrets: LXD 5.0 shows them.
    assert (await remote.call("GET", "/1.0/operations")).metadata == {}
    for method, path in (("PUT", "/1.0"), ("POST", "/1.0/storage-pools"), ("POST", "/1.0/networks")):
        assert await refused(remote, path, method) == "not authorized"
    assert await refused(remote, "/1.0/events?type=logging") == "not authorized"
    events = await remote.session.ws_connect(f"{remote.url}/1.0/events")
    await events.close()
    made = await remote.call("POST", "/1.0/instances", {"name": "c1", "source": {"type": "none"}})
    assert made.status == 202


async def test_self_renewal(network: Network) -> None:
    """extension: certificate_self_renewal"""
    old, new, other = make("old"), make("new"), make()
    await network.trust(old, restricted=True, projects=["default"])
    await network.trust(other)
    remote = await network.remote(old)
    url = f"/1.0/certificates/{old.fingerprint}"
    for wrong in ({"restricted": False}, {"name": "better"}, {"projects": ["default", "default"]}):
        answer = await remote.call("PATCH", url, wrong)
        assert (answer.status, answer.error) == (403, "Only the certificate can be changed")
    stolen = await remote.call("PATCH", f"/1.0/certificates/{other.fingerprint}", {"certificate": new.pem})
    assert (stolen.status, stolen.error) == (403, "not authorized")
    assert (await remote.call("PATCH", url, {"certificate": new.pem})).status == 200
    assert await remote.auth() == "untrusted"
    renewed = await network.remote(new)
    assert await renewed.auth() == "trusted"
    shown = (await renewed.call("GET", f"/1.0/certificates/{new.fingerprint}")).metadata
    assert (shown["restricted"], shown["projects"]) == (True, ["default"])


async def test_changes_of_a_certificate(network: Network) -> None:
    holder = make()
    await network.trust(holder)
    url = f"/1.0/certificates/{holder.fingerprint}"
    shown = await network.client.call("GET", url)
    assert (await network.client.call("PUT", url, {"name": "n"}, If_Match="wrong")).status == 412
    assert (await network.client.call("PUT", url, {"name": "n"}, If_Match=shown.headers["ETag"])).status == 200
    assert (await network.client.call("GET", url)).metadata["name"] == "n"
    answer = await network.client.call("PUT", url, {"type": "metrics"})
    assert (answer.status, answer.error) == (403, "The certificate type cannot be changed")
    assert (await network.client.call("PATCH", url, {"projects": ["nope"]})).error == "Project not found"
    assert (await network.client.call("PATCH", url, {"certificate": "junk"})).status == 400
    assert (await network.client.call("GET", "/1.0/certificates/zz")).error == "Certificate not found"


async def test_an_ambiguous_prefix(network: Network) -> None:
    holders = [make() for _ in range(17)]  # of 17 two begin with the same hexadecimal digit
    for holder in holders:
        await network.trust(holder)
    firsts = [holder.fingerprint[0] for holder in holders]
    twice = next(first for first in firsts if firsts.count(first) > 1)
    answer = await network.client.call("DELETE", f"/1.0/certificates/{twice}")
    assert (answer.status, answer.error) == (400, "More than one certificate matches")


async def test_metrics_certificates_and_address(network: Network) -> None:
    holder, trusted = make(), make()
    await network.trust(holder, type="metrics")
    await network.trust(trusted)
    address = free_address()
    assert (await network.set("core.metrics_address", address)).status == 200
    for where in (network.address, address):
        scraper = await network.remote(holder, where)
        assert (await scraper.call("GET", "/1.0/metrics")).status == 200
        assert await scraper.auth() == "untrusted"
        assert (await scraper.call("GET", "/1.0/instances")).status == (403 if where == network.address else 404)
    admin = await network.remote(trusted, address)
    assert (await admin.call("GET", "/1.0/metrics")).status == 200
    assert (await admin.call("GET", "/1.0/instances")).error == "not found"
    stranger = await network.remote(None, address)
    assert await refused(stranger, "/1.0/metrics") == "not authorized"
    await network.set("core.metrics_authentication", "false")
    assert (await stranger.call("GET", "/1.0/metrics")).status == 200
    # The metrics address is none that clients are told.
    assert (await admin.call("GET", "/1.0")).metadata["environment"]["addresses"] == [network.address]


async def test_an_authority(network: Network) -> None:
    ca = make("ca", is_ca=True)
    directory = network.client.daemon.directory
    known, signed, revoked = make(), make(issuer=ca), make(issuer=ca)
    await network.trust(known)
    before = await network.remote(known)
    assert await before.auth() == "trusted"
    (directory / "server.ca").write_text(ca.pem)
    (directory / "ca.crl").write_bytes(revocations(ca, revoked))
    await network.client.daemon.listeners.check()
    reason = "not authorized: the certificate is not signed by this server's authority"
    assert await refused(before) == reason
    assert await refused(await network.remote(signed)) == "not authorized"  # signed, but not in the list
    await network.set("core.trust_ca_certificates", "true")
    assert await (await network.remote(signed)).auth() == "trusted"
    assert await refused(await network.remote(revoked)) == "not authorized: the certificate was revoked"
    outsider = await network.remote(make())
    answer = await join(outsider, await token(network))
    assert (answer.status, answer.error) == (403, reason)
    body = {"type": "client", "certificate": b64encode(make().der).decode()}
    assert (await network.client.call("POST", "/1.0/certificates", body)).status == 403


async def test_a_revocation_ends_open_connections(network: Network) -> None:
    ca = make("ca", is_ca=True)
    directory = network.client.daemon.directory
    (directory / "server.ca").write_text(ca.pem)
    await network.client.daemon.listeners.check()
    await network.set("core.trust_ca_certificates", "true")
    holder = make(issuer=ca)
    remote = await network.remote(holder)
    events = await remote.session.ws_connect(f"{remote.url}/1.0/events")
    (directory / "ca.crl").write_bytes(revocations(ca, holder))
    await network.client.daemon.listeners.check()
    assert (await asyncio.wait_for(events.receive(), 10)).type is not aiohttp.WSMsgType.TEXT
    assert "revoked" in await refused(remote)


async def test_a_broken_authority_changes_nothing(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    (network.client.daemon.directory / "server.ca").write_text("junk")
    await network.client.daemon.listeners.check()
    assert "Failed reading server.ca" in caplog.text
    holder = make()
    await network.trust(holder)
    assert await (await network.remote(holder)).auth() == "trusted"


async def test_a_new_certificate_of_the_server_is_used_without_a_restart(network: Network) -> None:
    holder, server = make(), make("server")
    await network.trust(holder)
    old = await network.remote(holder)
    assert await old.auth() == "trusted"
    server.save(network.client.daemon.directory, "server")
    await network.client.daemon.listeners.check()
    new = await network.remote(holder)
    shown = (await new.call("GET", "/1.0")).metadata["environment"]
    assert shown["certificate_fingerprint"] == server.fingerprint
    assert await old.auth() == "trusted"


async def test_browsers_are_told_what_is_configured(network: Network) -> None:
    remote = await network.remote()
    answer = await remote.call("GET", "/1.0", Origin="https://ui.example")
    assert not [name for name in answer.headers if name.startswith("Access-Control")]
    await network.client.call(
        "PATCH",
        "/1.0",
        {
            "config": {
                "core.https_allowed_origin": "https://ui.example",
                "core.https_allowed_methods": "GET, PUT",
                "core.https_allowed_headers": "Content-Type",
                "core.https_allowed_credentials": "true",
            }
        },
    )
    for method in ("GET", "OPTIONS"):
        answer = await remote.call(method, "/1.0/images", Origin="https://ui.example")
        assert answer.headers["Access-Control-Allow-Origin"] == "https://ui.example"
        assert answer.headers["Access-Control-Allow-Methods"] == "GET, PUT"
        assert answer.headers["Access-Control-Allow-Headers"] == "Content-Type"
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
        assert answer.headers["Server"].startswith("flexd/")
    assert "Access-Control-Allow-Origin" not in (await remote.call("GET", "/1.0")).headers


async def test_events_name_the_certificate_that_asked(network: Network) -> None:
    holder = make()
    await network.trust(holder)
    remote = await network.remote(holder)
    async with network.client.session.ws_connect("http://flexd/1.0/events?type=lifecycle") as events:
        await remote.call("PATCH", "/1.0", {"config": {"user.x": "y"}})
        event = json.loads((await asyncio.wait_for(events.receive(), 10)).data)
    requestor = event["metadata"]["requestor"]
    assert (requestor["username"], requestor["protocol"]) == (holder.fingerprint, "tls")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_with_a_certificate(network: Network) -> None:
    holder = make()
    await network.trust(holder)
    certificate, key = await asyncio.to_thread(holder.save, network.directory, "curl")
    for version in ("--tls-max", "1.2"), ("--tlsv1.3",):
        process = await asyncio.create_subprocess_exec(
            *("curl", "-sk", *version, "--cert", certificate, "--key", key, f"https://{network.address}/1.0"),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert json.loads(out)["metadata"]["auth"] == "trusted"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
async def test_openssl_is_asked_for_a_certificate_and_names_no_authority(network: Network) -> None:
    process = await asyncio.create_subprocess_exec(
        *("openssl", "s_client", "-connect", network.address),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert b"No client certificate CA names sent" in out
    assert b"Server public key is 384 bit" in out


async def test_a_raw_upgrade(busy: Client, tmp_path: Path) -> None:
    """The `incus` client's sftp: the connection is no longer HTTP."""
    (tmp_path / "clients").mkdir()
    async with network_of(busy, tmp_path / "clients") as network:
        holder = make()
        await network.trust(holder)
        context = await asyncio.to_thread(holder.context, network.directory)
        host, _, port = network.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(b"GET /1.0/instances/c1/sftp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: sftp\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        writer.write(b"\0\0\0\5\1\0\0\0\3")  # SSH_FXP_INIT, version 3
        length = int.from_bytes(await reader.readexactly(4), "big")
        assert (await reader.readexactly(length))[0] == 2  # SSH_FXP_VERSION
        writer.close()
