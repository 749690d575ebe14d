# SPDX-License-Identifier: Apache-2.0
"""What may follow on a half-written line; asked by the shells' completion for every <tab>."""

from __future__ import annotations

from flexd.cli.command import GLOBAL_OPTIONS, Command, Group, Option
from flexd.cli.commands import all_words, load
from flexd.cli.main import take_word
from flexd.client.errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from flexd.cli.context import Context

# Told to the shell script: complete file names itself.
FILES = ":files:"
_DEVICE_TYPES = ("disk", "gpu", "infiniband", "nic", "none", "pci", "proxy", "tpm", "unix-block", "unix-char", "usb")
_FIXED = {
    "device-type": _DEVICE_TYPES,
    "storage-driver": ("btrfs", "dir", "overlay"),
    "buildable": ("debian/11", "debian/12", "debian/13", "debian/sid", "ubuntu/22.04", "ubuntu/24.04", "ubuntu/26.04"),
}
_COLLECTIONS = {
    "instance": "instances",
    "instance-path": "instances",
    "profile": "profiles",
    "network": "networks",
    "pool": "storage-pools",
    "project": "projects",
    "warning": "warnings",
    "certificate": "certificates",
}


def complete_line(context: Context, line: str) -> list[str]:
    """Candidates for the word at the end of `flexc …`; sorted, each whole."""
    words, current = split_line(line)
    candidates = _candidates(context, words[1:], current)
    if candidates == [FILES]:
        return candidates
    return sorted({candidate for candidate in candidates if candidate.startswith(current)})


def split_line(line: str) -> tuple[list[str], str]:
    """The finished words of a line, and the one that is being written."""
    import shlex

    try:
        words = shlex.split(line)
    except ValueError:  # a quote is still open
        words = line.split()
    if not line or line[-1].isspace():
        return words, ""
    return words[:-1], words[-1]


def _candidates(context: Context, words: list[str], current: str) -> list[str]:
    command, rest = _descend(words)
    if isinstance(command, Command):
        return _for_command(context, command, rest, current)
    if take_word(words if command is None else rest)[0] is not None:
        return []  # a word that leads nowhere
    if current.startswith("-"):
        return _flags(GLOBAL_OPTIONS)
    return all_words() if command is None else [each.name for each in command.commands]


def _descend(words: list[str]) -> tuple[Command | Group | None, list[str]]:
    first, rest = take_word(words)
    command = load(first) if first else None
    while isinstance(command, Group):
        word, others = take_word(rest)
        found = command.find(word) if word else None
        if found is None:
            break
        command, rest = found, others
    return command, rest


def _for_command(context: Context, command: Command, words: list[str], current: str) -> list[str]:
    options = (*command.options, *GLOBAL_OPTIONS)
    values = {flag: option for option in options if option.takes_value and not option.bare for flag in option.flags}
    if words and words[-1] in values and "--" not in words:
        return _for_option(context, values[words[-1]], current)
    if current.startswith("-") and "--" not in words:
        return _flags(options)
    positionals = [
        word
        for index, word in enumerate(words)
        if not word.startswith("-") and (index == 0 or words[index - 1] not in values)
    ]
    kind = _kind_at(command, len(positionals))
    return _names(context, kind, current, positionals)


def _for_option(context: Context, option: Option, current: str) -> list[str]:
    return list(filter(None, option.choices)) if option.choices else _names(context, option.completes, current, [])


def _kind_at(command: Command, index: int) -> str:
    if not command.positionals:
        return ""
    last = command.positionals[-1]
    if index < len(command.positionals):
        return command.positionals[index].completes
    return last.completes if last.count in "*+" else ""


def _flags(options: Sequence[Option]) -> list[str]:
    return [flag for option in options for flag in option.flags if flag.startswith("--")]


def _names(context: Context, kind: str, current: str, before: list[str]) -> list[str]:
    """Names of a kind. Whatever goes wrong, a line that is being written is no place to complain."""
    if kind in _FIXED:
        return list(_FIXED[kind])
    if kind == "file":
        return [FILES]
    remotes = [
        f"{name}:"
        for name, settings in context.config.remotes.items()
        if kind == "image" or (settings.get("protocol") or "lxd") == "lxd"
    ]
    if kind == "remote":
        return remotes
    try:
        names = _served(context, kind, current, before)
    except ClientError:
        names = []
    several = len(remotes) > 1 and ":" not in current and kind not in ("device", "volume", "")
    return [*names, *remotes] if several else names


def _served(context: Context, kind: str, current: str, before: list[str]) -> list[str]:
    remote, colon, _ = current.partition(":")
    prefix = f"{remote}:" if colon and remote in context.config.remotes else ""
    if kind == "operation":
        by_status = context.client(prefix[:-1]).get("/1.0/operations")
        return [prefix + path.rpartition("/")[2] for paths in by_status.values() for path in paths]
    if kind in ("device", "volume"):
        return _served_within(context, kind, before)
    if kind in ("alias", "image"):
        if prefix and context.config.remotes[remote].get("protocol") not in (None, "lxd"):
            return []  # an image server's list is too long to wait for
        aliases = context.client(prefix[:-1]).get("/1.0/images/aliases", {"recursion": "1"})
        return [prefix + alias["name"] for alias in aliases]
    if kind not in _COLLECTIONS:
        return []
    base = f"/1.0/{_COLLECTIONS[kind]}/"
    paths = context.client(prefix[:-1]).get(base.rstrip("/"))
    end = "/" if kind == "instance-path" else ""
    return [f"{prefix}{path.partition('?')[0].removeprefix(base)}{end}" for path in paths]


def _served_within(context: Context, kind: str, before: list[str]) -> list[str]:
    """What belongs to the thing named before: devices of an instance, volumes of a pool."""
    from flexd.client.client import path_of

    if not before:
        return []
    client, name = context.resolve(before[0])
    if kind == "volume":
        paths = client.get(path_of("storage-pools", name, "volumes", "custom"))
        return [path.partition("?")[0].rpartition("/")[2] for path in paths]
    return list(client.get(path_of("instances", name))["expanded_devices"])
