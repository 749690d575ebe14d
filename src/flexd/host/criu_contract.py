# SPDX-License-Identifier: Apache-2.0
"""The part of `flexd.host.contract` that is about CRIU, which freezes and thaws trees of processes."""

from pathlib import Path
from typing import Protocol

from msgspec import Struct


class CriuFacts(Struct, frozen=True):
    """The CRIU to use on this host. `reason`: why none is usable, for people; empty if one is. `memory_tracking`: the
    kernel tells which pages were written since, so memory can be carried in rounds while its owner runs."""

    path: Path | None = None
    version: str = ""
    usable: bool = False
    reason: str = ""
    memory_tracking: bool = False


class Criu(Protocol):
    async def facts(self) -> CriuFacts:
        """Asked again it is cheap: looks anew only if another program is there, as one may be installed at any time."""
        ...
