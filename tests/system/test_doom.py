# SPDX-License-Identifier: Apache-2.0
"""The demonstration `./run doom`, shorter."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doom.show import Show, show


@pytest.fixture(scope="module")
def stage(state_root: Path) -> Iterator[Show]:
    with show(state_root / "doom") as made:
        yield made


def test_doom_plays_by_itself(stage: Show) -> None:
    """Every picture is of something that was not seen before, over one connection."""
    with stage.watching(stage.launch()) as screen:
        assert len({screen.shot().file for _ in range(4)}) == 4
