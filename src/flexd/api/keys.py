# SPDX-License-Identifier: Apache-2.0
"""Configuration keys as rows.

Validation, `/1.0/metadata/configuration`, the documentation and completion derive from them.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from flexd.api.errors import BadRequest, Fault
from flexd.api.units import parse_bool, parse_size


class Key(Struct, frozen=True):
    """One row of an owner's `KEYS`.

    `name` may end in `*` (`user.*`). `check` returns what is wrong with a non-empty value, or None. An empty value
    always means "unset" and is not checked unless `required`. `live`: takes effect without a restart of the instance.
    """

    name: str
    kind: str = "string"
    default: str = ""
    description: str = ""
    live: bool = True
    required: bool = False
    choices: tuple[str, ...] = ()
    check: Callable[[str], str | None] | None = None

    def matches(self, name: str) -> bool:
        if self.name.endswith("*"):
            return name.startswith(self.name[:-1]) and len(name) >= len(self.name)
        return name == self.name

    def fault(self, value: str) -> str | None:
        """What is wrong with this value, in words that name the value; None if it is right."""
        if value == "":
            return "a value is required" if self.required else None
        if self.choices and value not in self.choices:
            return f'invalid value "{value}" (expected one of {", ".join(self.choices)})'
        wrong = _kind_fault(self.kind, value)
        if wrong is None and self.check is not None:
            wrong = self.check(value)
        return wrong


def _kind_fault(kind: str, value: str) -> str | None:
    try:
        if kind == "bool":
            parse_bool(value)
        elif kind == "size":
            parse_size(value)
        elif kind == "integer" and not re.fullmatch(r"-?[0-9]+", value):
            return f'invalid value "{value}" (expected an integer)'
    except BadRequest as error:
        return str(error)
    return None


def find_key(keys: Iterable[Key], name: str) -> Key | None:
    """The row that governs a key; an exact name beats a prefix."""
    found = None
    for key in keys:
        if key.name == name:
            return key
        if found is None and key.matches(name):
            found = key
    return found


def check_config(config: Mapping[str, str], keys: Iterable[Key], path: str = "config") -> list[Fault]:
    """Every fault of a configuration: unknown keys, wrong values, required keys that are missing."""
    rows = list(keys)
    faults = []
    for name, value in config.items():
        row = find_key(rows, name)
        if row is None:
            faults.append(Fault(f"{path}.{name}", "unknown configuration key"))
            continue
        wrong = row.fault(value)
        if wrong is not None:
            faults.append(Fault(f"{path}.{name}", wrong))
    faults.extend(
        Fault(f"{path}.{row.name}", "a value is required") for row in rows if row.required and row.name not in config
    )
    return faults
