# SPDX-License-Identifier: Apache-2.0
"""`flexc delete`: instances and snapshots."""

from __future__ import annotations

from flexd.cli.ask import confirm
from flexd.cli.command import Command, Option, Positional
from flexd.cli.errors import CliError
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def _run(context: Context, args: Arguments) -> None:
    for word in args.instance:
        client, name = context.resolve(word)
        if args.interactive and not confirm(f"Remove {name} (yes/no): "):
            raise CliError("User aborted delete operation")
        _delete(context, client, name, args.force)


def _delete(context: Context, client: Client, name: str, force: bool) -> None:
    instance, slash, snapshot = name.partition("/")
    if slash:
        context.perform(client, "DELETE", path_of("instances", instance, "snapshots", snapshot))
        return
    found = client.get(path_of("instances", name))
    if found["status_code"] not in (0, 102):
        if not force:
            raise CliError(f'Instance "{name}" is running. Stop it first (flexc stop {name}) or say --force')
        body = {"action": "stop", "timeout": -1, "force": True}
        context.perform(client, "PUT", path_of("instances", name, "state"), body, label=f"Stopping {name}")
        if found["ephemeral"]:
            return  # gone with the stop
    context.perform(client, "DELETE", path_of("instances", name), label=f"Deleting {name}")


COMMAND = Command(
    "delete",
    "Delete instances and snapshots",
    _run,
    "[<remote>:]<instance>[/<snapshot>] [[<remote>:]<instance>[/<snapshot>]...]",
    [Positional("instance", "+", completes="instance")],
    [
        Option("-f", "--force", action="store_true", help="Also if it is running"),
        Option("-i", "--interactive", action="store_true", help="Ask before"),
    ],
    examples=[("flexc delete -f first", "Stop it and remove it with all its data")],
    aliases=["rm"],
)
