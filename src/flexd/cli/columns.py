# SPDX-License-Identifier: Apache-2.0
"""Columns of `flexc list`: lxc's letters, and configuration and device keys."""

from __future__ import annotations

from flexd.cli.errors import UsageError
from flexd.cli.show import addresses, is_active, size_iec, utc_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Instance = Mapping[str, Any]

DEFAULT_COLUMNS = "ns46tS"
FAST_COLUMNS = "nsacPt"
_UNLIMITED = -1


class Column:
    __slots__ = ("title", "value")

    def __init__(self, title: str, value: Callable[[Instance], str]) -> None:
        self.title = title
        self.value = value


def _addresses(instance: Instance, family: str) -> str:
    if not is_active(instance):
        return ""
    found = (f"{address} ({interface})" for address, interface in addresses(instance.get("state"), family))
    return "\n".join(sorted(found, reverse=True))


def _state(instance: Instance) -> Mapping[str, Any]:
    return instance.get("state") or {}


def _type(instance: Instance) -> str:
    kind = str(instance.get("type") or "container").upper()
    return f"{kind} (EPHEMERAL)" if instance.get("ephemeral") else kind


def _root_disk(instance: Instance) -> Mapping[str, str]:
    for device in (instance.get("expanded_devices") or {}).values():
        if device.get("type") == "disk" and device.get("path") == "/":
            found: Mapping[str, str] = device
            return found
    return {}


def _disk_usage(instance: Instance) -> str:
    usage = ((_state(instance).get("disk") or {}).get("root") or {}).get("usage", 0)
    return size_iec(usage) if usage > 0 else ""


def _memory(instance: Instance) -> int:
    return (_state(instance).get("memory") or {}).get("usage", 0) if is_active(instance) else 0


def _memory_percent(instance: Instance) -> str:
    usage = _memory(instance)
    limit = (instance.get("expanded_config") or {}).get("limits.memory", "")
    if not usage or not limit or limit.endswith("%"):
        return ""
    from flexd.cli.sizes import parse_size

    return f"{100 * usage / parse_size(limit):.1f}%"


def _cpu_seconds(instance: Instance) -> str:
    usage = (_state(instance).get("cpu") or {}).get("usage", 0)
    return f"{usage // 1_000_000_000}s" if is_active(instance) and usage > 0 else ""


def _positive(instance: Instance, name: str) -> str:
    value = _state(instance).get(name, 0)
    return str(value) if is_active(instance) and value > 0 else ""


def _image(instance: Instance) -> str:
    return str((instance.get("config") or {}).get("volatile.base_image", ""))


# The letters whose values come with `recursion=2` only: these cost the server work.
_STATE_LETTERS = frozenset("46DmMNpSu")
_LETTERS: dict[str, Column] = {
    "4": Column("IPV4", lambda each: _addresses(each, "inet")),
    "6": Column("IPV6", lambda each: _addresses(each, "inet6")),
    "a": Column("ARCHITECTURE", lambda each: each["architecture"]),
    "b": Column("STORAGE POOL", lambda each: _root_disk(each).get("pool", "")),
    "c": Column("CREATED AT", lambda each: utc_time(each["created_at"])),
    "d": Column("DESCRIPTION", lambda each: each["description"]),
    "D": Column("DISK USAGE", _disk_usage),
    "e": Column("PROJECT", lambda each: each["project"]),
    "f": Column("BASE IMAGE", lambda each: _image(each)[:12]),
    "F": Column("BASE IMAGE", _image),
    "l": Column("LAST USED AT", lambda each: utc_time(each["last_used_at"])),
    "L": Column("LOCATION", lambda each: each["location"]),
    "m": Column("MEMORY USAGE", lambda each: size_iec(_memory(each)) if _memory(each) else ""),
    "M": Column("MEMORY USAGE%", _memory_percent),
    "n": Column("NAME", lambda each: each["name"]),
    "N": Column("PROCESSES", lambda each: _positive(each, "processes")),
    "p": Column("PID", lambda each: _positive(each, "pid")),
    "P": Column("PROFILES", lambda each: "\n".join(each["profiles"] or ())),
    "s": Column("STATE", lambda each: each["status"].upper()),
    "S": Column("SNAPSHOTS", lambda each: str(len(each.get("snapshots") or ()))),
    "t": Column("TYPE", _type),
    "u": Column("CPU USAGE", _cpu_seconds),
}
_BY_STATE = frozenset(id(_LETTERS[letter]) for letter in _STATE_LETTERS)


def parse_columns(text: str) -> list[Column]:
    """`ns4,user.stage:STAGE:8` as columns."""
    columns: list[Column] = []
    for entry in text.split(","):
        if not entry:
            raise UsageError(f'Empty column entry in "{text}"')
        if "." in entry or ":" in entry:
            columns.append(_key_column(entry))
            continue
        for letter in entry:
            if letter not in _LETTERS:
                raise UsageError(f'Unknown column shorthand char "{letter}" in "{entry}"')
            columns.append(_LETTERS[letter])
    return columns


def needs_state(columns: list[Column]) -> bool:
    """True if one of them shows what only the running instance knows."""
    return any(id(column) in _BY_STATE for column in columns)


def _key_column(entry: str) -> Column:
    parts = entry.split(":")
    source = parts.pop(0) if parts[0] in ("config", "devices") else "config"
    if not parts or not parts[0] or len(parts) > 3:
        raise UsageError(f'Invalid column "{entry}": expected [config:|devices:]key[:name][:maxWidth]')
    key = parts[0]
    title = parts[1] if len(parts) > 1 and parts[1] else key
    width = _parse_width(parts[2], entry) if len(parts) > 2 else _UNLIMITED
    if width == 0:
        width = len(title)
    if source == "devices" and "." not in key:
        raise UsageError(f'Invalid column "{entry}": expected devices:<device>.<key>')
    value = _device_value if source == "devices" else _config_value
    return Column(title, lambda each: value(each, key)[: None if width == _UNLIMITED else width])


def _parse_width(text: str, entry: str) -> int:
    try:
        width = int(text)
    except ValueError as error:
        raise UsageError(f'Invalid max width "{text}" in column "{entry}"') from error
    if width < _UNLIMITED:
        raise UsageError(f'Invalid max width "{text}" in column "{entry}": expected -1 (unlimited), 0 (title) or more')
    return width


def _config_value(instance: Instance, key: str) -> str:
    expanded = instance.get("expanded_config") or {}
    return str(expanded.get(key, (instance.get("config") or {}).get(key, "")))


def _device_value(instance: Instance, key: str) -> str:
    device, _, name = key.partition(".")
    return str(((instance.get("expanded_devices") or {}).get(device) or {}).get(name, ""))
