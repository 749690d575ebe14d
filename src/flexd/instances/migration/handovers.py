# SPDX-License-Identifier: Apache-2.0
"""Which running instances this server has handed over to another one: the one decision of a live migration.

The source decides, by writing a document, while its container stands still. A target that does not hear of it asks; who
asks for what was not handed over is told so, and it never will be. So exactly one of the two goes on."""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from datetime import datetime, timedelta

import msgspec
from msgspec import Struct

from flexd.api.errors import Conflict
from flexd.api.times import now
from flexd.instances.record import InstanceRecord
from flexd.instances.registry import Registry
from flexd.store.documents import Documents, Mirror

# Of an instance that was handed over and is still here: it must not run.
AWAY = "volatile.migration.handed_over"
# Nobody asks after this: a target asks every few seconds for as long as it does not know.
_KEPT = timedelta(days=90)


class Handover(Struct):
    """The document `/handovers/TOKEN`."""

    project: str
    name: str
    at: datetime


class Handovers:
    def __init__(self, mirror: Mirror, registry: Registry) -> None:
        self._documents = Documents(mirror, "handovers", Handover)
        self._registry = registry
        self._open: set[str] = set()  # tokens of migrations under way, about which nothing is decided
        self._lock = asyncio.Lock()

    async def commit(self, record: InstanceRecord, token: str) -> None:
        """From when this returns the target has it, and it does not run here again."""
        async with self._lock:
            if token not in self._open:
                raise Conflict(f'Failed handing over instance "{record.name}": the target has given up')
            found = self._registry.instances.get(record.project, record.name)
            if found is None:
                raise Conflict(f'Failed handing over instance "{record.name}": it is gone')
            config = found.value.config | {AWAY: token, "volatile.last_state.power": "STOPPED"}
            changed = msgspec.structs.replace(found.value, config=config)
            await self._documents.txn(
                [
                    self._documents.put((token,), Handover(record.project, record.name, now())),
                    self._registry.instances.put(found.path, changed),
                ],
                [self._registry.instances.unchanged(found.path, found.revision)],
            )

    async def ask(self, token: str) -> bool:
        """Whether it was handed over. If not, it will not be either: whoever asked gives up."""
        async with self._lock:
            if self._documents.get(token) is not None:
                return True
            self._open.discard(token)
            return False

    @contextlib.contextmanager
    def under_way(self) -> Iterator[str]:
        """A new token, which can be handed over during the block unless somebody asks before."""
        token = secrets.token_urlsafe(32)
        self._open.add(token)
        try:
            yield token
        finally:
            self._open.discard(token)

    async def settled(self, token: str) -> None:
        """The target has said that it has it."""
        await self._documents.delete((token,))

    async def tidy(self) -> None:
        """At the start of the daemon."""
        for found in self._documents.list():
            if found.value.at < now() - _KEPT:
                await self._documents.delete(found.path)
