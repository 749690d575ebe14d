# SPDX-License-Identifier: Apache-2.0
"""The target's side of a live migration, from the moment it has everything.

Its instance is in doubt then: a container waits, and only the source knows whether it goes on here. What must be known
to ask the source is in the instance's document, so a daemon that starts again asks, too."""

import asyncio
import logging

import msgspec
from msgspec import Struct

from flexd.api.errors import FlexdError
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.migration.link import Asked, ask_source
from flexd.instances.migration.live import HandedOver, Held
from flexd.instances.migration.peer import MigrationFailed, Peer
from flexd.instances.plan import delete_plan
from flexd.instances.record import InstanceRecord
from flexd.instances.registry import Registry
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks

log = logging.getLogger(__name__)

IN_DOUBT = "volatile.migration.in_doubt"
_ASK_AGAIN_S = 3.0


class Doubt(Struct, frozen=True):
    """How to ask the source."""

    asked: Asked
    token: str


def doubt_of(asked: Asked, token: str) -> str:
    return msgspec.json.encode(Doubt(asked, token)).decode()


class Arriving:
    def __init__(self, *, registry: Registry, lifecycle: Lifecycle, journal: Journal, locks: Locks) -> None:
        self._registry, self._lifecycle, self._journal, self._locks = registry, lifecycle, journal, locks
        self.ask = ask_source
        self._asking: list[asyncio.Task[None]] = []

    async def take_over(self, record: InstanceRecord, peer: Peer) -> None:
        """Everything is here; its lock is held. It runs here when this returns; else nothing of it is here, unless it
        was handed over and could not go on: then its state is kept, as if it had been stopped with it."""
        decided = False

        async def decide() -> None:
            nonlocal decided
            if not await self._decision(record, peer):
                raise MigrationFailed("The source did not hand the instance over")
            await self._own(record)
            decided = True

        try:
            await self._lifecycle.arrive(record.project, record.name, decide)
        except BaseException:
            if not decided and not await self._was_handed_over(record):
                await asyncio.shield(asyncio.create_task(self._discard(record)))
            raise

    async def _decision(self, record: InstanceRecord, peer: Peer) -> bool:
        try:
            await peer.tell(Held())
            await peer.hear(HandedOver)
        except FlexdError as error:
            log.warning('Asking the source about instance "%s": %s', record.name, error)
            return await self._ask(record)
        return True

    async def _was_handed_over(self, record: InstanceRecord) -> bool:
        """After a failure, or a cancellation, before it was decided here."""
        return await asyncio.shield(asyncio.create_task(self._ask(record)))

    async def _ask(self, record: InstanceRecord) -> bool:
        """As often as it takes: nobody else can know."""
        found = self._registry.instances.get(record.project, record.name)
        text = found.value.config.get(IN_DOUBT, "") if found is not None else ""
        if not text:
            return found is not None
        doubt = msgspec.json.decode(text, type=Doubt)
        while True:
            try:
                return await self.ask(doubt.asked, doubt.token)
            except MigrationFailed as error:
                log.warning('Instance "%s" waits to know whether it is here: %s', record.name, error)
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _own(self, record: InstanceRecord) -> None:
        """It is here from now on: in the document before anything moves."""
        found = self._registry.find(record.project, record.name)
        config = {key: value for key, value in found.value.config.items() if key != IN_DOUBT}
        changed = msgspec.structs.replace(found.value, config=config, stateful=True)
        await self._registry.instances.update(found.path, changed, found.revision)

    async def _discard(self, record: InstanceRecord) -> None:
        if self._registry.instances.get(record.project, record.name) is not None:
            await self._journal.run(delete_plan(record))

    # --- a daemon that starts again ---

    def resume(self) -> None:
        """Ask about what is in doubt; until then it can neither be started nor deleted."""
        for record in self._registry.all_instances():
            if record.config.get(IN_DOUBT):
                self._asking.append(asyncio.create_task(self._settle(record), name=f"settle {record.name}"))

    async def _settle(self, record: InstanceRecord) -> None:
        async with self._locks.hold(f"instance/{record.project}/{record.name}", "migrate"):
            try:
                if not await self._ask(record):
                    await self._discard(record)
                    return
                await self._own(record)
                await self._lifecycle.go_on(record.project, record.name)
            except FlexdError as error:
                log.error('Instance "%s" has arrived, but does not go on: %s', record.name, error)

    async def close(self) -> None:
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
