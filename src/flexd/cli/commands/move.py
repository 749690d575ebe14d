# SPDX-License-Identifier: Apache-2.0
"""`flexc move`: to another name, pool, project or server."""

from __future__ import annotations

import sys

from flexd.cli.command import TARGET, Command, Option, Positional
from flexd.cli.commands.rename import rename_instance
from flexd.cli.copying import COMMON_OPTIONS, changed_devices, profiles_of, send_instance, split_target
from flexd.cli.errors import UsageError
from flexd.cli.instance import INSTANCE
from flexd.cli.keyvalue import apply_changes, parse_pairs
from flexd.client.client import path_of
from flexd.client.errors import ClientError

# How long a clean stop may take when it is moved with one.
_STOP_S = 60

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    client, source = context.resolve(args.source)
    if "/" in source:
        rename_instance(context, client, source, context.split(args.target_name)[1])
        return
    new_remote, name, elsewhere = split_target(context, args.source, args.target_name)
    new_name = name or source
    if elsewhere:
        _send(context, args, new_remote, new_name)
        return
    changes = bool(args.config or args.device or args.profile or args.no_profiles)
    moves = bool(args.storage or args.target or args.target_project)
    if new_name == source and not moves and not changes:
        raise UsageError("Nothing to do: give another name, or --storage, --target, --target-project")
    if moves:
        query = {"target": args.target} if args.target else None
        body: dict[str, Any] = {"name": new_name, "migration": True, "live": not args.stateless}
        body |= {"instance_only": args.instance_only, "allow_inconsistent": args.allow_inconsistent}
        body |= {"pool": args.storage, "project": args.target_project}
        path = path_of("instances", source)
        context.perform(client, "POST", path, body, query=query, label=f"Moving {source}")
    elif new_name != source:
        rename_instance(context, client, source, new_name)
    if changes:
        _change(context, args, new_name)


def _send(context: Context, args: Arguments, new_remote: str, new_name: str) -> None:
    """The source goes when the target has everything, as both of them say."""
    client, source = context.resolve(args.source)
    found = client.get(path_of("instances", source))
    running = found["status"] != "Stopped"
    if args.live and args.live not in ("yes", "auto"):
        raise UsageError(f'Invalid value "{args.live}" for --live: expected --live or --live=auto')
    if running and args.stateless:
        raise UsageError(f'Instance "{source}" is running: stop it before it is moved without its state')
    body = {
        "name": new_name,
        "architecture": found["architecture"],
        "type": found.get("type") or "container",
        "description": found.get("description", ""),
        # With volatile.*: it stays the same instance, with its addresses.
        "config": {**found["config"], **parse_pairs(args.config)},
        "devices": changed_devices(found, args),
        "profiles": profiles_of(args, found),
        "ephemeral": found["ephemeral"],
    }
    try:
        send_instance(context, args, new_remote, found, body, live=running)
    except ClientError as error:
        if not running or args.live != "auto" or client.get(path_of("instances", source))["status"] != "Running":
            raise
        print(f"Not moved while it runs: {error}", file=sys.stderr)
        print("Moving it with a short stop instead", file=sys.stderr)
        _send_nearly_live(context, args, new_remote, found, body)
    # One that was moved while it ran stays behind stopped, and does not start again.
    context.perform(client, "DELETE", path_of("instances", source))


def _send_nearly_live(
    context: Context, args: Arguments, new_remote: str, found: dict[str, Any], body: dict[str, Any]
) -> None:
    """Most of its files while it runs; then it stops, the rest follows, and it starts there."""
    client, source = context.resolve(args.source)
    state = path_of("instances", source, "state")
    send_instance(context, args, new_remote, found, body, live=False)
    context.perform(client, "PUT", state, {"action": "stop", "timeout": _STOP_S, "force": False})
    try:
        args.refresh = True
        send_instance(context, args, new_remote, found, body, live=False)
        target = context.client(new_remote)
        context.perform(target, "PUT", path_of("instances", body["name"], "state"), {"action": "start", "timeout": -1})
    except BaseException:
        context.perform(client, "PUT", state, {"action": "start", "timeout": -1})
        raise


def _change(context: Context, args: Arguments, name: str) -> None:
    args.instance = f"{context.split(args.source)[0]}:{name}"
    args.storage = ""

    def change(value: dict[str, Any], _: str) -> None:
        apply_changes(value["config"], parse_pairs(args.config))
        value["devices"] = changed_devices(value, args)
        if args.no_profiles or args.profile:
            value["profiles"] = [] if args.no_profiles else args.profile

    INSTANCE.change(context, args, change)


COMMAND = Command(
    "move",
    "Move an instance to another name, pool, project or server",
    _run,
    "[<remote>:]<instance>[/<snapshot>] [<remote>:][<instance>[/<snapshot>]]",
    [Positional("source", completes="instance"), Positional("target_name", "?")],
    [
        *COMMON_OPTIONS,
        Option(
            "--live",
            default="",
            bare="yes",
            help="While it runs, which is what is tried anyway; --live=auto: with a short stop if that cannot be",
        ),
        TARGET,
    ],
    details="On another server it is the same instance, with its addresses; it goes here when all of it is there.",
    examples=[
        ("flexc move web www", "The same as flexc rename"),
        ("flexc move web --storage fast", "To another pool"),
        ("flexc move web host2:", "To another server; if it runs, it goes on running there"),
    ],
    aliases=["mv"],
)
