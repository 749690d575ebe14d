# SPDX-License-Identifier: Apache-2.0
"""`flexc exec`."""

from __future__ import annotations

import os

from flexd.cli.command import Command, Option, Positional
from flexd.cli.keyvalue import parse_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context

OPTIONS = (
    Option("--cwd", default="", help="Directory to run the command in (default /root)"),
    Option("-n", "--disable-stdin", action="store_true", help="Give the command no input (/dev/null)"),
    Option("--env", action="append", default=[], help="Environment variable, as HOME=/home/me"),
    Option("-t", "--force-interactive", action="store_true", help="Use a terminal, even if this is none"),
    Option("-T", "--force-noninteractive", action="store_true", help="Use no terminal"),
    Option("--group", type=int, default=0, help="Group id to run the command as (default 0)"),
    Option(
        "--mode",
        choices=("auto", "interactive", "non-interactive"),
        default="auto",
        help='Terminal mode: auto, interactive or non-interactive (default "auto")',
    ),
    Option("--user", type=int, default=0, help="User id to run the command as (default 0)"),
)
_DETAILS = """
The command is run as it stands, without a shell: for pipes, patterns and variables use  sh -c "...".
With input and output on a terminal the command gets one too; the exit status is the command's.
"""


def execute(context: Context, args: Arguments, command: Sequence[str]) -> int:
    """Run a command in an instance with the options of `exec`; its exit status."""
    from flexd.client.session import run_exec

    client, instance = context.resolve(args.instance)
    environment = {"TERM": os.environ["TERM"]} if os.environ.get("TERM") else {}
    environment.update(parse_pairs(args.env))
    stdin = os.open(os.devnull, os.O_RDONLY) if args.disable_stdin else 0
    request = {
        "command": list(command),
        "interactive": _is_interactive(args),
        "environment": environment,
        "user": args.user,
        "group": args.group,
        "cwd": args.cwd,
    }
    return run_exec(client, instance, request, stdin, 1, 2)


def _is_interactive(args: Arguments) -> bool:
    if args.force_interactive or args.mode == "interactive":
        return True
    if args.force_noninteractive or args.mode == "non-interactive":
        return False
    return not args.disable_stdin and os.isatty(0) and os.isatty(1)


def _run(context: Context, args: Arguments) -> int:
    return execute(context, args, args.command)


COMMAND = Command(
    "exec",
    "Run a command in an instance",
    _run,
    "[<remote>:]<instance> [--] <command>...",
    [Positional("instance", completes="instance"), Positional("command", "+")],
    OPTIONS,
    details=_DETAILS,
    examples=[
        ("flexc exec first -- bash", "A shell; leave it with exit or <ctrl>+d"),
        ("flexc exec first -- apt-get update", "One command"),
        ("tar -c dir | flexc exec first -- tar -x -C /srv", "Input and output are streams"),
    ],
)
