# SPDX-License-Identifier: Apache-2.0
"""`flexc restore`."""

from __future__ import annotations

from flexd.cli.command import Command, Option, Positional
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    client, instance = context.resolve(args.instance)
    # Other than everywhere else, the API wants INSTANCE/SNAPSHOT here, and nothing else is changed.
    body = {"restore": f"{instance}/{args.snapshot.rpartition('/')[2]}", "stateful": args.stateful}
    context.perform(client, "PUT", path_of("instances", instance), body, label=f"Restoring {instance}")


COMMAND = Command(
    "restore",
    "Set an instance back to a snapshot",
    _run,
    "[<remote>:]<instance> <snapshot>",
    [Positional("instance", completes="instance"), Positional("snapshot")],
    [Option("--stateful", action="store_true", help="With the running state, if the snapshot has one")],
    examples=[("flexc restore web before", "What was written since then is lost")],
)
