# SPDX-License-Identifier: Apache-2.0
"""`flexc warning`: what the server found wrong with its host or itself."""

from __future__ import annotations

from flexd.cli.command import FORMAT, Command, Group, Option, Positional
from flexd.cli.context import only_remote
from flexd.cli.errors import UsageError
from flexd.cli.show import long_time
from flexd.cli.table import natural_key, print_list
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context

_COLUMNS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "c": ("count", lambda each: str(each["count"])),
    "f": ("first seen", lambda each: long_time(each["first_seen_at"])),
    "l": ("last seen", lambda each: long_time(each["last_seen_at"])),
    "L": ("location", lambda each: each["location"]),
    "p": ("project", lambda each: each["project"]),
    "s": ("severity", lambda each: each["severity"].upper()),
    "S": ("status", lambda each: each["status"].upper()),
    "t": ("type", lambda each: each["type"]),
    "u": ("uuid", lambda each: each["uuid"]),
}
_DEFAULT_COLUMNS = "utSscpl"


def _list(context: Context, args: Arguments) -> None:
    unknown = set(args.columns.replace(",", "")) - set(_COLUMNS)
    if unknown:
        raise UsageError(f'Unknown column shorthand char "{min(unknown)}" in "{args.columns}"')
    warnings = only_remote(context, args.remote).get("/1.0/warnings", {"recursion": "1"})
    if not args.all:
        warnings = [each for each in warnings if each["status"].lower() != "resolved"]
    columns = [_COLUMNS[letter] for letter in args.columns.replace(",", "")]
    rows = sorted(([value(each) for _, value in columns] for each in warnings), key=natural_key)
    print_list(args.format, [title for title, _ in columns], rows, warnings)


def _show(context: Context, args: Arguments) -> None:
    from flexd.cli.yamltext import dump

    client, uuid = context.resolve(args.warning)
    print(dump(client.get(path_of("warnings", uuid))), end="")


def _acknowledge(context: Context, args: Arguments) -> None:
    client, uuid = context.resolve(args.warning)
    client.request("PUT", path_of("warnings", uuid), {"status": "acknowledged"})


def _delete(context: Context, args: Arguments) -> None:
    if bool(args.warning) == args.all:
        raise UsageError("Name one warning, or say --all")
    client, uuid = context.resolve(args.warning)
    paths = [path_of("warnings", uuid)] if uuid else client.get("/1.0/warnings")
    for path in paths:
        client.request("DELETE", path)


_WARNING = [Positional("warning", completes="warning")]

COMMAND = Group(
    "warning",
    "Manage warnings of the server",
    [
        Command(
            "acknowledge", "Mark a warning as known", _acknowledge, "[<remote>:]<warning>", _WARNING, aliases=["ack"]
        ),
        Command(
            "delete",
            "Delete a warning",
            _delete,
            "[<remote>:][<warning>]",
            [Positional("warning", "?", completes="warning")],
            [Option("-a", "--all", action="store_true", help="All of them")],
            aliases=["rm"],
        ),
        Command(
            "list",
            "List warnings",
            _list,
            "[<remote>:]",
            [Positional("remote", "?", completes="remote")],
            [
                Option("-a", "--all", action="store_true", help="Also those that are resolved"),
                Option("-c", "--columns", default=_DEFAULT_COLUMNS, help=f'Columns (default "{_DEFAULT_COLUMNS}")'),
                FORMAT,
            ],
            details="Columns: c count, f first seen, l last seen, L location, p project, s severity, S status, "
            "t type, u UUID",
            aliases=["ls"],
        ),
        Command("show", "Show a warning as YAML", _show, "[<remote>:]<warning>", _WARNING),
    ],
)
