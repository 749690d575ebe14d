# SPDX-License-Identifier: Apache-2.0
"""`key=value` words, and the older `key value`."""

from __future__ import annotations

import sys

from flexd.cli.errors import CliError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def parse_pairs(words: Sequence[str]) -> dict[str, str]:
    """`key=value…` as a dict; `key=-` reads the value from standard input."""
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f'"{word}" is not key=value')
        pairs[key] = _value(value)
    return pairs


def parse_settings(words: Sequence[str]) -> dict[str, str]:
    """What follows a name in `… set`: `key=value…`, or one `key value`."""
    if len(words) == 2 and "=" not in words[0]:
        return {words[0]: _value(words[1])}
    return parse_pairs(words)


def _value(text: str) -> str:
    return sys.stdin.read() if text == "-" else text


def parse_devices(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """`-d root,size=10GiB` as `{"root": {"size": "10GiB"}}`."""
    devices: dict[str, dict[str, str]] = {}
    for word in words:
        name, comma, rest = word.partition(",")
        if not comma or not name:
            raise UsageError(f'"{word}" is not a device: expected name,key=value[,key=value…]')
        devices.setdefault(name, {}).update(parse_pairs(rest.split(",")))
    return devices


def apply_changes(config: dict[str, str], changes: dict[str, str]) -> None:
    """Set keys; an empty value removes one."""
    for key, value in changes.items():
        if value:
            config[key] = value
        else:
            config.pop(key, None)


def remove_key(config: dict[str, str], key: str, owner: str) -> None:
    if key not in config:
        raise CliError(f"Can't unset key \"{key}\" of {owner}: it's not currently set")
    del config[key]
