# SPDX-License-Identifier: Apache-2.0
"""How an image goes: pools' unpacked copies, documents, files; a crash in the middle finishes it."""

from collections.abc import Awaitable, Callable
from typing import Any

from flexd.images.depot import Depot
from flexd.images.registry import ImageRegistry
from flexd.images.urls import image_url
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks

Args = dict[str, Any]
Unlink = Callable[[str], Awaitable[None]]


class Removal:
    """`delete_unpacked`: removes the copies that pools made of an image."""

    def __init__(
        self,
        *,
        registry: ImageRegistry,
        depot: Depot,
        journal: Journal,
        locks: Locks,
        events: Events,
        delete_unpacked: Unlink,
    ) -> None:
        self._registry, self._depot, self._journal = registry, depot, journal
        self._locks, self._events, self._delete_unpacked = locks, events, delete_unpacked
        journal.register("images.delete_unpacked", self._drop_unpacked)
        journal.register("images.delete_record", self._delete_record)
        journal.register("images.delete_files", self._delete_files)

    async def remove(self, project: str, fingerprint: str, progress: Progress) -> None:
        """From one project; the files go with the last one."""
        args = {"project": project, "fingerprint": fingerprint}
        steps = tuple(Step(f"images.delete_{what}", args) for what in ("unpacked", "record", "files"))
        async with self._locks.hold(f"image/{fingerprint}", "delete"):
            self._registry.find(project, fingerprint)
            plan = Plan(f'Deleting image "{fingerprint}"', steps, on_crash="finish")
            await self._journal.run(plan, progress)
        self._events.lifecycle("image-deleted", image_url(project, fingerprint), project)

    async def _drop_unpacked(self, args: Args, _progress: Progress) -> None:
        if len(self._registry.recorded(args["fingerprint"])) <= 1:
            await self._delete_unpacked(args["fingerprint"])

    async def _delete_record(self, args: Args, _progress: Progress) -> None:
        await self._registry.forget(args["project"], args["fingerprint"])

    async def _delete_files(self, args: Args, _progress: Progress) -> None:
        if not self._registry.recorded(args["fingerprint"]):
            await self._depot.remove(args["fingerprint"])
