# SPDX-License-Identifier: Apache-2.0
"""`flexc snapshot`."""

from __future__ import annotations

from flexd.cli.command import Command, Option, Positional
from flexd.cli.errors import UsageError
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    client, instance = context.resolve(args.instance)
    if "/" in instance:
        raise UsageError("Give the snapshot's name as a word of its own: flexc snapshot <instance> <snapshot>")
    snapshots = path_of("instances", instance, "snapshots")
    if args.reuse and args.snapshot:
        old = path_of("instances", instance, "snapshots", args.snapshot)
        if client.exists(old):
            context.perform(client, "DELETE", old)
    body: dict[str, Any] = {"name": args.snapshot, "stateful": args.stateful}
    if args.no_expiry:
        body["expires_at"] = "0001-01-01T00:00:00Z"
    context.perform(client, "POST", snapshots, body, label=f"Snapshot of {instance}")


COMMAND = Command(
    "snapshot",
    "Take a snapshot of an instance",
    _run,
    "[<remote>:]<instance> [<snapshot name>]",
    [Positional("instance", completes="instance"), Positional("snapshot", "?")],
    [
        Option("--no-expiry", action="store_true", help="Keep it, whatever snapshots.expiry says"),
        Option("--reuse", action="store_true", help="Replace one of that name"),
        Option("--stateful", action="store_true", help="With the running state: memory and processes"),
    ],
    examples=[("flexc snapshot web before", "Then: flexc restore web before")],
)
