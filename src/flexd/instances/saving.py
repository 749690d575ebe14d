# SPDX-License-Identifier: Apache-2.0
"""The running state of instances on disk: stopped with it, started from it, kept beside snapshots.

It lies beside the files in the instance's volume, so it goes where the volume goes and ends with it."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from flexd.api.errors import BadRequest
from flexd.instances.actions import Actions
from flexd.instances.record import InstanceRecord
from flexd.instances.registry import Registry
from flexd.operations.undo import Undo
from flexd.runtime.contract import Dump, Obstacle, RunningContainer, Runtime
from flexd.storage.pools import Pools

_STATE, _NEW, _LEAVING, _OF_SNAPSHOTS = "instance", "instance.new", "leaving", "snapshots"


class Saving:
    def __init__(self, *, registry: Registry, actions: Actions, runtime: Runtime, pools: Pools) -> None:
        self._registry, self._actions, self._runtime, self._pools = registry, actions, runtime, pools
        self._hooks: list[Callable[[str, str], None]] = []

    def before_dump(self, hook: Callable[[str, str], None]) -> None:
        """Have something let go of an instance (project, name) that would keep it from being saved."""
        self._hooks.append(hook)

    # --- what stands in the way ---

    async def obstacles(self, record: InstanceRecord, container: RunningContainer) -> list[Obstacle]:
        """Everything at once, of the instance as it runs."""
        return self._actions.unsavable_devices(record) + await self._runtime.obstacles(container)

    async def check(self, record: InstanceRecord, container: RunningContainer, what: str) -> None:
        """Raise all obstacles as one error. `what`: what was to be done ("stop it with its state")."""
        found = await self.obstacles(record, container)
        if found:
            raise BadRequest(f'Failed to {what} instance "{record.name}": ' + "; ".join(map(str, found)))

    # --- saving ---

    async def dump(self, record: InstanceRecord, container: RunningContainer, images: Path) -> Dump:
        """Its state, with everything standing still; whoever called decides how it goes on."""
        for hook in self._hooks:
            hook(record.project, record.name)
        return await self._runtime.checkpoint(container, await self._actions.plugged(record), images)

    async def stop(self, record: InstanceRecord, container: RunningContainer) -> None:
        """Save it, say so in its document, end it: from the document on its state is on disk and nowhere else."""
        new, state = self._place(record, _NEW), self._place(record, _STATE)
        await self.check(record, container, "save the state of")
        async with Undo() as undo:
            undo.push(self.forget, record)
            dump = await self.dump(record, container, new)
            undo.push(dump.resume)
            await asyncio.to_thread(_replace, new, state)
            await self.note(record, True)
        await self._actions.sever(record)
        await dump.finish()

    @contextlib.asynccontextmanager
    async def held(self, record: InstanceRecord, container: RunningContainer, snapshot: str) -> AsyncIterator[None]:
        """Saved for a snapshot, it stands still while its files are snapshotted, then goes on."""
        await self.check(record, container, "save the state of")
        place = self.of_snapshot(record, snapshot)
        async with Undo() as undo:
            undo.push(self.forget_snapshot, record, snapshot)
            dump = await self.dump(record, container, place)
            undo.push(dump.resume)
            yield
        await dump.resume()

    # --- what is saved ---

    def images(self, record: InstanceRecord) -> Path:
        return self._place(record, _STATE)

    def leaving(self, record: InstanceRecord) -> Path:
        """Where its state is while it is moved to another server."""
        return self._place(record, _LEAVING)

    def of_snapshot(self, record: InstanceRecord, snapshot: str) -> Path:
        return self._place(record, _OF_SNAPSHOTS) / snapshot

    async def take_over(self, record: InstanceRecord, snapshot: str) -> None:
        """The state of a snapshot becomes the instance's own."""
        await asyncio.to_thread(_copy, self.of_snapshot(record, snapshot), self.images(record))
        await self.note(record, True)

    async def rename_snapshot(self, record: InstanceRecord, old: str, new: str) -> None:
        await asyncio.to_thread(_rename, self.of_snapshot(record, old), self.of_snapshot(record, new))

    async def forget_snapshot(self, record: InstanceRecord, snapshot: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self.of_snapshot(record, snapshot), ignore_errors=True)

    async def forget(self, record: InstanceRecord) -> None:
        """It runs, or starts afresh: what was saved is no longer true. First the document, then the files."""
        await self.note(record, False)
        for name in (_STATE, _NEW):
            await asyncio.to_thread(shutil.rmtree, self._place(record, name), ignore_errors=True)

    async def note(self, record: InstanceRecord, stateful: bool) -> None:
        found = self._registry.instances.get(record.project, record.name)
        if found is None or found.value.stateful == stateful:
            return
        changed = msgspec.structs.replace(found.value, stateful=stateful)
        await self._registry.instances.update((record.project, record.name), changed, found.revision)

    def _place(self, record: InstanceRecord, name: str) -> Path:
        return self._pools.state_directory(record.volume) / name


def _replace(new: Path, old: Path) -> None:
    """Whole or not at all, also after a power cut: what is renamed has been written."""
    shutil.rmtree(old, ignore_errors=True)
    fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    new.rename(old)


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.copytree(source, target)
    target.chmod(0o700)


def _rename(source: Path, target: Path) -> None:
    if source.is_dir():
        source.rename(target)
