# SPDX-License-Identifier: Apache-2.0
"""`flexc operation`: work that the server does in the background."""

from __future__ import annotations

from flexd.cli.command import ALL_PROJECTS, FORMAT, Command, Group, Positional
from flexd.cli.context import only_remote
from flexd.cli.show import utc_time, yes_no
from flexd.cli.table import natural_key, print_list
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context

_ORDER = (
    "id",
    "class",
    "description",
    "created_at",
    "updated_at",
    "status",
    "status_code",
    "resources",
    "metadata",
    "may_cancel",
    "err",
    "location",
)


def _list(context: Context, args: Arguments) -> None:
    query = {"recursion": "1", **({"all-projects": "true"} if args.all_projects else {})}
    by_status = only_remote(context, args.remote).get("/1.0/operations", query)
    operations = [each for group in by_status.values() for each in group or ()]
    rows = [
        [
            each["id"],
            each["class"].upper(),
            each["description"],
            each["status"].upper(),
            yes_no(each["may_cancel"]).upper(),
            utc_time(each["created_at"]),
        ]
        for each in operations
    ]
    header = ["id", "type", "description", "status", "cancelable", "created"]
    print_list(args.format, header, sorted(rows, key=natural_key), operations)


def _show(context: Context, args: Arguments) -> None:
    from flexd.cli.yamltext import dump

    client, identifier = context.resolve(args.operation)
    operation = client.get(path_of("operations", identifier))
    print(dump({key: operation[key] for key in _ORDER if key in operation}), end="")


def _delete(context: Context, args: Arguments) -> None:
    client, identifier = context.resolve(args.operation)
    client.request("DELETE", path_of("operations", identifier))
    context.say(f"Operation {identifier} deleted")


_USAGE = "[<remote>:]<operation>"
_OPERATION = [Positional("operation", completes="operation")]

COMMAND = Group(
    "operation",
    "List, show and cancel what the server does in the background",
    [
        Command(
            "delete", "Cancel an operation", _delete, "[<remote>:]<operation>", _OPERATION, aliases=["cancel", "rm"]
        ),
        Command(
            "list",
            "List operations",
            _list,
            "[<remote>:]",
            [Positional("remote", "?", completes="remote")],
            [ALL_PROJECTS, FORMAT],
            aliases=["ls"],
        ),
        Command("show", "Show an operation as YAML", _show, _USAGE, _OPERATION),
    ],
    examples=[("flexc operation list", "What is going on now")],
)
