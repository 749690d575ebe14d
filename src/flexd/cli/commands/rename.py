# SPDX-License-Identifier: Apache-2.0
"""`flexc rename`: instances and snapshots."""

from __future__ import annotations

from flexd.cli.command import Command, Positional
from flexd.cli.errors import UsageError
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def rename_instance(context: Context, client: Client, old: str, new: str) -> None:
    """Rename an instance, or a snapshot of it (`c1/before` to `c1/after`)."""
    instance, slash, snapshot = old.partition("/")
    if not slash:
        context.perform(client, "POST", path_of("instances", old), {"name": new, "migration": False})
        return
    new_instance, new_slash, new_snapshot = new.partition("/")
    if not new_slash or new_instance != instance:
        raise UsageError(f"Invalid new snapshot name: expected {instance}/<name>")
    path = path_of("instances", instance, "snapshots", snapshot)
    context.perform(client, "POST", path, {"name": new_snapshot, "migration": False})


def _run(context: Context, args: Arguments) -> None:
    client, old = context.resolve(args.instance)
    remote, new = context.split(args.new_name)
    if ":" in args.new_name and context.client(remote) is not client:
        raise UsageError("Can't specify a different remote for rename. To another server: flexc move")
    rename_instance(context, client, old, new)


COMMAND = Command(
    "rename",
    "Rename an instance or a snapshot",
    _run,
    "[<remote>:]<instance>[/<snapshot>] <instance>[/<snapshot>]",
    [Positional("instance", completes="instance"), Positional("new_name")],
    examples=[("flexc rename first second", "The instance must be stopped")],
)
