# SPDX-License-Identifier: Apache-2.0
"""The demonstration `./run doom`, shorter: pictures differ, so the demo goes on; one connection sees all of it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexd.host.contract import CriuFacts
from flexd.host.linux import LinuxHost
from tests.doom.page import page
from tests.doom.show import Screen, Show, show


@pytest.fixture(scope="module")
def stage(state_root: Path) -> Iterator[Show]:
    with show(state_root / "doom") as made:
        yield made


@pytest.fixture(scope="module")
def screen(stage: Show) -> Iterator[Screen]:
    with stage.watching(stage.launch()) as watched:
        yield watched


async def _criu() -> CriuFacts:
    host = LinuxHost()
    try:
        return await host.criu.facts()
    finally:
        await host.close()


def test_doom_plays_by_itself(screen: Screen) -> None:
    assert len({screen.shot().file for _ in range(4)}) == 4


def test_doom_moves_while_it_plays(stage: Show, screen: Screen) -> None:
    criu = asyncio.run(_criu())
    if not criu.usable:
        pytest.skip(criu.reason)
    moves = [stage.move(screen) for _ in range(2)]
    assert [(move.source, move.target) for move in moves] == [("a", "b"), ("b", "a")]
    assert [host.instances() for host in stage.segment.all] == [{"doom": "Running"}, {}]
    written = page(moves, "a test")
    assert written.count("data:image/jpeg") == 4
