# SPDX-License-Identifier: Apache-2.0
"""Warnings: what does not work on this host as configured; kept with when and how often it was seen.

LXD's rules: a warning is `new` until somebody acknowledges it, and `resolved` once its cause has gone.
"""

import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime

import msgspec

from flexd.api.errors import BadRequest, NotFound
from flexd.api.times import now
from flexd.api.warning import Warning as WireWarning
from flexd.api.warning import WarningPut
from flexd.host.contract import Criu, Machine
from flexd.network.networks import Networks
from flexd.operations.events import Events
from flexd.runtime.contract import Runtime
from flexd.storage.pools import Pools
from flexd.store.documents import Document, Documents, Mirror

# So that the same cause is the same warning after a restart.
_NAMESPACE = uuid.UUID("b3e1f6f0-6f0e-4a0b-9d1e-8f8a3c2f7f11")
NEW, ACKNOWLEDGED, RESOLVED = "new", "acknowledged", "resolved"


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong now. `entity_url` is what it is about, if anything; severity low, moderate or high."""

    type: str
    message: str
    severity: str = "moderate"
    entity_url: str = ""

    @property
    def uuid(self) -> str:
        return str(uuid.uuid5(_NAMESPACE, f"{self.type}|{self.entity_url}|{self.message}"))


Source = Callable[[], Awaitable[Iterable[Finding]]]


async def lacking(machine: Machine, runtime: Runtime) -> list[Finding]:
    """What the host does not have, and what does not work without it."""
    found = {**await machine.missing(), **await runtime.missing()}
    return [Finding(f"Missing {what}", f"{what}: {loss}", "low") for what, loss in sorted(found.items())]


async def unusable_criu(criu: Criu) -> list[Finding]:
    reason = (await criu.facts()).reason
    return [Finding("Missing criu", f"stateful snapshots and live migration: {reason}", "low")] if reason else []


async def broken_pools(pools: Pools) -> list[Finding]:
    faults = ((name, pools.fault(name)) for name in pools.names())
    return [
        Finding("Storage pool unavailable", fault, "high", f"/1.0/storage-pools/{name}")
        for name, fault in faults
        if fault is not None
    ]


async def broken_networks(networks: Networks) -> list[Finding]:
    return [Finding("Network degraded", text, "moderate") for text in networks.warnings()]


async def outdated_revocations(outdated_since: Callable[[datetime], datetime | None]) -> list[Finding]:
    """`outdated_since`: when the authority's list was to be replaced, if that is past."""
    since = outdated_since(now())
    if since is None:
        return []
    text = f"ca.crl was to be replaced by {since:%Y-%m-%d %H:%M} UTC: certificates revoked since are still trusted"
    return [Finding("Outdated revocation list", text, "high")]


class Warnings:
    """The service behind `/1.0/warnings`."""

    def __init__(self, *, mirror: Mirror, events: Events, sources: Sequence[Source]) -> None:
        self._documents = Documents(mirror, "warnings", WireWarning)
        self._events = events
        self._sources = sources

    async def refresh(self) -> None:
        """Look again: at the daemon's start and once a minute."""
        found = {finding.uuid: finding for source in self._sources for finding in await source()}
        for finding in found.values():
            await self._note(finding)
        for document in self._documents.list():
            if document.value.uuid not in found and document.value.status != RESOLVED:
                resolved = msgspec.structs.replace(document.value, status=RESOLVED)
                await self._documents.update(document.path, resolved, document.revision)

    async def _note(self, finding: Finding) -> None:
        known = self._documents.get(finding.uuid)
        seen = now()
        if known is None:
            new = WireWarning(
                uuid=finding.uuid,
                type=finding.type,
                severity=finding.severity,
                status=NEW,
                location="none",
                entity_url=finding.entity_url,
                last_message=finding.message,
                first_seen_at=seen,
                last_seen_at=seen,
                count=1,
            )
            await self._documents.create((finding.uuid,), new)
        elif known.value.status == RESOLVED:
            again = msgspec.structs.replace(known.value, status=NEW, count=known.value.count + 1, last_seen_at=seen)
            await self._documents.update(known.path, again, known.revision)

    def uuids(self) -> list[str]:
        return [document.value.uuid for document in self._documents.list()]

    def show(self, identifier: str) -> WireWarning:
        return self._find(identifier).value

    def show_all(self) -> list[WireWarning]:
        return [document.value for document in self._documents.list()]

    def _find(self, identifier: str) -> Document[WireWarning]:
        document = self._documents.get(identifier)
        if document is None:
            raise NotFound("Warning not found")
        return document

    async def update(self, identifier: str, put: WarningPut) -> None:
        found = self._find(identifier)
        if put.status not in (NEW, ACKNOWLEDGED):
            raise BadRequest(f'Failed changing warning {identifier}: status "{put.status}" is not new or acknowledged')
        changed = msgspec.structs.replace(found.value, status=put.status)
        await self._documents.update(found.path, changed, found.revision)
        action = "warning-acknowledged" if put.status == ACKNOWLEDGED else "warning-reset"
        self._events.lifecycle(action, f"/1.0/warnings/{identifier}", "default")

    async def delete(self, identifier: str) -> None:
        """Forget it; what is still wrong comes back as new."""
        found = self._find(identifier)
        await self._documents.delete(found.path)
        self._events.lifecycle("warning-deleted", f"/1.0/warnings/{identifier}", "default")
