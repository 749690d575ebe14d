# SPDX-License-Identifier: Apache-2.0
"""Choosing id maps and LXD's text for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.api.errors import BadRequest
from flexd.api.idmap import IdMap
from flexd.host.contract import SubordinateRange
from flexd.instances.idmaps import ISOLATED_COUNT, choose_idmap, from_wire, isolated_range, to_wire

HOST = SubordinateRange(1_000_000, 1_000_000_000)
ISOLATED = {"security.idmap.isolated": "true"}


def test_privileged_has_no_map():
    assert choose_idmap({"security.privileged": "true"}, HOST) == (IdMap(), 0)


def test_shared_map_is_the_whole_range():
    assert choose_idmap({}, HOST) == (IdMap.single(HOST.base, HOST.count), 0)


def test_shared_map_of_a_given_size():
    assert choose_idmap({"security.idmap.size": "200000"}, HOST)[0] == IdMap.single(HOST.base, 200_000)


def test_isolated_maps_leave_the_first_ids_to_the_shared_map():
    idmap, base = choose_idmap(ISOLATED, HOST)
    assert base == HOST.base + ISOLATED_COUNT
    assert idmap == IdMap.single(base, ISOLATED_COUNT)


def test_isolated_takes_the_lowest_gap():
    first = HOST.base + ISOLATED_COUNT
    taken = [(first, ISOLATED_COUNT), (first + 3 * ISOLATED_COUNT, ISOLATED_COUNT)]
    assert choose_idmap(ISOLATED, HOST, taken)[1] == first + ISOLATED_COUNT


def test_isolated_keeps_its_recorded_base():
    assert choose_idmap({**ISOLATED, "volatile.idmap.base": "3000000"}, HOST)[1] == 3_000_000


@pytest.mark.parametrize("base", ["5", "1000999999"])
def test_base_outside_the_range_is_refused(base):
    with pytest.raises(BadRequest, match="do not fit into the host's range"):
        choose_idmap({**ISOLATED, "security.idmap.base": base}, HOST)


def test_full_range_is_refused():
    small = SubordinateRange(1_000_000, 2 * ISOLATED_COUNT)
    with pytest.raises(BadRequest, match="no 65536 free ids"):
        choose_idmap(ISOLATED, small, [(1_000_000 + ISOLATED_COUNT, ISOLATED_COUNT)])


@given(st.lists(st.integers(1, 300_000), max_size=20))
def test_isolated_maps_never_overlap(sizes):
    taken: list[tuple[int, int]] = []
    for size in sizes:
        _, base = choose_idmap({**ISOLATED, "security.idmap.size": str(size)}, HOST, taken)
        assert all(base + size <= start or start + count <= base for start, count in taken)
        taken.append((base, size))


def test_wire_form_is_lxds():
    text = to_wire(IdMap.single(1_000_000, 65_536))
    assert text == (
        '[{"Isuid":true,"Isgid":false,"Hostid":1000000,"Nsid":0,"Maprange":65536},'
        '{"Isuid":false,"Isgid":true,"Hostid":1000000,"Nsid":0,"Maprange":65536}]'
    )
    assert from_wire(text) == IdMap.single(1_000_000, 65_536)


@pytest.mark.parametrize("text", ["", "[]"])
def test_no_map(text):
    assert from_wire(text) == IdMap()


def test_isolated_range_of_a_configuration():
    assert isolated_range({**ISOLATED, "volatile.idmap.base": "2000000"}) == (2_000_000, ISOLATED_COUNT)
    assert isolated_range({"volatile.idmap.base": "0"}) is None
    assert isolated_range({**ISOLATED, "security.privileged": "true", "volatile.idmap.base": "2000000"}) is None
