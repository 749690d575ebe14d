# SPDX-License-Identifier: Apache-2.0
"""Files of an instance, running or not."""

import contextlib
from collections.abc import AsyncIterator

from flexd.instances.allocator import current_idmap
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.record import InstanceRecord
from flexd.instances.registry import Registry
from flexd.operations.locks import Locks
from flexd.runtime.contract import ContainerFiles, Runtime
from flexd.storage.pools import Pools


class Files:
    """The service behind `/1.0/instances/NAME/files` and `/sftp`."""

    def __init__(
        self, *, registry: Registry, lifecycle: Lifecycle, runtime: Runtime, pools: Pools, locks: Locks
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._runtime = runtime
        self._pools = pools
        self._locks = locks
        self._users: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def open(self, project: str, name: str) -> AsyncIterator[ContainerFiles]:
        """Access for as long as the context lasts; a stopped instance's root is mounted for that time."""
        record = self._registry.instance(project, name)
        container = self._lifecycle.running(record)
        idmap = current_idmap(record.config)
        async with contextlib.AsyncExitStack() as stack:
            async with self._locks.hold(record.root_key, "files"):
                rootfs = await self._pools.mount(record.volume, idmap)
                self._users[record.storage_name] = self._users.get(record.storage_name, 0) + 1
            stack.push_async_callback(self._release, record)
            files = await self._runtime.files(container, rootfs, idmap)
            stack.push_async_callback(files.close)
            yield files

    async def _release(self, record: InstanceRecord) -> None:
        """The last user of a stopped instance's root unmounts it; a running one's stays."""
        async with self._locks.hold(record.root_key, "files"):
            self._users[record.storage_name] -= 1
            if self._users[record.storage_name] > 0:
                return
            del self._users[record.storage_name]
            if self._lifecycle.running(record) is None:
                await self._pools.unmount(record.volume)
