# SPDX-License-Identifier: Apache-2.0
"""`flexc import`: an instance of a backup file."""

from __future__ import annotations

from flexd.cli.command import Command, Option, Positional
from flexd.cli.errors import UsageError
from flexd.cli.upload import upload_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    words = list(args.word)
    remote = context.split(words.pop(0))[0] if words[0].endswith(":") else ""
    if not 1 <= len(words) <= 2:
        raise UsageError("Invalid number of arguments: expected [<remote>:] <backup file> [<instance name>]")
    headers = {"X-LXD-name": words[1] if len(words) == 2 else "", "X-LXD-pool": args.storage}
    fields = {name: value for name, value in headers.items() if value}
    upload_file(context, context.client(remote), "/1.0/instances", words[0], fields, "Importing the instance")


COMMAND = Command(
    "import",
    "Make an instance of a backup file",
    _run,
    "[<remote>:] <backup file> [<instance name>]",
    [Positional("word", "+", completes="file")],
    [Option("-s", "--storage", default="", help="Storage pool to use", completes="pool")],
    examples=[("flexc import web.tar.gz web2", "Under another name; - reads standard input")],
)
