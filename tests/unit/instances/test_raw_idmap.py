# SPDX-License-Identifier: Apache-2.0
"""`raw.idmap`: LXD's syntax, and maps with it in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.api.errors import BadRequest
from flexd.api.idmap import IdMap, IdMapEntry
from flexd.host.contract import SubordinateRange
from flexd.instances.idmaps import choose_idmap
from flexd.instances.raw_idmap import parse_raw_idmap, with_raw

BASE = IdMap.single(1_000_000, 65536)


def test_lines():
    assert parse_raw_idmap("both 1000 1000\nuid 50-60 500-510\n\ngid 100000-110000 10000-20000") == [
        IdMapEntry("b", 1000, 1000, 1),
        IdMapEntry("u", 500, 50, 11),
        IdMapEntry("g", 10000, 100000, 10001),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "both 1000",
        "all 1000 1000",
        "both 1000 x",
        "both 1000-1 5-6",
        "both 1000-1005 2000-2006",
        "both 4294967295 0",
        "both 1000 1000\nuid 1000 2000",
        "both 1000 1000\ngid 2000 1000",
    ],
)
def test_wrong_lines(text: str):
    with pytest.raises(BadRequest, match="ID map"):
        parse_raw_idmap(text)


def test_a_user_and_a_group_may_share_numbers():
    assert len(parse_raw_idmap("uid 1000 1000\ngid 1000 1000")) == 2


def test_a_hole_is_cut_for_both():
    assert with_raw(BASE, parse_raw_idmap("both 1000 1000")).entries == (
        IdMapEntry("b", 0, 1_000_000, 1000),
        IdMapEntry("b", 1000, 1000, 1),
        IdMapEntry("b", 1001, 1_001_001, 64535),
    )


def test_a_hole_for_users_only_leaves_groups_alone():
    idmap = with_raw(BASE, parse_raw_idmap("uid 1000 0"))
    assert idmap.host_uid(0) == 1000
    assert idmap.host_gid(0) == 1_000_000


def test_host_ids_in_use_are_refused():
    with pytest.raises(BadRequest, match="1000500"):
        with_raw(BASE, parse_raw_idmap("both 1000500 7"))


def test_it_is_part_of_the_choice():
    idmap, _ = choose_idmap({"raw.idmap": "both 1000 1000"}, SubordinateRange(1_000_000, 65536))
    assert idmap.host_uid(1000) == 1000
    assert choose_idmap({"raw.idmap": "both 1 1", "security.privileged": "true"}, SubordinateRange(1, 1))[0] == IdMap()


@given(
    st.lists(st.tuples(st.integers(0, 70000), st.integers(0, 900_000), st.integers(1, 3000)), max_size=4),
    st.integers(0, 80000),
)
def test_every_id_is_mapped_once(lines: list[tuple[int, int, int]], number: int):
    text = "\n".join(f"both {host}-{host + n - 1} {own}-{own + n - 1}" for own, host, n in lines)
    try:
        raw = parse_raw_idmap(text)
    except BadRequest:
        return
    idmap = with_raw(BASE, raw)
    covering = [entry for entry in raw if entry.inside <= number < entry.inside + entry.count]
    expected = covering[0].outside + number - covering[0].inside if covering else BASE.host_uid(number)
    assert idmap.host_uid(number) == expected
    owners = [e for e in idmap.entries if e.inside <= number < e.inside + e.count]
    assert len(owners) <= 1
