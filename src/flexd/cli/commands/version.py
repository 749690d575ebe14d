# SPDX-License-Identifier: Apache-2.0
"""`flexc version`."""

from __future__ import annotations

from flexd.cli.command import Command, Positional
from flexd.cli.context import only_remote
from flexd.client.errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def client_version() -> str:
    """The version of the installed package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("flexd")
    except PackageNotFoundError:
        return "unknown"


def _run(context: Context, args: Arguments) -> None:
    client = only_remote(context, args.remote)
    try:
        server = str(client.server()["environment"]["server_version"])
    except ClientError:
        server = "unreachable"
    print(f"Client version: {client_version()}\nServer version: {server}")


COMMAND = Command(
    "version",
    "Show the versions of the command and of the server",
    _run,
    "[<remote>:]",
    [Positional("remote", "?", completes="remote")],
)
