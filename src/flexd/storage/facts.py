# SPDX-License-Identifier: Apache-2.0
"""Small facts about a volume, kept as symbolic links beside its data: `size -> 10737418240`.

A link is created and replaced atomically and journalled with its directory, in the order of the other renames, so no
fsync is needed where a small file would need one to survive a power cut. Blocking: call in a thread.
"""

import os
from pathlib import Path

from flexd.api.idmap import IdMap, IdMapEntry

_PRIVILEGED = "-"


def write_fact(directory: Path, name: str, text: str) -> None:
    """Set a fact; the directory must belong to one writer at a time."""
    fresh = directory / f".{name}~"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(text)
    fresh.replace(directory / name)


def read_fact(directory: Path, name: str) -> str | None:
    """The fact, or None if it was never set."""
    try:
        return os.readlink(directory / name)
    except FileNotFoundError:
        return None


def read_number(directory: Path, name: str) -> int | None:
    text = read_fact(directory, name)
    return None if text is None else int(text)


def render_idmap(idmap: IdMap) -> str:
    """`b:0:1000000:65536`, entries joined by commas; `-` for a privileged container's empty map."""
    return ",".join(f"{e.kind}:{e.inside}:{e.outside}:{e.count}" for e in idmap.entries) or _PRIVILEGED


def parse_idmap(text: str) -> IdMap:
    if text == _PRIVILEGED:
        return IdMap()
    fields = (entry.split(":") for entry in text.split(","))
    return IdMap(
        tuple(IdMapEntry(kind, int(inside), int(outside), int(count)) for kind, inside, outside, count in fields)
    )
