# SPDX-License-Identifier: Apache-2.0
"""`flexc init`."""

from __future__ import annotations

from flexd.cli.command import Command
from flexd.cli.create import OPTIONS, POSITIONALS, USAGE, create_instance

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    create_instance(context, args)


COMMAND = Command(
    "init",
    "Create an instance from an image, stopped",
    _run,
    USAGE,
    POSITIONALS,
    OPTIONS,
    examples=[
        ("flexc init debian/12 web", "Create it; start it later with: flexc start web"),
        ("flexc init --empty blank", "Without any image"),
    ],
)
