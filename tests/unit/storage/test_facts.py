# SPDX-License-Identifier: Apache-2.0
"""Facts kept as links, and id maps as text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.api.idmap import IdMap, IdMapEntry
from flexd.storage.facts import parse_idmap, read_fact, read_number, render_idmap, write_fact

IDS = st.integers(min_value=0, max_value=2**32 - 2)
ENTRIES = st.builds(IdMapEntry, st.sampled_from(["u", "g", "b"]), IDS, IDS, IDS)


def test_a_fact_is_read_back_and_replaced(tmp_path: Path) -> None:
    assert read_fact(tmp_path, "size") is None
    write_fact(tmp_path, "size", "1024")
    write_fact(tmp_path, "size", "2048")
    assert read_number(tmp_path, "size") == 2048
    assert [entry.name for entry in tmp_path.iterdir()] == ["size"]


def test_what_a_crash_left_of_a_write_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".size~").symlink_to("1")
    assert read_number(tmp_path, "size") is None
    write_fact(tmp_path, "size", "2")
    assert read_number(tmp_path, "size") == 2


@given(st.lists(ENTRIES, max_size=5))
def test_every_idmap_survives_its_text(entries: list[IdMapEntry]) -> None:
    idmap = IdMap(tuple(entries))
    assert parse_idmap(render_idmap(idmap)) == idmap


@pytest.mark.parametrize(("idmap", "text"), [(IdMap(), "-"), (IdMap.single(1000000, 65536), "b:0:1000000:65536")])
def test_idmap_text(idmap: IdMap, text: str) -> None:
    assert render_idmap(idmap) == text
