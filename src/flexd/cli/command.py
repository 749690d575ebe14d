# SPDX-License-Identifier: Apache-2.0
"""A command as a table: parsing, `--help`, shell completion and the reference derive from it.

Not argparse: it can't mix options and positionals as `lxc` does (`flexc stop c1 --force c2`), its help is not lxc's,
and what would be left of it, reading options, costs 4 ms of the 24 in which `flexc list` has to be done.
"""

from __future__ import annotations

from flexd.cli.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from flexd.cli.context import Context

    Run = Callable[[Context, "Arguments"], int | None]


class Option:
    """`action`: store, append or store_true. `bare`: what the option means without `=VALUE`; then it takes no word."""

    __slots__ = ("action", "bare", "choices", "completes", "dest", "flags", "help", "initial", "kind")

    def __init__(
        self,
        *flags: str,
        help: str,
        action: str = "store",
        default: Any = "",
        type: Callable[[str], Any] = str,
        choices: Sequence[str] = (),
        completes: str = "",
        bare: str = "",
    ) -> None:
        self.flags = flags
        self.help = help
        self.action = action
        self.initial = False if action == "store_true" else default
        self.kind = type
        self.choices = choices
        self.completes = completes
        self.bare = bare
        self.dest = flags[-1].lstrip("-").replace("-", "_")

    @property
    def takes_value(self) -> bool:
        return self.action != "store_true"

    def convert(self, flag: str, text: str) -> Any:
        """The value that a text means; an error names the flag."""
        if self.choices and text not in self.choices:
            expected = ", ".join(filter(None, self.choices))
            raise UsageError(f'invalid argument "{text}" for {flag}: expected one of {expected}')
        try:
            return self.kind(text)
        except ValueError as error:
            raise UsageError(f'invalid argument "{text}" for {flag}: expected a number') from error


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


ALL_PROJECTS = Option("--all-projects", action="store_true", help="Of all projects")
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


class Arguments:
    """The values of one line: an attribute for each option and positional."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...


def parse(command: Command, argv: Sequence[str]) -> Arguments:
    """The values of a command's options and positionals. Everything after `--` is positional."""
    arguments = Arguments()
    before, literal = _split_literal(argv)
    words = _read_options(command, before, arguments)
    _deal(command, [*words, *literal], arguments)
    return arguments


def _read_options(command: Command, words: list[str], arguments: Arguments) -> list[str]:
    """Set the options, in whatever places they are; what remains are positionals."""
    options = (*command.options, *GLOBAL_OPTIONS)
    by_flag = {flag: option for option in options for flag in option.flags}
    for option in options:
        setattr(arguments, option.dest, [] if option.action == "append" else option.initial)
    positionals = []
    while words:
        word = words.pop(0)
        if word == "-" or not word.startswith("-"):
            positionals.append(word)
            continue
        flag, value = _split_flag(word, by_flag, words)
        if flag not in by_flag:
            raise UsageError(f"unknown flag: {word}{_literal_hint(command, word)}")
        _set_option(arguments, by_flag[flag], flag, value, words)
    return positionals


def _split_flag(word: str, by_flag: dict[str, Option], words: list[str]) -> tuple[str, str | None]:
    """`--format=csv`, `-fcsv`, `-f=csv`; `-rp` is `-r -p`, whose rest is put back."""
    if word.startswith("--"):
        flag, equals, value = word.partition("=")
        return flag, value if equals else None
    flag, rest = word[:2], word[2:]
    option = by_flag.get(flag)
    if not rest or option is None:
        return (word if option is None else flag), None
    if option.takes_value:
        return flag, rest.removeprefix("=")
    words.insert(0, f"-{rest}")
    return flag, None


def _set_option(arguments: Arguments, option: Option, flag: str, value: str | None, words: list[str]) -> None:
    if not option.takes_value:
        if value not in (None, "true", "false"):
            raise UsageError(f'invalid argument "{value}" for {flag}: it takes none')
        setattr(arguments, option.dest, value != "false")
        return
    if value is None and option.bare:
        value = option.bare
    if value is None:
        if not words:
            raise UsageError(f"flag needs an argument: {flag}")
        value = words.pop(0)
    converted = option.convert(flag, value)
    if option.action == "append":
        getattr(arguments, option.dest).append(converted)
    else:
        setattr(arguments, option.dest, converted)


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


def _deal(command: Command, words: list[str], arguments: Arguments) -> None:
    """Give the words to the positionals, from the left; the ones that must have a word come before those that may."""
    needed = sum(1 for positional in command.positionals if positional.count in "1+")
    if len(words) < needed:
        missing = [positional.name for positional in command.positionals if positional.count in "1+"][len(words) :]
        raise UsageError(f"Invalid number of arguments: {', '.join(f'<{name}>' for name in missing)} missing")
    spare = len(words) - needed
    for positional in command.positionals:
        if positional.count == "1":
            setattr(arguments, positional.name, words.pop(0))
        elif positional.count == "?":
            setattr(arguments, positional.name, words.pop(0) if spare else "")
            spare -= bool(spare)
        else:
            taken = spare + (positional.count == "+")
            setattr(arguments, positional.name, words[:taken])
            del words[:taken]
            spare = 0
    if words:
        raise UsageError(f"Invalid number of arguments: {' '.join(words)} not expected")
