# SPDX-License-Identifier: Apache-2.0
"""`flexc alias`: commands of one's own."""

from __future__ import annotations

from flexd.cli.command import FORMAT, Command, Group, Positional
from flexd.cli.errors import CliError
from flexd.cli.table import natural_key, print_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _add(context: Context, args: Arguments) -> None:
    from flexd.cli.commands import load

    aliases = context.config.aliases
    if args.alias in aliases:
        raise CliError(f"Alias {args.alias} already exists")
    if load(args.alias) is not None:
        raise CliError(f"{args.alias} is a command of flexc; choose another name")
    aliases[args.alias] = args.target
    context.config.save()


def _list(context: Context, args: Arguments) -> None:
    aliases = context.config.aliases
    rows = sorted(([name, target] for name, target in aliases.items()), key=natural_key)
    print_list(args.format, ["alias", "target"], rows, aliases)


def _remove(context: Context, args: Arguments) -> None:
    if context.config.aliases.pop(args.alias, None) is None:
        raise CliError(f"Alias {args.alias} doesn't exist")
    context.config.save()


def _rename(context: Context, args: Arguments) -> None:
    aliases = context.config.aliases
    if args.alias not in aliases:
        raise CliError(f"Alias {args.alias} doesn't exist")
    if args.new_name in aliases:
        raise CliError(f"Alias {args.new_name} already exists")
    aliases[args.new_name] = aliases.pop(args.alias)
    context.config.save()


_ALIAS = [Positional("alias")]

COMMAND = Group(
    "alias",
    "Manage short names for commands",
    [
        Command(
            "add",
            "Add an alias",
            _add,
            "<alias> <target>",
            [Positional("alias"), Positional("target")],
            examples=[
                ("flexc alias add bash 'exec @ARGS@ -- bash'", "Then: flexc bash first"),
                ("flexc alias add up 'list status=running'", "Words that follow are added at the end"),
            ],
        ),
        Command("list", "List aliases", _list, "", (), [FORMAT], aliases=["ls"]),
        Command("remove", "Remove an alias", _remove, "<alias>", _ALIAS, aliases=["rm"]),
        Command(
            "rename",
            "Rename an alias",
            _rename,
            "<alias> <new-name>",
            [*_ALIAS, Positional("new_name")],
            aliases=["mv"],
        ),
    ],
)
