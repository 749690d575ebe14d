# SPDX-License-Identifier: Apache-2.0
"""`flexc admin`: setting up the server."""

from __future__ import annotations

import sys
import time

from flexd.cli.command import Command, Group, Option
from flexd.cli.errors import CliError, UsageError
from flexd.client.errors import ConnectionFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

# Between two tries of `waitready`: short against the start of the daemon, long against a connection.
_RETRY_S = 0.05


def _init(context: Context, args: Arguments) -> None:
    from flexd.cli.preseed import Preseed, auto_document, dump_server

    client = context.client()
    if sum((args.auto, args.preseed, args.dump)) > 1:
        raise UsageError("Only one of --auto, --preseed and --dump can be given")
    if args.dump:
        from flexd.cli.yamltext import dump

        print(dump(dump_server(client)), end="")
        return
    document = _preseed_document() if args.preseed else None
    if document is None and not args.auto and not _agree(client):
        raise CliError("Nothing was changed. Say --auto for the usual setup, or --preseed to give one as YAML")
    if document is None:
        document = auto_document(client, args.storage_backend, args.storage_pool, _listen_address(args))
    for line in Preseed(context, client).apply(document):
        context.say(line)


def _listen_address(args: Arguments) -> str:
    if not args.network_address:
        return ""
    host = f"[{args.network_address}]" if ":" in args.network_address.strip("[]") else args.network_address
    return f"{host.replace('[[', '[').replace(']]', ']')}:{args.network_port}"


def _preseed_document() -> dict[str, object]:
    from flexd.cli.yamltext import load

    document = load(sys.stdin.read(), "standard input")
    if not isinstance(document, dict):
        raise CliError("Failed reading standard input: expected YAML as `flexc admin init --dump` prints it")
    return document


def _agree(client: Client) -> bool:
    """Show what `--auto` would make, and ask."""
    from flexd.cli.ask import confirm
    from flexd.cli.preseed import auto_document
    from flexd.cli.yamltext import dump

    if not sys.stdin.isatty():
        raise UsageError("One of --auto, --preseed and --dump is needed where nobody can be asked")
    print(f"This is what will be made where it is missing:\n\n{dump(auto_document(client, '', '', ''))}")
    return confirm("Go ahead (yes/no)? ")


def _wait_ready(context: Context, args: Arguments) -> None:
    deadline = time.monotonic() + args.timeout if args.timeout else None
    client = context.client()
    while True:
        try:
            client.get("/1.0")
        except ConnectionFailed as error:
            if deadline is not None and time.monotonic() > deadline:
                raise CliError(f"The daemon is not ready after {args.timeout} seconds. {error}") from error
            time.sleep(_RETRY_S)
        else:
            return


COMMAND = Group(
    "admin",
    "Set up the server",
    [
        Command(
            "init",
            "Make a pool, a network and the default profile",
            _init,
            "",
            (),
            [
                Option("--auto", action="store_true", help="The usual setup, without questions"),
                Option("--dump", action="store_true", help="Print the present setup as a preseed"),
                Option("--network-address", default="", help="Let the server listen on this address"),
                Option("--network-port", type=int, default=8443, help="… and this port (default 8443)"),
                Option("--preseed", action="store_true", help="Read the setup as YAML from standard input"),
                Option("--storage-backend", default="", help="Driver of the pool (default overlay, where it works)"),
                Option("--storage-pool", default="", help="Source of the pool: a directory or device"),
            ],
            details="Makes only what is missing, so it can be repeated.",
            examples=[
                ("flexc admin init --auto", "Pool default, bridge flexbr0, profile default"),
                ("flexc admin init --dump > setup.yaml", "Then, elsewhere: flexc admin init --preseed < setup.yaml"),
            ],
        ),
        Command(
            "waitready",
            "Wait until the server answers",
            _wait_ready,
            "",
            (),
            [Option("-t", "--timeout", type=float, default=0, help="Seconds until giving up (default: never)")],
        ),
    ],
)
