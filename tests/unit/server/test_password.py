# SPDX-License-Identifier: Apache-2.0
"""The trust password, and guesses."""

import asyncio

import pytest

from flexd.api.errors import Forbidden
from flexd.server.password import Guesses, TooManyGuesses, hash_password, matches

# What lxd 5.0.2 has stored for "hunter2": recorded.
LXDS = (
    "13bf0b0b5864286584cc405ef670b575575eb4c77fddcc6e671cd0ac9a5f4ee4d906591e295244dca5fca7637e14f452"
    "db23dae20f505404e47b2aa35780dede9fdd57df0cd5c1c6133121b930cabd1234b1433833e5f6cf2f3c518b3ec97376"
)


async def test_a_password_matches_its_hash_only() -> None:
    stored = await hash_password("hunter2")
    assert "hunter2" not in stored
    assert stored != await hash_password("hunter2")
    assert await matches(stored, "hunter2")
    assert not await matches(stored, "hunter3")


@pytest.mark.parametrize("stored", ["", "zz", "00", "00" * 32])
async def test_what_is_no_hash_matches_nothing(stored: str) -> None:
    assert not await matches(stored, "")


async def test_lxds_hashes_are_ours() -> None:
    assert await matches(LXDS, "hunter2")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def wrong(guesses: Guesses, address: str = "a") -> None:
    with pytest.raises(Forbidden, match=r"^not authorized$"):
        await guesses.check(address, "", "x")


async def test_wrong_guesses_wait_longer_and_longer() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    for wait_s in (0, 0, 1, 2, 4, 8):
        await wrong(guesses)
        if wait_s:
            with pytest.raises(TooManyGuesses, match="too many wrong passwords from a"):
                await guesses.check("a", "", "x")
        clock.now += wait_s
    await wrong(guesses, "b")


async def test_waits_have_an_end() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    for _ in range(40):
        await wrong(guesses)
        clock.now += 300


async def test_a_right_one_forgives() -> None:
    clock, stored = Clock(), await hash_password("right")
    guesses = Guesses(clock)
    for _ in range(2):
        await wrong(guesses)
    await guesses.check("a", stored, "right")
    for _ in range(2):
        await wrong(guesses)


async def test_waiting_does_not_help_who_guesses_in_parallel() -> None:
    """Each check is made alone; those behind a wrong one find out that they wait."""
    stored = await hash_password("right")
    guesses = Guesses(Clock())
    results = await asyncio.gather(*(guesses.check("a", stored, "x") for _ in range(30)), return_exceptions=True)
    assert sum(isinstance(result, Forbidden) for result in results) == 3
    assert sum(isinstance(result, TooManyGuesses) for result in results) == 27


async def test_addresses_are_forgotten_when_there_are_too_many() -> None:
    guesses = Guesses(Clock())
    for number in range(5000):
        await wrong(guesses, str(number))
    assert len(guesses._wrong) == 4096
