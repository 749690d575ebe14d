# SPDX-License-Identifier: Apache-2.0
"""Live migration: files while it runs, then its state while it stands still, then one of the two sides goes on.

docs/migration.md tells who decides what, and what becomes of it when something breaks."""

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from flexd.api.errors import BadRequest
from flexd.api.idmap import IdMap
from flexd.host.contract import CriuFacts, Host
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.migration.handovers import Handovers
from flexd.instances.migration.meter import Meter
from flexd.instances.migration.offer import Offer, Phase, Running, make_offer, read_answer
from flexd.instances.migration.peer import MigrationFailed, Peer
from flexd.instances.migration.state import send_state
from flexd.instances.migration.trees import receive_listing, send_tree
from flexd.instances.record import InstanceRecord, SnapshotRecord
from flexd.instances.registry import Registry
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation
from flexd.storage.pools import Pools

log = logging.getLogger(__name__)

# How long the target may take to make everything of the state, while the source stands still.
_HELD_S = 600.0
MakeOffer = Callable[[InstanceRecord, Sequence[SnapshotRecord]], Offer]


class Held(Struct):
    """The target has everything, and a container of it that waits."""

    held: bool = True


class HandedOver(Struct):
    """The source has decided: it does not run there any more."""

    handed_over: bool = True


async def running_facts(host: Host, memory_bytes: int) -> Running:
    """What a saved state leans on here."""
    criu, layout = await host.criu.facts(), await host.cgroups.layout()
    features = await host.machine.features()
    return Running(
        criu_version=criu.version,
        kernel_version=features.kernel_version,
        architecture=features.kernel_architecture,
        cgroup_mode=layout.mode,
        processor=await asyncio.to_thread(_processor_flags),
        memory_bytes=memory_bytes,
    )


def misfits(theirs: Running, ours: Running, criu: CriuFacts) -> list[str]:
    """Why a state that was saved there cannot be restored here; pure."""
    found = [] if criu.usable else [criu.reason]
    if theirs.architecture != ours.architecture:
        found.append(f"the source has the architecture {theirs.architecture}, this server {ours.architecture}")
    if theirs.cgroup_mode != ours.cgroup_mode:
        found.append(f"the source has cgroups {theirs.cgroup_mode}, this server {ours.cgroup_mode}")
    if _numbers(theirs.criu_version) > _numbers(ours.criu_version):
        found.append(f"the source saves with CRIU {theirs.criu_version}, this server has {ours.criu_version}")
    lacking = sorted(set(theirs.processor) - set(ours.processor))
    if lacking:
        found.append(f"this server's processor lacks {', '.join(lacking[:8])}")
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _processor_flags() -> list[str]:
    """As /proc/cpuinfo names them (x86 `flags`, arm64 `Features`); empty where it does not."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return sorted(set(value.split()))
    return []


class LiveSource:
    """The source's side."""

    def __init__(
        self,
        *,
        host: Host,
        registry: Registry,
        lifecycle: Lifecycle,
        pools: Pools,
        locks: Locks,
        handovers: Handovers,
    ) -> None:
        self._host = host
        self._registry = registry
        self._lifecycle = lifecycle
        self._pools = pools
        self._locks = locks
        self._handovers = handovers

    async def send(
        self, project: str, name: str, alone: bool, offer: MakeOffer, operation: Operation, peer: Peer
    ) -> None:
        async with self._locks.hold(f"instance/{project}/{name}", "migrate"):
            record = self._registry.instance(project, name)
            snapshots = [] if alone else self._registry.snapshots_of(record)
            container = self._lifecycle.running(record)
            if container is None:
                raise BadRequest(f'Failed moving instance "{name}": it has stopped meanwhile')
            await self._lifecycle.saving.check(record, container, "move")
            scratch = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="flexd-migration-"))
            try:
                with self._handovers.under_way() as token:
                    stats = (await self._host.cgroups.stats([container.cgroup]))[0]
                    told = offer(record, snapshots)
                    told.running = await running_facts(self._host, stats.memory_usage_bytes or 0)
                    told.running.token = token
                    told.running.idmap = record.config.get("volatile.idmap.current", "")
                    await self._send(record, snapshots, told, scratch, operation, peer)
            finally:
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def _send(
        self,
        record: InstanceRecord,
        snapshots: Sequence[SnapshotRecord],
        offer: Offer,
        scratch: Path,
        operation: Operation,
        peer: Peer,
    ) -> None:
        await peer.send_header(make_offer(snapshots, offer))
        answer = read_answer(await peer.receive_header())
        if answer is None or not answer.live or peer.criu is None or offer.running is None:
            raise BadRequest(f'Failed moving instance "{record.name}": the target is no flexd that takes running ones')
        meter = Meter(operation.progress)
        note = await peer.during(self._files(record, snapshots, answer.listing, scratch, peer, meter))
        images = self._lifecycle.saving.leaving(record)
        operation.progress({"progress": "Saving its state"})
        leaving = await peer.during(self._lifecycle.leave(record, images))
        try:
            await peer.tell(Phase("frozen"))
            await peer.during(self._frozen(record, images, note, peer, meter))
            await peer.tell(Phase("done"))
            await peer.hear(Held, _HELD_S)
            await self._handovers.commit(record, offer.running.token)
        except BaseException:
            await leaving.resume()
            raise
        finally:
            await asyncio.to_thread(shutil.rmtree, images, ignore_errors=True)
        # From here on it is the target's, whatever happens.
        await asyncio.shield(
            asyncio.create_task(self._go(peer, self._lifecycle.gone(record, leaving), offer.running.token))
        )

    async def _go(self, peer: Peer, going: Coroutine[Any, Any, None], token: str) -> None:
        with contextlib.suppress(MigrationFailed):  # a target that does not hear it asks
            await peer.tell(HandedOver())
        await going
        try:
            await peer.expect_success()
        except MigrationFailed as error:
            log.warning("the target of a live migration did not say that it has everything: %s", error)
        else:
            await self._handovers.settled(token)

    async def _files(
        self,
        record: InstanceRecord,
        snapshots: Sequence[SnapshotRecord],
        listing: bool,
        scratch: Path,
        peer: Peer,
        meter: Meter,
    ) -> Path:
        """While it runs: snapshots, its files, and what changed meanwhile. Returns the note of the last pass."""
        known: Path | None = None
        if listing:
            known = scratch / "listing"
            known = known if await receive_listing(peer.fs, known, meter.quietly) else None
        for number, snapshot in enumerate(snapshots):
            note = scratch / f"note{number}"
            async with self._pools.view(record.volume, IdMap(), snapshot=snapshot.name, live=True) as tree:
                await send_tree(self._host, tree, peer.fs, meter.of(snapshot.name), known=known, note=note)
            known = note
        await self._pass(record, peer, meter.of(""), known, scratch / "first", exact=False)
        await peer.tell(Phase("files"))
        await self._pass(record, peer, meter.of("changes"), scratch / "first", scratch / "second", exact=True)
        return scratch / "second"

    async def _pass(
        self,
        record: InstanceRecord,
        peer: Peer,
        count: Callable[[int], None],
        known: Path | None,
        note: Path | None,
        *,
        exact: bool,
    ) -> None:
        async with self._pools.changing_view(record.volume, IdMap()) as tree:
            await send_tree(self._host, tree, peer.fs, count, known=known, exact=exact, note=note)

    async def _frozen(self, record: InstanceRecord, images: Path, note: Path, peer: Peer, meter: Meter) -> None:
        assert peer.criu is not None
        await asyncio.gather(
            send_state(images, peer.criu, meter.of("state")),
            self._pass(record, peer, meter.of("changes"), note, None, exact=True),
        )
