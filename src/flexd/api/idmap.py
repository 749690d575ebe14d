# SPDX-License-Identifier: Apache-2.0
"""Id maps: which host ids stand behind a container's ids (user_namespaces(7))."""

from msgspec import Struct


class IdMapEntry(Struct, frozen=True):
    """`count` ids from `inside` in the container are `outside` onwards on the host; `kind` is "u", "g" or "b"(oth)."""

    kind: str
    inside: int
    outside: int
    count: int

    @property
    def is_uid(self) -> bool:
        return self.kind in ("u", "b")

    @property
    def is_gid(self) -> bool:
        return self.kind in ("g", "b")


class IdMap(Struct, frozen=True):
    """A whole map. Empty means privileged: ids are the host's own."""

    entries: tuple[IdMapEntry, ...] = ()

    @staticmethod
    def single(base: int, count: int) -> "IdMap":
        """Container ids 0..count-1 are host ids base..base+count-1, for users and groups."""
        return IdMap((IdMapEntry("b", 0, base, count),))

    def __bool__(self) -> bool:
        return bool(self.entries)

    def host_uid(self, uid: int) -> int | None:
        """The host id behind a container's user id; None where nothing is mapped."""
        return self._host(uid, users=True)

    def host_gid(self, gid: int) -> int | None:
        return self._host(gid, users=False)

    def _host(self, number: int, *, users: bool) -> int | None:
        if not self.entries:
            return number
        for entry in self.entries:
            fits = entry.is_uid if users else entry.is_gid
            if fits and entry.inside <= number < entry.inside + entry.count:
                return entry.outside + number - entry.inside
        return None

    def proc_lines(self, *, users: bool) -> str:
        """The text for `/proc/PID/uid_map` (users) or `gid_map`."""
        wanted = [e for e in self.entries if (e.is_uid if users else e.is_gid)]
        return "".join(f"{e.inside} {e.outside} {e.count}\n" for e in wanted)

    def translation(self, new: "IdMap") -> "IdMap":
        """The map from host ids under this map to host ids under `new`, as an idmapped mount takes it; empty if they
        are the same."""
        if self == new:
            return IdMap()
        if not self:
            return new
        if not new:
            return IdMap(tuple(IdMapEntry(e.kind, e.outside, e.inside, e.count) for e in self.entries))
        pairs = ((old, other) for old in self.entries for other in new.entries)
        return IdMap(tuple(entry for old, other in pairs if (entry := _overlap(old, other)) is not None))


def _overlap(old: IdMapEntry, new: IdMapEntry) -> IdMapEntry | None:
    """What both entries map, from the one's host ids to the other's."""
    kind = new.kind if old.kind == "b" else old.kind
    start, end = max(old.inside, new.inside), min(old.inside + old.count, new.inside + new.count)
    if start >= end or new.kind not in ("b", kind):
        return None
    return IdMapEntry(kind, old.outside + start - old.inside, new.outside + start - new.inside, end - start)
