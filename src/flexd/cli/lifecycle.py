# SPDX-License-Identifier: Apache-2.0
"""start, stop, restart and pause: one action for one, several or all instances."""

from __future__ import annotations

import sys

from flexd.cli.command import Command, Option, Positional
from flexd.cli.errors import CliError, UsageError
from flexd.client.client import path_of
from flexd.client.errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

ALL = Option("--all", action="store_true", help="All instances that it makes sense for")
CONSOLE = Option("--console", default="", bare="console", help="Attach to the console at once")
FORCE = Option("-f", "--force", action="store_true", help="Don't ask the instance, cut it off")
TIMEOUT = Option("--timeout", type=int, default=-1, help="Seconds to wait for a clean stop (default: the server's)")

_DONE = {"start": "start", "stop": "stop", "restart": "restart", "freeze": "pause"}
# The states that `--all` picks for an action.
_FROM_STATES = {"start": ("stopped", "frozen"), "stop": ("running",), "restart": ("running",), "freeze": ("running",)}


def state_command(
    name: str, summary: str, action: str, options: Sequence[Option], examples: Sequence[tuple[str, str]]
) -> Command:
    """One of the four commands."""

    def run(context: Context, args: Arguments) -> None:
        change_states(context, args, action)

    usage = "[<remote>:]<instance> [[<remote>:]<instance>...]"
    positionals = [Positional("instance", "*", completes="instance")]
    return Command(name, summary, run, usage, positionals, options, examples=examples)


def change_states(context: Context, args: Arguments, action: str) -> None:
    """Do it for every named instance, also if one of them fails."""
    targets = _targets(context, args, action)
    console = bool(getattr(args, "console", ""))
    if console and len(targets) != 1:
        raise UsageError("--console works with a single instance only")
    failures = 0
    for client, name in targets:
        try:
            change_state(context, client, name, action, args)
        except ClientError as error:
            if len(targets) == 1:
                raise
            failures += 1
            print(f"{name}: error: {error}", file=sys.stderr)
    if failures:
        raise CliError(f"Some instances failed to {_DONE[action]}")
    if console:
        attach_console(*targets[0])


def _targets(context: Context, args: Arguments, action: str) -> list[tuple[Client, str]]:
    if not args.all:
        if not args.instance:
            raise UsageError("Invalid number of arguments: <instance> missing (or say --all)")
        return [context.resolve(word) for word in args.instance]
    targets = []
    for remote in args.instance or [""]:
        client, name = context.resolve(remote)
        if name:
            raise UsageError("Both --all and instance name given")
        instances = client.get("/1.0/instances", {"recursion": "1"})
        wanted = _FROM_STATES[action]
        targets += [(client, each["name"]) for each in instances if each["status"].lower() in wanted]
    return targets


def change_state(context: Context, client: Client, name: str, action: str, args: Arguments | None) -> None:
    """PUT the state and wait. A frozen instance is started by thawing it."""
    stateful = bool(getattr(args, "stateful", False))
    if action == "start":
        current = client.get(path_of("instances", name))
        if current["status"].lower() == "frozen":
            action = "unfreeze"
        stateful = bool(current.get("stateful")) and not getattr(args, "stateless", False)
    body = {
        "action": action,
        "timeout": getattr(args, "timeout", -1),
        "force": bool(getattr(args, "force", False)),
        "stateful": stateful,
    }
    context.perform(client, "PUT", path_of("instances", name, "state"), body, label=f"{action.capitalize()} {name}")


def attach_console(client: Client, name: str) -> None:
    """The console of a running instance, until <ctrl>+a q."""
    from flexd.client.session import run_console

    print("To detach from the console, press: <ctrl>+a q", flush=True)
    run_console(client, name, sys.stdin.fileno(), sys.stdout.fileno())
    print()
