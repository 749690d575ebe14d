# SPDX-License-Identifier: Apache-2.0
"""`flexc remote`: the servers that this person knows."""

from __future__ import annotations

import json
import os

from flexd.cli.ask import ask_secret, confirm
from flexd.cli.command import FORMAT, Command, Group, Option, Positional
from flexd.cli.errors import CliError, UsageError
from flexd.cli.show import yes_no
from flexd.cli.table import natural_key, print_list
from flexd.client.client import Client
from flexd.client.errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _list(context: Context, args: Arguments) -> None:
    config = context.config
    rows = []
    for name, settings in config.remotes.items():
        shown = f"{name} (current)" if name == config.default_remote else name
        address = str(settings.get("addr", ""))
        protocol = str(settings.get("protocol") or "lxd")
        images = protocol != "lxd"
        auth = "none" if images else "file access" if address.startswith("unix:") else "tls"
        public = yes_no(settings.get("public", images)).upper()
        rows.append([shown, address, protocol, auth, public, yes_no(config.is_built_in(name)).upper()])
    header = ["name", "url", "protocol", "auth type", "public", "static"]
    print_list(args.format, header, sorted(rows, key=natural_key), config.remotes)


def _get_default(context: Context, args: Arguments) -> None:  # noqa: ARG001
    print(context.config.default_remote)


def _switch(context: Context, args: Arguments) -> None:
    if (context.config.remote(args.remote).get("protocol") or "lxd") != "lxd":
        raise CliError(f"The remote {args.remote} serves images only: it can't be the default one")
    context.config.default_remote = args.remote
    context.config.save()


def _remove(context: Context, args: Arguments) -> None:
    config = context.config
    config.remote(args.remote)
    if config.is_built_in(args.remote):
        raise CliError(f"The remote {args.remote} is built in and can't be removed")
    if args.remote == config.default_remote:
        raise CliError("Can't remove the default remote; switch to another one first: flexc remote switch local")
    from flexd.cli.remotes import certificate_path

    del config.remotes[args.remote]
    config.save()
    if os.path.exists(certificate_path(args.remote)):
        os.unlink(certificate_path(args.remote))


def _rename(context: Context, args: Arguments) -> None:
    config = context.config
    config.remote(args.remote)
    if config.is_built_in(args.remote) or args.new_name in config.remotes:
        raise CliError(f"Can't rename {args.remote} to {args.new_name}: one is built in or exists already")
    from flexd.cli.remotes import certificate_path

    if os.path.exists(certificate_path(args.remote)):
        os.rename(certificate_path(args.remote), certificate_path(args.new_name))
    config.remotes[args.new_name] = config.remotes.pop(args.remote)
    if config.default_remote == args.remote:
        config.default_remote = args.new_name
    config.save()


def _set_url(context: Context, args: Arguments) -> None:
    config = context.config
    config.remote(args.remote)
    if args.remote == "local":
        raise CliError("The remote local is built in; its socket is chosen by FLEXD_DIR")
    config.remotes[args.remote]["addr"] = args.url
    config.save()


def _add(context: Context, args: Arguments) -> None:
    name, target = (args.remote, args.address) if args.address else ("", args.remote)
    token = _decode_token(target)
    if token is not None:
        _add_by_token(context, args, name or token["client_name"], token, target)
        return
    name = name or _name_of(target)
    _check_new(context, name)
    if args.protocol in ("simplestreams", "oci"):
        address = target if "://" in target else f"https://{target}"
        context.config.remotes[name] = {"addr": address, "protocol": args.protocol, "public": True}
        context.config.save()
        return
    if target.startswith("unix:"):
        context.config.remotes[name] = {"addr": target, "project": args.project}
        context.config.save()
        return
    settings = _settings(target, args)
    _accept_certificate(name, settings["addr"], args.accept_certificate)
    _finish(context, name, settings, {"password": args.password}, ask=not args.password)


def _name_of(address: str) -> str:
    """What a server is called if the person does not say: its host, unless that is an IPv6 address (`remote:name`)."""
    host = address.rpartition("://")[2].partition("/")[0]
    if host.startswith("[") or host.count(":") > 1:
        raise UsageError(f"Give the server at {address} a name: flexc remote add NAME {address}")
    return host.partition(":")[0]


def _settings(address: str, args: Arguments) -> dict[str, Any]:
    from flexd.cli.remotes import split_address

    host, port = split_address(address)
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    settings: dict[str, Any] = {"addr": url, "protocol": "lxd", "public": args.public}
    return {**settings, **({"project": args.project} if args.project else {})}


def _check_new(context: Context, name: str) -> None:
    if name in context.config.remotes and (name == "local" or not context.config.is_built_in(name)):
        raise CliError(f"Remote {name} exists as <{context.config.remotes[name].get('addr')}>")
    if not name or "/" in name or ":" in name:
        raise UsageError(f'Invalid name of a remote: "{name}"')


def _decode_token(text: str) -> dict[str, Any] | None:
    """A token is base64 of JSON; an address never is."""
    from binascii import Error, a2b_base64

    try:
        token = json.loads(a2b_base64(text.encode()))
    except (Error, ValueError):
        return None
    return token if isinstance(token, dict) and "secret" in token else None


def _add_by_token(context: Context, args: Arguments, name: str, token: dict[str, Any], text: str) -> None:
    _check_new(context, name)
    failures = []
    for address in token["addresses"]:
        settings = _settings(address, args)
        try:
            pem, fingerprint = _fetch(settings["addr"])
        except ClientError as error:
            failures.append(str(error))
            continue
        if fingerprint != token["fingerprint"]:
            failures.append(f"{address}: its certificate is not the one that the token names")
            continue
        _keep_certificate(name, pem)
        # LXD 5.0 takes the whole token as the password, later ones know a field for it.
        _finish(context, name, settings, {"password": text, "trust_token": text}, ask=False)
        return
    raise CliError("None of the token's addresses can be used:\n" + "\n".join(failures))


def _fetch(address: str) -> tuple[str, str]:
    """The certificate that a server shows, and its fingerprint."""
    import hashlib
    import ssl

    from flexd.cli.remotes import split_address
    from flexd.client.endpoint import fetch_certificate

    pem = fetch_certificate(*split_address(address))
    return pem, hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def _accept_certificate(name: str, address: str, accepted: bool) -> None:
    """Ask the person about the server's certificate and keep it."""
    pem, fingerprint = _fetch(address)
    if not accepted and not confirm(f"Certificate fingerprint: {fingerprint}\nok (y/n/[fingerprint])? ", fingerprint):
        raise CliError("Server certificate NACKed by user")
    _keep_certificate(name, pem)


def _keep_certificate(name: str, pem: str) -> None:
    """The one that was looked at, not another one that the server might show next time."""
    from flexd.cli.remotes import certificate_path

    os.makedirs(os.path.dirname(certificate_path(name)), mode=0o700, exist_ok=True)
    with open(certificate_path(name), "w", encoding="ascii") as file:
        file.write(pem)


def _finish(context: Context, name: str, settings: dict[str, Any], secrets: dict[str, str], ask: bool) -> None:
    """Be trusted by the server, and write the remote down only then."""
    from flexd.cli.remotes import certificate_path, https_endpoint

    client = Client(https_endpoint(name, settings["addr"], settings))
    try:
        if client.get("/1.0")["auth"] != "trusted" and not settings["public"]:
            if ask:
                secrets = {"password": ask_secret(f"Admin password (or token) for {name}: ")}
            body = {"type": "client", "name": "", "certificate": "", **secrets}
            client.request("POST", "/1.0/certificates", {key: value for key, value in body.items() if value})
            if client.get("/1.0")["auth"] != "trusted":
                raise CliError("Server doesn't trust us after authentication")
        if not settings.get("project"):
            _choose_project(client, settings)
    except (CliError, ClientError):
        os.unlink(certificate_path(name))
        raise
    finally:
        client.close()
    context.config.remotes[name] = settings
    context.config.save()
    context.say(f"Client certificate now trusted by server: {name}")


def _choose_project(client: Client, settings: dict[str, Any]) -> None:
    """A client that is restricted to one project means that one."""
    projects = [url.rpartition("/")[2] for url in client.get("/1.0/projects")] if not settings["public"] else []
    if len(projects) == 1 and projects != ["default"]:
        settings["project"] = projects[0]


_REMOTE = Positional("remote", completes="remote")

COMMAND = Group(
    "remote",
    "Manage the list of servers",
    [
        Command(
            "add",
            "Add a server",
            _add,
            "[<remote>] <IP|FQDN|URL|token>",
            [Positional("remote"), Positional("address", "?")],
            [
                Option("--accept-certificate", action="store_true", help="Don't ask about the server's certificate"),
                Option("--password", default="", help="Admin password of the server"),
                Option(
                    "--protocol",
                    default="lxd",
                    choices=("lxd", "simplestreams", "oci"),
                    help="lxd (default), simplestreams: a server of images, oci: a registry of application images",
                ),
                Option("--public", action="store_true", help="It serves public images; don't ask to be trusted"),
            ],
            examples=[
                ("flexc remote add big 192.0.2.7", "Asks for a password or token"),
                ("flexc remote add big <token>", "With what `flexc config trust add` printed there"),
                ("flexc remote add ghcr https://ghcr.io --protocol=oci", "A registry of OCI images"),
            ],
        ),
        Command("get-default", "Show the default server", _get_default),
        Command("list", "List servers", _list, "", (), [FORMAT], aliases=["ls"]),
        Command("remove", "Remove a server", _remove, "<remote>", [_REMOTE], aliases=["rm"]),
        Command(
            "rename",
            "Rename a server",
            _rename,
            "<remote> <new-name>",
            [_REMOTE, Positional("new_name")],
            aliases=["mv"],
        ),
        Command("set-url", "Change the address of a server", _set_url, "<remote> <URL>", [_REMOTE, Positional("url")]),
        Command("switch", "Choose the default server", _switch, "<remote>", [_REMOTE], aliases=["set-default"]),
    ],
    details="local is the daemon on this machine. Names of things on another server begin with its name: big:web.",
)
