# SPDX-License-Identifier: Apache-2.0
"""How far a download, or an archive being made, is, in LXD's words."""

import asyncio
import time
from collections.abc import AsyncIterator

from flexd.api.units import format_size
from flexd.operations.contract import Progress


class Meter:
    """Passes chunks on and tells how far they are: `rootfs: 45% (3.20MiB/s)`."""

    def __init__(self, progress: Progress, total_bytes: int | None, key: str = "download_progress") -> None:
        self._progress, self._total_bytes, self._key = progress, total_bytes, key
        self._begun, self._seen_bytes = time.monotonic(), 0

    async def through(self, what: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self._seen_bytes += len(chunk)
            rate = int(self._seen_bytes / max(0.001, time.monotonic() - self._begun))
            seen = format_size(self._seen_bytes)
            done = f"{100 * self._seen_bytes // self._total_bytes}%" if self._total_bytes else seen
            self._progress({self._key: f"{what}: {done} ({format_size(rate)}/s)"})
            yield chunk


class PackMeter:
    """Tells progress as LXD does, a few times a second; called from a thread."""

    def __init__(self, progress: Progress, key: str, title: str, total_bytes: int) -> None:
        self._progress, self._key, self._title, self._total = progress, key, title, total_bytes
        self._loop = asyncio.get_running_loop()
        self._begun = self._told = time.monotonic()

    def tick(self, done_bytes: int) -> None:
        now = time.monotonic()
        if now - self._told < 0.25:
            return
        self._told = now
        percent = min(100 * done_bytes // max(self._total, 1), 100)
        speed = format_size(int(done_bytes / (now - self._begun)))
        text = f"{self._title}: {percent}% ({speed}/s)"
        self._loop.call_soon_threadsafe(self._progress, {f"{self._key}_progress": text})
