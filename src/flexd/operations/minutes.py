# SPDX-License-Identifier: Apache-2.0
"""The daemon's clock: what is due at full minutes."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

from flexd.api.times import now

log = logging.getLogger(__name__)


async def every_minute(*jobs: Callable[[datetime], Awaitable[object]]) -> None:
    """Call each with the minute, one after the other, until cancelled."""
    while True:
        await asyncio.sleep(60 - time.time() % 60)
        minute = now().replace(second=0, microsecond=0)
        for job in jobs:
            try:
                await job(minute)
            except Exception:  # border of a background task: the others are still due, and the next minute
                log.exception("Failed running the schedule of %s", minute)
