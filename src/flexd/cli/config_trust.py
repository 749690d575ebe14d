# SPDX-License-Identifier: Apache-2.0
"""`flexc config trust`: who may use the server over the network."""

from __future__ import annotations

import json
import os

from flexd.cli import entity as verbs
from flexd.cli.command import FORMAT, Command, Group, Option, Positional
from flexd.cli.context import only_remote
from flexd.cli.errors import CliError
from flexd.cli.table import natural_key, print_list
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

_NEVER = "0001-01-01T00:00:00Z"


def _locate(context: Context, args: Arguments) -> tuple[Client, str, str]:
    client, fingerprint = context.resolve(args.fingerprint)
    return client, path_of("certificates", fingerprint), fingerprint


_CERTIFICATE = verbs.Entity(
    "trusted certificate",
    "[<remote>:]<fingerprint>",
    [Positional("fingerprint", completes="certificate")],
    _locate,
    ("name", "type", "restricted", "projects", "certificate"),
    ("name", "type", "restricted", "projects", "certificate", "fingerprint"),
)


def _list(context: Context, args: Arguments) -> None:
    certificates = only_remote(context, args.remote).get("/1.0/certificates", {"recursion": "1"})
    rows = sorted((_row(each) for each in certificates), key=natural_key)
    header = ["type", "name", "common name", "fingerprint", "issue date", "expiry date"]
    print_list(args.format, header, rows, certificates)


def _row(certificate: dict[str, Any]) -> list[str]:
    from cryptography import x509

    parsed = x509.load_pem_x509_certificate(certificate["certificate"].encode())
    common = parsed.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    days = [time.strftime("%b %-d, %Y at %-I:%M%P (UTC)") for time in _validity(parsed)]
    name = str(common[0].value) if common else ""
    return [certificate["type"], certificate["name"], name, certificate["fingerprint"][:12], *days]


def _validity(certificate: Any) -> tuple[Any, Any]:
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _add(context: Context, args: Arguments) -> None:
    words = list(args.word)
    client = only_remote(context, words.pop(0)) if words and words[0].endswith(":") else context.client()
    if len(words) > 1:
        raise CliError(f'"{words[1]}" not expected: give one certificate, or none for a token')
    body: dict[str, Any] = {
        "name": args.name,
        "type": args.type,
        "restricted": args.restricted,
        "projects": [name for name in args.projects.split(",") if name],
    }
    if words:
        _add_certificate(client, words[0], body)
    else:
        _add_token(client, body)


def _add_certificate(client: Client, path: str, body: dict[str, Any]) -> None:
    import ssl
    from binascii import b2a_base64

    try:
        with open(path, encoding="ascii") as file:
            der = ssl.PEM_cert_to_DER_cert(file.read())
    except (OSError, ValueError) as error:
        raise CliError(f"Failed reading the certificate {path}: {error}") from error
    name = body["name"] or os.path.basename(path)
    client.request("POST", "/1.0/certificates", {**body, "name": name, "certificate": b2a_base64(der).decode().strip()})


def _add_token(client: Client, body: dict[str, Any]) -> None:
    name = body["name"] or input("Please provide client name: ")
    reply = client.request("POST", "/1.0/certificates", {**body, "name": name, "token": True})
    print(f"Client {name} certificate add token:\n{_token_of(reply.metadata)}")


def _token_of(operation: dict[str, Any]) -> str:
    """What a client is given, as LXD writes it."""
    from binascii import b2a_base64

    details = operation["metadata"]
    token = {
        "client_name": details["request"]["name"],
        "fingerprint": details["fingerprint"],
        "addresses": details["addresses"],
        "secret": details["secret"],
        "expires_at": details.get("expiresAt") or _NEVER,
    }
    return b2a_base64(json.dumps(token).encode(), newline=False).decode()


def _tokens(client: Client) -> list[dict[str, Any]]:
    """Operations of tokens that can still be used."""
    running = client.get("/1.0/operations", {"recursion": "1"}).get("running") or []
    return [each for each in running if each["class"] == "token" and "request" in (each.get("metadata") or {})]


def _list_tokens(context: Context, args: Arguments) -> None:
    tokens = _tokens(only_remote(context, args.remote))
    rows = [
        [each["metadata"]["request"]["name"], _token_of(each), each["metadata"].get("expiresAt") or ""]
        for each in tokens
    ]
    print_list(args.format, ["name", "token", "expires at"], sorted(rows, key=natural_key), tokens)


def _revoke_token(context: Context, args: Arguments) -> None:
    client, name = context.resolve(args.name)
    found = [each for each in _tokens(client) if each["metadata"]["request"]["name"] == name]
    if not found:
        raise CliError(f"No token found for the client {name}. See: flexc config trust list-tokens")
    for each in found:
        client.cancel(path_of("operations", each["id"]))
    context.say(f"Token for the client {name} revoked")


def _remove(context: Context, args: Arguments) -> None:
    client, path, _ = _locate(context, args)
    client.request("DELETE", path)


TRUST = Group(
    "trust",
    "Manage who may use the server over the network",
    [
        Command(
            "add",
            "Trust a client, or make a token for one",
            _add,
            "[<remote>:] [<certificate>]",
            [Positional("word", "*", completes="file")],
            [
                Option("--name", default="", help="Name of the client"),
                Option("--projects", default="", help="Projects that it is restricted to"),
                Option("--restricted", action="store_true", help="Restrict it to projects"),
                Option(
                    "--type", default="client", choices=("client", "metrics"), help='"client" (default) or "metrics"'
                ),
            ],
            details="Without a certificate, prints a token that the client uses once: flexc remote add NAME TOKEN",
        ),
        verbs.edit(_CERTIFICATE),
        Command(
            "list",
            "List trusted clients",
            _list,
            "[<remote>:]",
            [Positional("remote", "?", completes="remote")],
            [FORMAT],
            aliases=["ls"],
        ),
        Command(
            "list-tokens",
            "List tokens that were not used yet",
            _list_tokens,
            "[<remote>:]",
            [Positional("remote", "?", completes="remote")],
            [FORMAT],
        ),
        _CERTIFICATE.command("remove", "Trust a client no longer", _remove, aliases=["rm"]),
        Command(
            "revoke-token",
            "Take back a token",
            _revoke_token,
            "[<remote>:]<client>",
            [Positional("name")],
        ),
        verbs.show(_CERTIFICATE),
    ],
)
