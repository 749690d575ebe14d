# SPDX-License-Identifier: Apache-2.0
"""Which host ids an instance gets; pure. LXD's rules: one shared map, or one of its own when isolated."""

from collections.abc import Iterable, Mapping

import msgspec

from flexd.api.errors import BadRequest
from flexd.api.idmap import IdMap, IdMapEntry
from flexd.api.units import is_true
from flexd.host.contract import SubordinateRange
from flexd.instances.raw_idmap import parse_raw_idmap, with_raw

# 65536 ids are what a distribution expects to have (nobody is 65534).
ISOLATED_COUNT = 65536


class WireEntry(msgspec.Struct):
    """An entry of `volatile.idmap.*` in LXD's JSON."""

    Isuid: bool
    Isgid: bool
    Hostid: int
    Nsid: int
    Maprange: int


def to_wire(idmap: IdMap) -> str:
    """The text of `volatile.idmap.next`: users first, then groups."""
    entries = [
        WireEntry(users, not users, entry.outside, entry.inside, entry.count)
        for entry in idmap.entries
        for users in (True, False)
        if (entry.is_uid if users else entry.is_gid)
    ]
    return msgspec.json.encode(entries).decode()


def from_wire(text: str) -> IdMap:
    """The map of such a text; empty or absent: no map."""
    if not text:
        return IdMap()
    entries = msgspec.json.decode(text, type=list[WireEntry])
    mapped = []
    for entry in entries:
        kind = "b" if entry.Isuid and entry.Isgid else "u" if entry.Isuid else "g"
        mapped.append(IdMapEntry(kind, entry.Nsid, entry.Hostid, entry.Maprange))
    return _merge(mapped)


def _merge(entries: list[IdMapEntry]) -> IdMap:
    """Users and groups with equal ranges become one entry, so that equal maps compare equal."""
    users = [e for e in entries if e.kind == "u"]
    groups = [IdMapEntry("u", e.inside, e.outside, e.count) for e in entries if e.kind == "g"]
    if users == groups:
        return IdMap(tuple(IdMapEntry("b", e.inside, e.outside, e.count) for e in users))
    return IdMap(tuple(entries))


def isolated_range(config: Mapping[str, str]) -> tuple[int, int] | None:
    """(base, count) of an isolated instance's map as recorded; None if it is not isolated or has none yet."""
    if not is_true(config.get("security.idmap.isolated")) or is_true(config.get("security.privileged")):
        return None
    base = config.get("security.idmap.base") or config.get("volatile.idmap.base")
    return (int(base), _count(config)) if base else None


def _count(config: Mapping[str, str]) -> int:
    return int(config.get("security.idmap.size") or ISOLATED_COUNT)


def choose_idmap(
    config: Mapping[str, str], allowed: SubordinateRange, taken: Iterable[tuple[int, int]] = ()
) -> tuple[IdMap, int]:
    """The map for an instance and its base (0 for a shared map, as LXD records it).

    `taken`: the ranges of the other isolated instances.
    """
    if is_true(config.get("security.privileged")):
        return IdMap(), 0
    if allowed.count == 0:
        raise BadRequest(
            "Failed choosing an id map: flexd runs in a container that has no ids to give away; set its "
            "security.idmap.size to 131072 or more, or make instances in it privileged"
        )
    idmap, base = _choose_range(config, allowed, taken)
    return with_raw(idmap, parse_raw_idmap(config.get("raw.idmap", ""))), base


def _choose_range(
    config: Mapping[str, str], allowed: SubordinateRange, taken: Iterable[tuple[int, int]]
) -> tuple[IdMap, int]:
    if not is_true(config.get("security.idmap.isolated")):
        count = min(_count(config), allowed.count) if config.get("security.idmap.size") else allowed.count
        return IdMap.single(allowed.base, count), 0
    count, last = _count(config), allowed.base + allowed.count
    base = _wanted_base(config)
    if base is None:
        base = _free_base(count, allowed, taken)
    if base < allowed.base or base + count > last:
        raise BadRequest(
            f"Failed choosing an id map: {count} ids from {base} do not fit into the host's range "
            f"{allowed.base}-{last - 1} (/etc/subuid)"
        )
    return IdMap.single(base, count), base


def _wanted_base(config: Mapping[str, str]) -> int | None:
    wanted = config.get("security.idmap.base") or config.get("volatile.idmap.base")
    return int(wanted) if wanted and wanted != "0" else None


def _free_base(count: int, allowed: SubordinateRange, taken: Iterable[tuple[int, int]]) -> int:
    """The lowest gap; the first 65536 ids stay with the containers that share a map, as in LXD."""
    base = allowed.base + ISOLATED_COUNT
    for start, length in sorted(taken):
        if base + count <= start:
            break
        base = max(base, start + length)
    if base + count > allowed.base + allowed.count:
        raise BadRequest(f"Failed choosing an id map: no {count} free ids are left in the host's range")
    return base
