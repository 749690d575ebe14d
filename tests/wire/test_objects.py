# SPDX-License-Identifier: Apache-2.0
"""Every struct reads what a real LXD sends and writes the same back."""

import importlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flexd.server.decode import from_builtins

OBJECTS = json.loads((Path(__file__).parent / "golden" / "objects.json").read_text())


def struct_of(name: str) -> type[msgspec.Struct]:
    module, _, kind = name.partition(".")
    found: type[msgspec.Struct] = getattr(importlib.import_module(f"flexd.api.{module}"), kind)
    return found


def differences(sent: Any, ours: Any, path: str = "") -> list[str]:
    """Where `ours` lacks or changes something of `sent`; null and an empty value are the same to Go's clients."""
    if sent is None:
        return [] if is_empty(ours) else [f"{path}: null became {ours!r}"]
    if isinstance(sent, dict) and isinstance(ours, dict):
        missing = [f"{path}.{key}: missing" for key in sent if key not in ours and sent[key] is not None]
        both = [line for key in sent if key in ours for line in differences(sent[key], ours[key], f"{path}.{key}")]
        return missing + both
    if isinstance(sent, list) and isinstance(ours, list) and len(sent) == len(ours):
        return [
            line
            for index, (a, b) in enumerate(zip(sent, ours, strict=True))
            for line in differences(a, b, f"{path}.{index}")
        ]
    return [] if sent == ours or same_time(sent, ours) else [f"{path}: {sent!r} became {ours!r}"]


def is_empty(value: Any) -> bool:
    return all(is_empty(member) for member in value.values()) if isinstance(value, dict) else not value


def same_time(sent: Any, ours: Any) -> bool:
    """Python keeps microseconds of Go's nanoseconds."""
    if not isinstance(sent, str) or not isinstance(ours, str) or not sent.endswith("Z"):
        return False
    try:
        return abs((msgspec.convert(sent, datetime) - msgspec.convert(ours, datetime)).total_seconds()) < 1e-6
    except msgspec.ValidationError:
        return False


@pytest.mark.parametrize("name", OBJECTS)
def test_round_trip(name: str) -> None:
    golden = OBJECTS[name]
    value = from_builtins(golden["value"], struct_of(golden["type"]))
    assert differences(golden["value"], json.loads(msgspec.json.encode(value))) == []
