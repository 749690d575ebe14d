# SPDX-License-Identifier: Apache-2.0
"""The entry point: find the command that the words name, build only that one, run it, say what went wrong."""

from __future__ import annotations

import os
import sys

from flexd.cli.command import GLOBAL_OPTIONS, Command, Group, parse
from flexd.cli.commands import load
from flexd.cli.context import Context
from flexd.cli.errors import CliError, UsageError
from flexd.client.errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# As a shell reports a command that was ended by SIGINT.
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `flexc` with these arguments; the exit status."""
    words: list[str] = []
    try:
        return _run(list(sys.argv[1:] if argv is None else argv), words)
    except UsageError as error:
        _complain(str(error))
        print(f"Try: {' '.join(['flexc', *words])} --help", file=sys.stderr)
        return 1
    except (CliError, ClientError) as error:
        _complain(str(error))
        return 1
    except BrokenPipeError:
        # `flexc list | head -1`: nobody reads on. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return _INTERRUPTED


def _complain(message: str) -> None:
    print(f"Error: {message}", file=sys.stderr)


def _run(argv: list[str], words: list[str]) -> int:
    first, rest = take_word(argv)
    if first is None:
        return _without_command(argv)
    command, rest = _find(first, rest, words)
    if isinstance(command, Group) or _asks_help(rest):
        from flexd.cli.help import help_of

        print(help_of(words, command), end="")
        if _asks_help(rest) or isinstance(command, Command):
            return 0
        raise UsageError("a command is missing")
    args = parse(command, rest)
    context = Context(args)
    try:
        status = command.run(context, args)
        sys.stdout.flush()
    finally:
        context.close()
    return status or 0


def _find(first: str, rest: list[str], words: list[str]) -> tuple[Command | Group, list[str]]:
    """Follow the words to a leaf, or to a group if they end there; `words` is filled with their full names."""
    command = load(first)
    if command is None:
        expanded = _expand_alias(first, rest)
        if expanded is None:
            raise UsageError(f'unknown command "{first}" for "flexc"')
        head, rest = take_word(expanded)
        command = load(head) if head else None
        if command is None:
            raise UsageError(f'the alias "{first}" leads to an unknown command: {" ".join(expanded)}')
    words.append(command.name)
    while isinstance(command, Group) and not _asks_help(rest[:1]):
        word, others = take_word(rest)
        if word is None:
            break
        found = command.find(word)
        if found is None:
            raise UsageError(f'unknown command "{word}" for "flexc {" ".join(words)}"')
        command, rest = found, others
        words.append(command.name)
    return command, rest


def _expand_alias(first: str, rest: list[str]) -> list[str] | None:
    from flexd.cli.config import load_config

    target = load_config().aliases.get(first)
    if target is None:
        return None
    expanded: list[str] = []
    for word in target.split():
        expanded.extend(rest if word == "@ARGS@" else [word])
    return expanded if "@ARGS@" in target.split() else expanded + rest


def take_word(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The first word that is no option (None if there is none), and what remains without it."""
    with_value = {flag for option in GLOBAL_OPTIONS if option.takes_value for flag in option.flags}
    skip = False
    for index, word in enumerate(argv):
        if skip or word.startswith("-"):
            skip = not skip and word in with_value
            if word == "--":
                break
            continue
        return word, [*argv[:index], *argv[index + 1 :]]
    return None, list(argv)


def _asks_help(rest: Sequence[str]) -> bool:
    before = rest[: rest.index("--")] if "--" in rest else rest
    return "-h" in before or "--help" in before


def _without_command(argv: list[str]) -> int:
    args = parse(Command("flexc", "", lambda *_: None), argv)
    if args.version:
        from flexd.cli.commands.version import client_version

        print(client_version())
        return 0
    from flexd.cli.help import overview

    print(overview(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
