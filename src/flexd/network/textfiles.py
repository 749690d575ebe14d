# SPDX-License-Identifier: Apache-2.0
"""Small files below a network's directory, written whole. Blocking: called in threads."""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def read_text(path: Path) -> str:
    """The file's text; "" if there is no file."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def write_text(path: Path, text: str) -> bool:
    """Replace a file in one step, readable by everyone (dnsmasq is not root); False if it already held this text."""
    if path.exists() and path.read_text() == text:
        return False
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text)
    scratch.chmod(0o644)
    os.replace(scratch, path)
    return True


def read_value(path: Path, kind: type[T]) -> T | None:
    """A JSON document; None if it is absent or not what it should be (a crash or a person left something else)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_value(path: Path, value: object) -> bool:
    return write_text(path, msgspec.json.encode(value).decode())
