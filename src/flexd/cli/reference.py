# SPDX-License-Identifier: Apache-2.0
"""The reference of all commands as Markdown: `python -m flexd.cli.reference > docs/reference/flexc.md`."""

from __future__ import annotations

from flexd.cli.command import GLOBAL_OPTIONS, Command, Group
from flexd.cli.commands import all_words, load
from flexd.cli.help import option_row, usage_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from flexd.cli.command import Option

_HEAD = """\
# flexc

The command that drives flexd, and any server that speaks LXD's API.

<!-- Made by `python -m flexd.cli.reference` from the command tables; a test fails if it is stale. -->

`[<remote>:]` before a name chooses a server of `flexc remote list`; without it, the default one (`local`).
Words that hold a dash can be given to a command after `--`.

Exit status: 0 after success, 1 after an error or a misunderstanding, 130 after ctrl-c; `exec` and `shell` return that
of the command that they ran.

Environment: `FLEXD_DIR` (the daemon's directory, default `/var/lib/flexd`), `FLEXD_SOCKET` (its socket),
`FLEXC_CONF` (this person's settings, default `~/.config/flexc`), `VISUAL` and `EDITOR`.
"""


def render_reference() -> str:
    """The whole document."""
    parts = [_HEAD, "\n## Flags of every command\n", *_flag_lines(GLOBAL_OPTIONS)]
    for word in all_words():
        command = load(word)
        if command is not None:
            parts += _sections([word], command, 2)
    return "\n".join(parts) + "\n"


def _sections(words: Sequence[str], command: Command | Group, depth: int) -> Iterator[str]:
    yield f"\n{'#' * depth} {' '.join(['flexc', *words])}\n"
    yield f"{command.summary}."
    if command.details:
        yield f"\n```text\n{command.details.strip()}\n```"
    if isinstance(command, Command):
        yield f"\n```text\n{usage_of(words, command)}\n```"
    if command.aliases:
        yield f"\nAlso: {', '.join(f'`{alias}`' for alias in command.aliases)}."
    if isinstance(command, Command) and command.options:
        yield ""
        yield from _flag_lines(command.options)
    if command.examples:
        yield ""
        yield from (f"* `{line}`: {meaning}" for line, meaning in command.examples)
    if isinstance(command, Group):
        for each in command.commands:
            yield from _sections([*words, each.name], each, min(depth + 1, 6))


def _flag_lines(options: Iterable[Option]) -> Iterator[str]:
    yield "| flag | meaning |"
    yield "|---|---|"
    for option in options:
        flags, meaning = option_row(option)
        yield f"| `{flags.strip()}` | {meaning.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    print(render_reference(), end="")
