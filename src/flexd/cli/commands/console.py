# SPDX-License-Identifier: Apache-2.0
"""`flexc console`."""

from __future__ import annotations

import sys

from flexd.cli.command import Command, Option, Positional
from flexd.cli.lifecycle import attach_console
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    client, instance = context.resolve(args.instance)
    if not args.show_log:
        attach_console(client, instance)
        return
    response = client.open("GET", path_of("instances", instance, "console"))
    print("\nConsole log:\n", flush=True)
    for chunk in response.chunks():
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()
    print()


COMMAND = Command(
    "console",
    "Attach to the console of an instance",
    _run,
    "[<remote>:]<instance>",
    [Positional("instance", completes="instance")],
    [
        Option("--show-log", action="store_true", help="Print what the console has shown so far"),
        Option("-t", "--type", choices=("console",), default="console", help='Kind of console (default "console")'),
    ],
    details="Shows the boot and a login prompt. Leave it with <ctrl>+a q; <ctrl>+a a sends one <ctrl>+a.",
    examples=[("flexc console first --show-log", "Why did it not boot?")],
)
