# SPDX-License-Identifier: Apache-2.0
"""Pools and volumes of a daemon on a fake host, that can be restarted."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.api.event import Event
from flexd.host.fake import FakeHost
from flexd.operations.events import Events, Subscription
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.projects.keys import NEW_FEATURES
from flexd.projects.projects import Projects
from flexd.projects.record import ProjectRecord
from flexd.storage.contract import VolumeRecord
from flexd.storage.pools import Pools
from flexd.storage.volume_snapshots import VolumeSnapshots
from flexd.storage.volumes import Volumes
from flexd.store.mirror import StoreMirror
from flexd.store.sqlite import SqliteStore


class Daemon:
    """What `daemon.py` would build of storage. `users` are the URLs that others report."""

    def __init__(self, directory: Path, host: FakeHost) -> None:
        self.directory = directory
        self.host = host
        self.users: dict[str, list[str]] = {}
        self.running: dict[str, list[str]] = {}
        self.rewritten: list[tuple[str, str]] = []
        self.events = Events()
        self.heard: Subscription = self.events.subscribe(["lifecycle"])

    async def start(self) -> None:
        self._store = await SqliteStore.open(self.directory / "store.db")
        self.mirror = await StoreMirror.open(self._store)
        self.journal = await Journal.open(self.directory / "journal.db")
        parts = {"mirror": self.mirror, "journal": self.journal, "locks": Locks(), "events": self.events}
        self.pools = Pools(host=self.host, directory=self.directory / "storage-pools", **parts)
        self.operations = Operations(self.events)
        self.projects = Projects(self.mirror, parts["locks"])
        await self.projects.start()
        if not self.projects.has("web"):
            features = dict.fromkeys(NEW_FEATURES, "true")
            await self.projects.documents.create(("web",), ProjectRecord("web", config=features))
        self.volumes = Volumes(pools=self.pools, projects=self.projects, operations=self.operations, **parts)
        self.snapshots = VolumeSnapshots(
            volumes=self.volumes,
            pools=self.pools,
            projects=self.projects,
            mirror=self.mirror,
            journal=self.journal,
            operations=self.operations,
            locks=parts["locks"],
        )
        self.pools.set_used_by(lambda name: self.users.get(name, []))
        self.volumes.set_used_by(lambda pool, project, name: self.users.get(f"{pool}/{project}/{name}", []))
        self.volumes.set_users(running=lambda volume: self.running.get(volume.name, []), rewrite=self._rewrite)
        await self.pools.start()
        await self.journal.recover()

    async def _rewrite(self, old: VolumeRecord, new: VolumeRecord) -> None:
        self.rewritten.append((f"{old.pool}/{old.name}", f"{new.pool}/{new.name}"))

    async def finish(self, operation: Operation | None) -> None:
        """Wait for an operation that must succeed."""
        assert operation is not None
        assert await operation.wait(10)
        assert operation.render().status == "Success", operation.render().err

    async def stop(self) -> None:
        await self.operations.close()
        await self.pools.close()
        await self.journal.close()
        await self.mirror.close()
        await self._store.close()

    async def next_event(self) -> Event:
        return await asyncio.wait_for(anext(self.heard), 5)


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(tmp_path, FakeHost())
    await daemon.start()
    yield daemon
    await daemon.stop()
