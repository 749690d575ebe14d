# SPDX-License-Identifier: Apache-2.0
"""What an instance's files are at one moment, held still for as long as it takes to write them somewhere."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from msgspec import Struct

from flexd.api.idmap import IdMap
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.record import InstanceRecord, SnapshotRecord
from flexd.instances.registry import Registry
from flexd.operations.locks import Locks
from flexd.storage.contract import Dress, Outgoing, Streams
from flexd.storage.pools import Pools


class Still(Struct, frozen=True):
    """Records and read-only trees that belong together, ids as an image has them. `snapshots`: the oldest first."""

    record: InstanceRecord
    tree: Path | None
    snapshots: Sequence[tuple[SnapshotRecord, Path]] = ()

    def records(self) -> "Records":
        return Records(self.record, [snapshot for snapshot, _ in self.snapshots])


class Records(Struct, frozen=True):
    """An instance and its snapshots, the oldest first, of one moment."""

    instance: InstanceRecord
    snapshots: Sequence[SnapshotRecord] = ()


DressFor = Callable[[Records], Dress]


class Stills:
    def __init__(self, *, registry: Registry, lifecycle: Lifecycle, pools: Pools, locks: Locks) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._pools = pools
        self._locks = locks

    @contextlib.asynccontextmanager
    async def hold(self, project: str, name: str, *, snapshots: bool = False) -> AsyncIterator[Still]:
        """An instance as it is now, perhaps with its snapshots. Where a pool makes snapshots at once, the instance is
        free again at once; elsewhere it cannot be deleted, renamed or restored meanwhile."""
        record = self._registry.instance(project, name)
        async with contextlib.AsyncExitStack() as stack:
            if not self._pools.driver(record.pool).optimized_images:
                await stack.enter_async_context(self._locks.hold(record.still_key, "backup"))
            async with self._locks.hold(f"instance/{project}/{name}", "backup"):
                record = self._registry.instance(project, name)
                kept = self._registry.snapshots_of(record) if snapshots else []
                views = [(each, await stack.enter_async_context(self._view(record, each.name))) for each in kept]
                async with self._lifecycle.quiet(record), self._locks.hold(record.root_key, "backup"):
                    tree = await stack.enter_async_context(self._view(record))
            yield Still(record, tree, views)

    @contextlib.asynccontextmanager
    async def hold_streams(
        self, project: str, name: str, streams: Streams, dress: DressFor, *, snapshots: bool
    ) -> AsyncIterator[tuple[Records, Sequence[Outgoing]]]:
        """The same in the format of a pool's driver; what comes beside a root file system is written by `dress`."""
        async with contextlib.AsyncExitStack() as stack:
            async with self._locks.hold(f"instance/{project}/{name}", "backup"):
                record = self._registry.instance(project, name)
                records = Records(record, self._registry.snapshots_of(record) if snapshots else [])
                names = [snapshot.name for snapshot in records.snapshots]
                async with self._lifecycle.quiet(record), self._locks.hold(record.root_key, "backup"):
                    live = self._lifecycle.running(record) is not None
                    sending = streams.sending("container", record.storage_name, names, live=live, dress=dress(records))
                    outgoing = await stack.enter_async_context(sending)
            yield records, outgoing

    @contextlib.asynccontextmanager
    async def hold_snapshot(self, project: str, name: str, snapshot: str) -> AsyncIterator[Still]:
        """One snapshot, which may be deleted meanwhile."""
        async with contextlib.AsyncExitStack() as stack:
            async with self._locks.hold(f"instance/{project}/{name}", "backup"):
                record = self._registry.instance(project, name)
                found = self._registry.find_snapshot(project, name, snapshot).value
                view = await stack.enter_async_context(self._view(record, snapshot))
            yield Still(found.instance, view)

    def _view(
        self, record: InstanceRecord, snapshot: str | None = None
    ) -> contextlib.AbstractAsyncContextManager[Path]:
        live = snapshot is None and self._lifecycle.running(record) is not None
        return self._pools.view(record.volume, IdMap(), snapshot=snapshot, live=live)
