# SPDX-License-Identifier: Apache-2.0
"""Device nodes in memory: beside each that is made lies an empty file, so that it can be listed, bound and removed."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from flexd.host.contract import Node
from flexd.host.fake.recorder import Recorder
from flexd.host.threads import Threads


class FakeNodes:
    def __init__(self, recorder: Recorder, threads: Threads) -> None:
        self.by_path: dict[Path, Node] = {}
        self.usb: dict[tuple[str, str], dict[str, Node]] = {}  # (vendor, product) -> nodes
        self.disk: str | None = "8:0"  # what `disk_of` tells
        self.classes: set[str] = set()
        self.watches: list[FakeWatch] = []
        self._recorder = recorder
        self._threads = threads

    def changed(self) -> None:
        """For tests: hardware came or went."""
        for watch in self.watches:
            watch.changed.set()

    async def read(self, path: Path) -> Node | None:
        self._recorder.note_reading("nodes.read", path)
        made = self.by_path.get(path)
        if made is None or path.is_relative_to("/dev"):
            return made
        return made if await self._threads.run(path.exists) else None

    async def make(self, path: Path, node: Node, *, mode: int, uid: int, gid: int) -> None:
        self._recorder.note("nodes.make", path, node, mode, uid, gid)
        await self._threads.run(_touch, path)
        self.by_path[path] = node

    async def disk_of(self, path: Path) -> str | None:
        self._recorder.note_reading("nodes.disk_of", path)
        return self.disk

    async def of_usb(self, vendor: str, product: str) -> dict[str, Node]:
        self._recorder.note_reading("nodes.of_usb", vendor, product)
        keys = [key for key in self.usb if vendor in ("", key[0]) and product in ("", key[1])]
        return {path: node for key in keys for path, node in self.usb[key].items()}

    async def has_class(self, name: str) -> bool:
        self._recorder.note_reading("nodes.has_class", name)
        return name in self.classes

    def watch(self) -> "FakeWatch":
        self.watches.append(FakeWatch(self))
        return self.watches[-1]


class FakeWatch:
    def __init__(self, nodes: FakeNodes) -> None:
        self.changed = asyncio.Event()
        self.directories: set[Path] = set()
        self._nodes = nodes

    def set_directories(self, directories: Iterable[Path]) -> None:
        self.directories = set(directories)

    async def wait(self) -> None:
        await self.changed.wait()
        self.changed.clear()

    def close(self) -> None:
        self._nodes.watches.remove(self)


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
