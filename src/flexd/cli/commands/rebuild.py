# SPDX-License-Identifier: Apache-2.0
"""`flexc rebuild`: another root file system for an instance, from an image or empty."""

from __future__ import annotations

from flexd.cli.command import Command, Option, Positional
from flexd.cli.errors import CliError, UsageError
from flexd.cli.image_remotes import launch_source
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def _run(context: Context, args: Arguments) -> None:
    if args.empty == bool(args.instance):
        raise UsageError("Invalid number of arguments: expected <image> <instance>, or --empty <instance>")
    client, name = context.resolve(args.image if args.empty else args.instance)
    source: dict[str, Any] = {"type": "none"}
    if not args.empty:
        source = launch_source(context, client, args.image, "container")
    running = client.get(path_of("instances", name))["status"].lower() != "stopped"
    if running and not args.force:
        raise CliError("The instance is currently running. Use --force to have it stopped and started again")
    if running:
        _set_state(context, client, name, "stop")
    context.perform(
        client, "POST", path_of("instances", name, "rebuild"), {"source": source}, label="Rebuilding the instance"
    )
    if running:
        _set_state(context, client, name, "start")


def _set_state(context: Context, client: Client, name: str, action: str) -> None:
    body = {"action": action, "timeout": -1, "force": action == "stop"}
    context.perform(client, "PUT", path_of("instances", name, "state"), body)


COMMAND = Command(
    "rebuild",
    "Replace an instance's root file system; its configuration stays",
    _run,
    "[<remote>:]<image> [<remote>:]<instance> | --empty [<remote>:]<instance>",
    [Positional("image", completes="image"), Positional("instance", "?", completes="instance")],
    [
        Option("--empty", action="store_true", help="With nothing in it"),
        Option("-f", "--force", action="store_true", help="Stop the instance if it runs, and start it again"),
    ],
    examples=[("flexc rebuild debian/13 web", "What was in it is gone; it must have no snapshots")],
)
