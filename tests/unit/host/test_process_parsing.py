# SPDX-License-Identifier: Apache-2.0
"""/proc/PID/stat, whatever a process calls itself."""

import os

from hypothesis import given
from hypothesis import strategies as st

from flexd.host.process_table import identify, parse_stat

_AFTER_NAME = "S 1 10 10 0 -1 4194560 100 0 0 0 5 6 0 0 20 0 1 0 {start} 1000 20 18446744073709551615"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=15), st.integers(0, 1 << 63))
def test_start_time_whatever_the_name(name: str, start: int) -> None:
    assert parse_stat(f"10 ({name}) {_AFTER_NAME.format(start=start)}") == ("S", start)


def test_ourselves() -> None:
    found = identify(os.getpid())
    assert found is not None
    assert found.pid == os.getpid()
    assert found.start_time > 0


def test_nobody() -> None:
    assert identify(1 << 22) is None
