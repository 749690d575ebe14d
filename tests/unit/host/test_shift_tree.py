# SPDX-License-Identifier: Apache-2.0
"""Ids in ACLs and file capabilities, from one map to another."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from flexd.host.shift_tree import Shift, read_maps, shift_acl, shift_capability

_UP = Shift([], [(0, 1000000, 65536)])
_DOWN = Shift([(0, 1000000, 65536)], [])
_ACROSS = Shift([(0, 1000000, 65536)], [(0, 2000000, 65536)])
_CAPABILITY_BODY = struct.pack("<4I", 0x2000, 0, 0, 0)


def test_between_maps() -> None:
    assert [_UP(0), _UP(1000), _UP(65535)] == [1000000, 1001000, 1065535]
    assert [_DOWN(1000000), _DOWN(1001000)] == [0, 1000]
    assert _ACROSS(1000005) == 2000005


def test_ids_without_a_place_stay() -> None:
    assert _UP(65536) == 65536
    assert _UP(1000000) == 1000000  # shifted already: a repeated run does no harm
    assert _ACROSS(0) == 0


@given(st.integers(0, 65535))
def test_there_and_back(number: int) -> None:
    assert _DOWN(_UP(number)) == number


def test_maps_of_several_lines() -> None:
    user, group = read_maps(["new u 0 1000000 1000\n", "new u 1000 1000 1\n", "new g 0 5000000 10\n"])
    assert [user(0), user(1000), user(1001), group(3)] == [1000000, 1000, 1001, 5000003]


def test_only_named_entries_of_an_acl() -> None:
    entries = [(0x01, 6, 0xFFFFFFFF), (0x02, 4, 33), (0x08, 4, 50), (0x10, 7, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    shifted = shift_acl(value, _UP, Shift([], [(0, 2000000, 65536)]))
    assert [entry[2] for entry in struct.iter_unpack("<HHI", shifted[4:])] == [
        0xFFFFFFFF, 1000033, 2000050, 0xFFFFFFFF, 0xFFFFFFFF,
    ]  # fmt: skip
    assert shift_acl(b"\1\0\0\0odd", _UP, _UP) == b"\1\0\0\0odd"


def test_capabilities_get_and_lose_their_root() -> None:
    plain = struct.pack("<I", 0x02000001) + _CAPABILITY_BODY
    owned = struct.pack("<I", 0x03000001) + _CAPABILITY_BODY + struct.pack("<I", 1000000)
    assert shift_capability(plain, _UP) == owned
    assert shift_capability(owned, _DOWN) == plain
    assert shift_capability(owned, _ACROSS)[-4:] == struct.pack("<I", 2000000)
    assert shift_capability(b"odd", _UP) == b"odd"
