# SPDX-License-Identifier: Apache-2.0
"""What the storage tests share: images that unpack themselves, and looking for what should not be left."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from flexd.api.idmap import IdMap
from flexd.storage.contract import Driver

IDMAP = IdMap.single(1000000, 65536)


class MakeDriver(Protocol):
    """Opens the pool of this name; called again it is what a restarted daemon would have."""

    def __call__(self, name: str, *, source: str = "") -> Driver: ...


class CountedUnpack:
    """An image with a few files; counts how often it is unpacked, or fails half-way."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.calls = 0
        self._failure = failure

    async def __call__(self, target: Path) -> None:
        self.calls += 1
        await asyncio.to_thread(self._unpack, target)

    def _unpack(self, target: Path) -> None:
        assert os.listdir(target) == []
        for folder in ("bin", "etc"):
            (target / folder).mkdir()
        (target / "etc" / "hostname").write_text("image\n")
        if self._failure is not None:
            raise self._failure
        (target / "bin" / "tool").write_text("#!/bin/sh\n")
        (target / "bin" / "tool").chmod(0o4755)
        target.chmod(0o755)


make_unpack: Callable[..., CountedUnpack] = CountedUnpack


def tidy(pool: Path) -> bool:
    """Nothing half-made and nothing half-removed lies in a pool."""
    return not [name for name in os.listdir(pool) if name.startswith(".")]
