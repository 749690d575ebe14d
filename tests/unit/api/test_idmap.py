# SPDX-License-Identifier: Apache-2.0
"""From one id map to another."""

import pytest

from flexd.api.idmap import IdMap, IdMapEntry

ONE, OTHER, NONE = IdMap.single(1000000, 65536), IdMap.single(2000000, 65536), IdMap()
RAW = IdMap(
    (
        IdMapEntry("b", 0, 1000000, 1000),
        IdMapEntry("u", 1000, 1000, 1),
        IdMapEntry("g", 1000, 1001000, 1),
        IdMapEntry("b", 1001, 1001001, 64535),
    )
)


@pytest.mark.parametrize("old", [ONE, OTHER, NONE, RAW])
@pytest.mark.parametrize("new", [ONE, OTHER, NONE, RAW])
def test_what_an_id_becomes(old: IdMap, new: IdMap) -> None:
    translation = old.translation(new)
    assert bool(translation) == (old != new)
    for number in (0, 1, 999, 1000, 1001, 65535):
        for name in ("host_uid", "host_gid"):
            before = getattr(old, name)(number)
            assert getattr(translation, name)(before) == getattr(new, name)(number)


def test_what_only_one_map_has_is_left_out() -> None:
    assert ONE.translation(IdMap.single(5000, 10)) == IdMap((IdMapEntry("b", 1000000, 5000, 10),))
