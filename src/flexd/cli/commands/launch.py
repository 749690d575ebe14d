# SPDX-License-Identifier: Apache-2.0
"""`flexc launch`."""

from __future__ import annotations

from flexd.cli.command import Command
from flexd.cli.create import OPTIONS, POSITIONALS, USAGE, create_instance
from flexd.cli.errors import CliError
from flexd.cli.lifecycle import CONSOLE, attach_console, change_state
from flexd.client.errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    client, name = create_instance(context, args)
    context.say(f"Starting {name}")
    try:
        change_state(context, client, name, "start", None)
    except ClientError as error:
        raise CliError(
            f"{error}\nThe instance was created. Its log may tell more: flexc info {name} --show-log"
        ) from error
    if args.console:
        attach_console(client, name)


COMMAND = Command(
    "launch",
    "Create an instance from an image and start it",
    _run,
    USAGE,
    POSITIONALS,
    [*OPTIONS, CONSOLE],
    examples=[
        ("flexc launch debian/12 first", "A container named first"),
        ("flexc launch debian/12 web -c limits.memory=1GiB -d root,size=10GiB", "With limits"),
        ("flexc launch debian/12 db < db.yaml", "Configured by a file"),
        ("flexc launch docker:nginx web", "An application, from an OCI image"),
        ("flexc launch debian/12 --ephemeral", "A random name; gone when it stops"),
    ],
)
