# SPDX-License-Identifier: Apache-2.0
"""Devices whose hardware may come and go while their instance runs: told of each change, one after another.

Nothing is watched, and no task runs, while no running instance has such a device."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

from msgspec import Struct

from flexd.host.contract import Host, Watch

log = logging.getLogger(__name__)

Key = tuple[str, str]  # runtime name, device


class _Watched(Struct):
    directories: tuple[Path, ...]
    look: Callable[[], Awaitable[None]]


class Hotplug:
    """One per daemon."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._watched: dict[Key, _Watched] = {}
        self._watch: Watch | None = None
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    def add(self, key: Key, directories: Iterable[Path], look: Callable[[], Awaitable[None]]) -> None:
        """`look` is called at every change, beginning with none; `directories` hold nodes made by hand."""
        self._watched[key] = _Watched(tuple(directories), look)
        if self._watch is None:
            self._watch = self._host.nodes.watch()
            self._task = asyncio.create_task(self._run(self._watch), name="hotplug")
        self._set_directories()

    async def remove(self, key: Key) -> None:
        """After this `look` is not called any more, nor still running."""
        async with self._lock:
            if self._watched.pop(key, None) is None:
                return
            self._set_directories()
            if not self._watched:
                self._shut()

    def _set_directories(self) -> None:
        if self._watch is not None:
            self._watch.set_directories({place for each in self._watched.values() for place in each.directories})

    async def _run(self, watch: Watch) -> None:
        while True:
            await watch.wait()
            for key in list(self._watched):
                async with self._looking(key) as watched:
                    if watched is not None:
                        await watched.look()

    @contextlib.asynccontextmanager
    async def _looking(self, key: Key) -> AsyncIterator[_Watched | None]:
        async with self._lock:
            try:
                yield self._watched.get(key)
            except Exception:  # border of a background task: the other devices are still to be looked at
                log.exception('Failed following the hardware of device "%s" of "%s"', key[1], key[0])

    def _shut(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    async def close(self) -> None:
        task = self._task
        self._shut()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
