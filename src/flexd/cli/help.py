# SPDX-License-Identifier: Apache-2.0
"""What `--help` prints, made from the command tables."""

from __future__ import annotations

from flexd.cli.command import GLOBAL_OPTIONS, Command, Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flexd.cli.command import Option

_OVERVIEW = """\
flexc drives flexd: whole operating systems in containers.

First steps:
  flexc image build debian/12       Make an image from Debian's packages
  flexc launch debian/12 first      Create a container from it and start it
  flexc exec first -- bash          Work inside
  flexc list                        See what there is
  flexc stop first                  Stop it;  flexc delete first  removes it

Names may begin with a server of `flexc remote list`: other:first.

Usage:
  flexc [command]
"""


def overview() -> str:
    """The help of `flexc` alone."""
    from flexd.cli.commands import all_words, load

    rows = []
    for word in all_words():
        command = load(word)
        if command is not None:
            rows.append((word, command.summary))
    return (
        f"{_OVERVIEW}\nCommands:\n{_columns(rows)}\nGlobal flags:\n{_columns(map(option_row, GLOBAL_OPTIONS))}"
        '\n"flexc [command] --help" tells more about a command.\n'
    )


def help_of(words: Sequence[str], command: Command | Group) -> str:
    """The help of one command or group."""
    name = " ".join(["flexc", *words])
    parts = [f"{command.summary}\n"]
    if command.details:
        parts.append(f"{command.details.strip()}\n")
    if isinstance(command, Group):
        parts.append(f"Usage:\n  {name} [command]\n")
    else:
        parts.append(f"Usage:\n  {usage_of(words, command)}\n")
    if command.aliases:
        parts.append(f"Aliases:\n  {', '.join([command.name, *command.aliases])}\n")
    if isinstance(command, Group):
        parts.append(f"Commands:\n{_columns((each.name, each.summary) for each in command.commands)}")
    if command.examples:
        shown = "".join(f"  {line}\n      {meaning}\n" for line, meaning in command.examples)
        parts.append(f"Examples:\n{shown}")
    if isinstance(command, Command) and command.options:
        parts.append(f"Flags:\n{_columns(map(option_row, command.options))}")
    parts.append(f"Global flags:\n{_columns(map(option_row, GLOBAL_OPTIONS))}")
    return "\n".join(parts)


def usage_of(words: Sequence[str], command: Command) -> str:
    """`flexc config get [<remote>:][<instance>] <key> [flags]`."""
    return " ".join(filter(None, ["flexc", *words, command.usage, "[flags]"]))


def option_row(option: Option) -> tuple[str, str]:
    """The flags of an option and its meaning, aligned as `-f, --format`."""
    flags = ", ".join(option.flags)
    if not any(len(flag) == 2 for flag in option.flags):
        flags = f"    {flags}"
    if option.bare:
        flags += f'[="{option.bare}"]'
    return flags, option.help


def _columns(rows: Iterable[tuple[str, str]]) -> str:
    pairs = list(rows)
    width = max((len(left) for left, _ in pairs), default=0)
    return "".join(f"  {left.ljust(width)}  {right}".rstrip() + "\n" for left, right in pairs)
