# SPDX-License-Identifier: Apache-2.0
"""`flexc shell`: a login shell."""

from __future__ import annotations

from flexd.cli.command import Command, Positional
from flexd.cli.commands.exec import OPTIONS, execute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> int:
    return execute(context, args, ["su", "-l"])


COMMAND = Command(
    "shell",
    "Open a login shell in an instance",
    _run,
    "[<remote>:]<instance>",
    [Positional("instance", completes="instance")],
    OPTIONS,
    examples=[("flexc shell first", "The same as: flexc exec first -- su -l")],
)
