# SPDX-License-Identifier: Apache-2.0
"""Calls in threads whose callers do not wait for the end."""

import asyncio
import os
import threading

import pytest

from flexd.host.threads import Threads


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancelled_caller_leaves_no_descriptor(fails: bool) -> None:
    threads, go = Threads(), threading.Event()
    opened: list[int] = []

    def slow() -> int:
        go.wait(10)
        if fails:
            raise OSError
        opened.append(os.open("/dev/null", os.O_RDONLY))
        return opened[0]

    task = asyncio.create_task(threads.open(slow))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    async with asyncio.timeout(10):
        while not fails and not (opened and _is_closed(opened[0])):
            await asyncio.sleep(0.01)
    threads.close()


def _is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


async def test_what_is_opened_is_the_callers() -> None:
    threads = Threads()
    fd = await threads.open(os.open, "/dev/null", os.O_RDONLY)
    os.close(fd)
    threads.close()
