# SPDX-License-Identifier: Apache-2.0
"""A command as a table: parsing, `--help`, shell completion and the reference derive from it.

argparse reads the options; the positionals are dealt out here, because argparse can't mix the two as `lxc` does
(`flexc stop c1 --force c2`).
"""

from __future__ import annotations

import argparse

from flexd.cli.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from flexd.cli.context import Context

    Run = Callable[[Context, argparse.Namespace], int | None]


class Option:
    """`flags` and `settings` are `add_argument`'s. `bare`: what the option means without `=VALUE`."""

    __slots__ = ("bare", "completes", "flags", "settings")

    def __init__(self, *flags: str, completes: str = "", bare: str = "", **settings: Any) -> None:
        self.flags = flags
        self.settings = settings
        self.completes = completes
        self.bare = bare

    @property
    def takes_value(self) -> bool:
        return self.settings.get("action") not in ("store_true", "store_false")


class Positional:
    """`count`: "1", "?" (may be missing), "*" (any number) or "+" (at least one)."""

    __slots__ = ("completes", "count", "name")

    def __init__(self, name: str, count: str = "1", completes: str = "") -> None:
        self.name = name
        self.count = count
        self.completes = completes


class Command:
    """A leaf: what to run. `usage` is the part after the words, as `[<remote>:]<instance> <key>`."""

    __slots__ = ("aliases", "details", "examples", "name", "options", "positionals", "run", "summary", "usage")

    def __init__(
        self,
        name: str,
        summary: str,
        run: Run,
        usage: str = "",
        positionals: Sequence[Positional] = (),
        options: Sequence[Option] = (),
        *,
        details: str = "",
        examples: Sequence[tuple[str, str]] = (),
        aliases: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.summary = summary
        self.run = run
        self.usage = usage
        self.positionals = positionals
        self.options = options
        self.details = details
        self.examples = examples
        self.aliases = aliases


class Group:
    """A word that is followed by another word."""

    __slots__ = ("aliases", "commands", "details", "examples", "name", "summary")

    def __init__(
        self,
        name: str,
        summary: str,
        commands: Sequence[Command | Group],
        *,
        details: str = "",
        examples: Sequence[tuple[str, str]] = (),
        aliases: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.summary = summary
        self.commands = commands
        self.details = details
        self.examples = examples
        self.aliases = aliases

    def find(self, word: str) -> Command | Group | None:
        for command in self.commands:
            if command.name == word or word in command.aliases:
                return command
        return None


FORMAT = Option(
    "-f",
    "--format",
    default="table",
    choices=("csv", "json", "table", "yaml", "compact"),
    help='Format (csv|json|table|yaml|compact) (default "table")',
)
TARGET = Option("--target", default="", help="Cluster member name")
GLOBAL_OPTIONS = (
    Option("--debug", action="store_true", help="Show every request that is sent"),
    Option("--force-local", action="store_true", help="Talk to the local daemon, whatever the default remote"),
    Option("-h", "--help", action="store_true", help="Show this help"),
    Option("--project", default="", help="Work in this project", completes="project"),
    Option("-q", "--quiet", action="store_true", help="Don't show progress"),
    Option("-v", "--verbose", action="store_true", help="Tell more about what is done"),
    Option("--version", action="store_true", help="Print the version"),
)


class _OptionParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def _get_formatter(self) -> argparse.HelpFormatter:
        # Asked for by each `add_argument`; without a width it imports shutil, and with that all compressors (4 ms).
        return argparse.HelpFormatter(self.prog, width=80)


def parse(command: Command, argv: Sequence[str]) -> argparse.Namespace:
    """The values of a command's options and positionals. Everything after `--` is positional."""
    options = (*command.options, *GLOBAL_OPTIONS)
    before, literal = _split_literal(argv)
    for option in options:
        if option.bare:
            before = [f"{word}={option.bare}" if word in option.flags else word for word in before]
    parser = _OptionParser(prog="flexc", add_help=False, allow_abbrev=False)
    for option in options:
        parser.add_argument(*option.flags, **option.settings)
    namespace, words = parser.parse_known_args(before)
    for word in words:
        if word.startswith("-") and word != "-":
            raise UsageError(f"unknown flag: {word}" + _literal_hint(command, word))
    _deal(command, [*words, *literal], namespace)
    return namespace


def _split_literal(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(argv)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _literal_hint(command: Command, word: str) -> str:
    if command.positionals and command.positionals[-1].name == "command":
        return f' (put "--" before the command if {word} is meant for it)'
    return ""


def _deal(command: Command, words: list[str], namespace: argparse.Namespace) -> None:
    """Give the words to the positionals, from the left; the ones that must have a word come before those that may."""
    needed = sum(1 for positional in command.positionals if positional.count in "1+")
    if len(words) < needed:
        missing = [positional.name for positional in command.positionals if positional.count in "1+"][len(words) :]
        raise UsageError(f"Invalid number of arguments: {', '.join(f'<{name}>' for name in missing)} missing")
    spare = len(words) - needed
    for positional in command.positionals:
        if positional.count == "1":
            setattr(namespace, positional.name, words.pop(0))
        elif positional.count == "?":
            setattr(namespace, positional.name, words.pop(0) if spare else "")
            spare -= bool(spare)
        else:
            taken = spare + (positional.count == "+")
            setattr(namespace, positional.name, words[:taken])
            del words[:taken]
            spare = 0
    if words:
        raise UsageError(f"Invalid number of arguments: {' '.join(words)} not expected")
