# SPDX-License-Identifier: Apache-2.0
"""The YAML documents of backups, as LXD 5.0 writes and reads them; pure. Those of others are judged before they are
decoded."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec import Struct

from flexd.api.errors import BadRequest

T = TypeVar("T", bound=Struct)

_DEPTH = 12
_NODES = 2_000_000
_TEXTS = frozenset({"config", "expanded_config", "devices", "expanded_devices"})


class BadBackup(BadRequest):
    """A file that is no backup, is damaged, or of a kind that cannot be restored here."""


class _Dumper(yaml.SafeDumper):
    """Times as plain scalars, as Go writes them; nothing shared (anchors are refused by readers)."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # PyYAML's signature
        return True


class _Time(str):
    __slots__ = ()


_Dumper.add_representer(_Time, lambda dumper, data: dumper.represent_scalar("tag:yaml.org,2002:timestamp", str(data)))


def dump(document: Mapping[str, Any]) -> bytes:
    text: bytes = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, encoding="utf-8", width=4096)
    return text


def timestamp(moment: datetime) -> str:
    """A moment, to be dumped."""
    return _Time(moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds").replace("+00:00", "Z"))


def parse(text: bytes, kind: type[T], where: str) -> T:
    """`BadBackup` if it is not that; `where` is for the error."""
    try:
        _check_yaml(text, where)
        raw = yaml.load(text, Loader=yaml.CBaseLoader)  # builds only str, list and dict
        return msgspec.convert(_without_nulls(raw), kind, strict=False)
    except (yaml.YAMLError, ValueError, RecursionError, msgspec.ValidationError) as error:
        raise BadBackup(f"Invalid {where}: {' '.join(str(error).split())}") from error


def _check_yaml(text: bytes, where: str) -> None:
    depth = 0
    for nodes, event in enumerate(yaml.parse(text, Loader=yaml.CBaseLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise BadBackup(f"Invalid {where}: anchors and aliases are not accepted")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH or nodes > _NODES:
            raise BadBackup(f"Invalid {where}: nested too deeply or too long")


def _without_nulls(value: Any) -> Any:
    """Leave out what is null (`snapshots: null`); a configuration holds texts, of which any may be "null"."""
    if isinstance(value, dict):
        return {key: item if key in _TEXTS else _without_nulls(item) for key, item in value.items() if item != "null"}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
