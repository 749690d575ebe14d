# SPDX-License-Identifier: Apache-2.0
"""Ids between a container's view and the host's, for trees that arrive or leave; one without a place is an error."""

from collections.abc import Callable, Iterable

from flexd.host.shift_tree import shift_acl, shift_capability
from flexd.host.tree_format import BadStream, Ids

Ranges = list[tuple[int, int, int]]  # from, to, count
# The last one means "no change" to chown(2).
_LAST_ID = (1 << 32) - 2


class _Table:
    def __init__(self, ranges: Ranges, what: str) -> None:
        self._ranges, self._what = ranges, what
        self._known: dict[int, int] = {}

    def __call__(self, number: int) -> int:
        found = self._known.get(number)
        if found is None:
            found = self._known[number] = self._look_up(number)
        return found

    def _look_up(self, number: int) -> int:
        if not self._ranges and 0 <= number <= _LAST_ID:
            return number
        for start, destination, count in self._ranges:
            if start <= number < start + count:
                return destination + number - start
        raise BadStream(f"a file of {self._what} {number}, which the container's id map has no place for")


def ids_from(lines: Iterable[str], *, inward: bool) -> Ids:
    """Lines `u|g INSIDE OUTSIDE COUNT`, none: ids are the host's own. `inward`: from the host's to the container's."""
    ranges: dict[str, Ranges] = {"u": [], "g": []}
    for line in lines:
        kind, *numbers = line.split()
        inside, outside, count = map(int, numbers)
        ranges[kind].append((outside, inside, count) if inward else (inside, outside, count))
    return _ids(_Table(ranges["u"], "user"), _Table(ranges["g"], "group"))


def _ids(user: Callable[[int], int], group: Callable[[int], int]) -> Ids:
    def value(name: str, text: bytes) -> bytes:
        if name == "security.capability":
            return shift_capability(text, user)
        return shift_acl(text, user, group) if name.startswith("system.posix_acl_") else text

    return Ids(user, group, value)
