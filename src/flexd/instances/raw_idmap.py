# SPDX-License-Identifier: Apache-2.0
"""`raw.idmap`: host ids that an instance sees as ids of its own, put into its map; pure.

A line is `both HOST OWN`, or `uid` or `gid` for one kind only; HOST and OWN are ids or ranges (`1000-1005`).
"""

import re
from collections.abc import Iterable, Iterator

from flexd.api.errors import BadRequest
from flexd.api.idmap import IdMap, IdMapEntry

_KINDS = {"both": "b", "uid": "u", "gid": "g"}
_RANGE = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?")
# -1 as an unsigned number means "none" to the kernel.
_LAST_ID = 2**32 - 2


def parse_raw_idmap(text: str) -> list[IdMapEntry]:
    """The entries; BadRequest names the line that is wrong."""
    entries: list[IdMapEntry] = []
    for line in text.split("\n"):
        if not line.strip():
            continue
        entry = _parse_line(line)
        for known in entries:
            _check_apart(line, known, entry)
        entries.append(entry)
    return entries


def _parse_line(line: str) -> IdMapEntry:
    words = line.split()
    if len(words) != 3:
        raise BadRequest(f'Invalid ID map line "{line}": expected "both", "uid" or "gid", host ids and own ids')
    if words[0] not in _KINDS:
        raise BadRequest(f'Invalid ID map type "{line}": expected "both", "uid" or "gid"')
    (outside, outside_count), (inside, inside_count) = (_parse_range(line, word) for word in words[1:])
    if outside_count != inside_count:
        raise BadRequest(f'The ID map ranges are of different sizes "{line}"')
    return IdMapEntry(_KINDS[words[0]], inside, outside, inside_count)


def _parse_range(line: str, word: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(word)
    first = int(match[1]) if match else 0
    last = int(match[2] or match[1]) if match else -1
    if not first <= last <= _LAST_ID:
        raise BadRequest(f'Invalid ID map range "{word}" in "{line}"')
    return first, last - first + 1


def _check_apart(line: str, one: IdMapEntry, other: IdMapEntry) -> None:
    if not {one.kind, other.kind} <= {"u", "g"} or one.kind == other.kind:
        if _overlap(one.outside, other.outside, one.count, other.count):
            raise BadRequest(f'Invalid ID map line "{line}": its host ids are mapped by another line already')
        if _overlap(one.inside, other.inside, one.count, other.count):
            raise BadRequest(f'Invalid ID map line "{line}": its own ids are mapped by another line already')


def _overlap(one: int, other: int, one_count: int, other_count: int) -> bool:
    return one < other + other_count and other < one + one_count


def with_raw(idmap: IdMap, raw: Iterable[IdMapEntry]) -> IdMap:
    """The map with these entries in place of what it said about their ids; what host ids it gave these before is no
    longer mapped. BadRequest if a host id would be two ids at once."""
    raw = list(raw)
    if not raw or not idmap:
        return idmap
    halves = []
    for kind in ("u", "g"):
        mine = [entry for entry in raw if entry.kind in ("b", kind)]
        base = [IdMapEntry(kind, e.inside, e.outside, e.count) for e in idmap.entries if e.kind in ("b", kind)]
        halves.append(_carved(kind, base, mine))
    users, groups = halves
    if [_plain(entry) for entry in users] == [_plain(entry) for entry in groups]:
        return IdMap(tuple(IdMapEntry("b", *_plain(entry)) for entry in users))
    return IdMap((*users, *groups))


def _plain(entry: IdMapEntry) -> tuple[int, int, int]:
    return entry.inside, entry.outside, entry.count


def _carved(kind: str, base: list[IdMapEntry], raw: list[IdMapEntry]) -> list[IdMapEntry]:
    for entry in raw:
        base = [piece for old in base for piece in _without(old, entry.inside, entry.count)]
    for old in base:
        for entry in raw:
            if _overlap(old.outside, entry.outside, old.count, entry.count):
                ids = f"{entry.outside}-{entry.outside + entry.count - 1}"
                raise BadRequest(f"Failed adding raw.idmap: the host ids {ids} are in the instance's map already")
    new = [IdMapEntry(kind, *_plain(entry)) for entry in raw]
    return sorted((*base, *new), key=lambda entry: entry.inside)


def _without(entry: IdMapEntry, inside: int, count: int) -> Iterator[IdMapEntry]:
    """What is left of an entry when these own ids are taken out."""
    end = entry.inside + entry.count
    before = min(inside, end) - entry.inside
    if before > 0:
        yield IdMapEntry(entry.kind, entry.inside, entry.outside, before)
    start = max(inside + count, entry.inside)
    if start < end:
        yield IdMapEntry(entry.kind, start, entry.outside + start - entry.inside, end - start)
