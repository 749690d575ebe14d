# SPDX-License-Identifier: Apache-2.0
"""`flexc _complete`: what the completion scripts ask."""

from __future__ import annotations

from flexd.cli.command import Command, Positional

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    from flexd.cli.complete import complete_line

    for candidate in complete_line(context, args.line):
        print(candidate)


COMMAND = Command("_complete", "Complete a line (for scripts)", _run, "<line>", [Positional("line")])
