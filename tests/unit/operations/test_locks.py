# SPDX-License-Identifier: Apache-2.0
"""Named locks."""

import asyncio
from itertools import permutations

import pytest

from flexd.api.errors import BadRequest
from flexd.operations.locks import Locks


async def test_hold_waits_in_order() -> None:
    locks = Locks()
    order: list[int] = []

    async def work(number: int) -> None:
        async with locks.hold("c1", "start"):
            order.append(number)
            await asyncio.sleep(0)
            order.append(number)

    await asyncio.gather(*(work(number) for number in range(4)))
    assert order == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_other_keys_do_not_wait() -> None:
    locks = Locks()
    async with locks.hold("c1", "start"), locks.hold("c2", "start"):
        assert locks.busy("c1") == locks.busy("c2") == "start"
    assert locks.busy("c1") is None


async def test_try_hold_says_in_lxds_words_who_is_busy() -> None:
    locks = Locks()
    async with locks.try_hold("c1", "start"):
        with pytest.raises(BadRequest) as caught:
            async with locks.try_hold("c1", "stop"):
                pass
        assert str(caught.value) == 'Instance is busy running a "start" operation'
        with pytest.raises(BadRequest, match=r'^Network "n" is busy'):
            async with locks.try_hold("c1", "stop", 'Network "n"'):
                pass
    async with locks.try_hold("c1", "stop"):
        assert locks.busy("c1") == "stop"


async def test_a_lock_that_was_just_asked_for_is_busy() -> None:
    locks = Locks()

    async def start() -> None:
        async with locks.hold("c1", "start"):
            await asyncio.sleep(0)

    first, second = asyncio.create_task(start()), asyncio.create_task(start())
    await asyncio.sleep(0)
    assert locks.busy("c1") == "start"
    await first
    assert locks.busy("c1") == "start"
    await second
    assert locks.busy("c1") is None


async def test_a_failure_and_a_cancelled_wait_release() -> None:
    locks = Locks()
    with pytest.raises(RuntimeError):
        async with locks.hold("c1", "start"):
            raise RuntimeError

    async def wait() -> None:
        async with locks.hold("c1", "stop"):
            pass

    async with locks.hold("c1", "start"):
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert locks.busy("c1") is None
    await wait()


async def test_several_locks_in_any_order_never_deadlock() -> None:
    locks = Locks()
    held: set[str] = set()

    async def work(keys: tuple[str, ...]) -> None:
        async with locks.hold_all([*keys, keys[0]], "copy"):
            assert not held & set(keys)
            held.update(keys)
            await asyncio.sleep(0)
            held.difference_update(keys)

    async with asyncio.timeout(10):
        await asyncio.gather(*(work(keys) for keys in permutations("abcd", 3)))
    assert all(locks.busy(key) is None for key in "abcd")
