# SPDX-License-Identifier: Apache-2.0
"""`POST /1.0/instances/NAME {"migration": true}`: this server as the source of a copy or a move.

In pull mode (and relay) the operation waits for somebody to connect its channels; in push mode it connects to the
target's. Nothing changes here: who moves an instance deletes it when the target has everything.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from flexd.api.errors import BadRequest
from flexd.api.instance import InstancePost
from flexd.api.instance_snapshot import InstancePostTarget, InstanceSnapshotPost
from flexd.api.storage_volume import StorageVolumePostTarget
from flexd.host.contract import Host
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.metadata import MetadataDocuments
from flexd.instances.migration.handovers import Handovers
from flexd.instances.migration.link import Far
from flexd.instances.migration.live import LiveSource
from flexd.instances.migration.meter import Meter
from flexd.instances.migration.offer import Dates, Offer, Phase, make_offer, read_answer
from flexd.instances.migration.peer import MigrationFailed, Peer
from flexd.instances.migration.rsync import Folder, Rsync
from flexd.instances.migration.scratch import scratch_directory
from flexd.instances.migration.trees import receive_listing, send_tree
from flexd.instances.record import InstanceRecord, SnapshotRecord
from flexd.instances.registry import Registry
from flexd.instances.stills import Still, Stills
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.storage.pools import Pools

Target = InstancePostTarget | StorageVolumePostTarget | None

CHANNELS = ("control", "fs")
LIVE_CHANNELS = (*CHANNELS, "criu")
# How long a client may take to connect the target, which first checks what it is asked for.
_CONNECT_S = 60.0


class Wish(Struct, frozen=True):
    """What is to be sent: an instance, with its snapshots or alone, or one snapshot as if it were an instance."""

    project: str
    name: str
    snapshot: str = ""
    alone: bool = False
    live: bool = False


class MigrationSource:
    def __init__(
        self,
        *,
        host: Host,
        registry: Registry,
        lifecycle: Lifecycle,
        metadata: MetadataDocuments,
        stills: Stills,
        operations: Operations,
        lxd: Rsync,
        pools: Pools,
        locks: Locks,
        handovers: Handovers,
    ) -> None:
        self._live = LiveSource(
            host=host, registry=registry, lifecycle=lifecycle, pools=pools, locks=locks, handovers=handovers
        )
        self._host = host
        self._registry = registry
        self._lifecycle = lifecycle
        self._metadata = metadata
        self._stills = stills
        self._operations = operations
        self._lxd = lxd

    def start(self, project: str, name: str, post: InstancePost) -> Operation:
        record = self._registry.instance(project, name)
        wish = Wish(project, name, alone=post.instance_only or post.container_only, live=post.live)
        if wish.live and self._lifecycle.running(record) is not None:
            return self._start_live(record, wish, post)
        return start_source(self._operations, record.url, project, post.target, lambda *args: self._send(wish, *args))

    def _start_live(self, record: InstanceRecord, wish: Wish, post: InstancePost) -> Operation:
        if post.target is not None:
            raise BadRequest(
                f'Failed migrating instance "{wish.name}": it is running, and one that runs is pulled by its target, '
                "not pushed (--mode pull); stop it, or copy it as it is (--stateless)"
            )

        async def send(operation: Operation, peer: Peer) -> None:
            await self._live.send(wish.project, wish.name, wish.alone, self._offer, operation, peer)

        return start_source(self._operations, record.url, wish.project, None, send, channels=LIVE_CHANNELS)

    def start_snapshot(self, project: str, name: str, snapshot: str, post: InstanceSnapshotPost) -> Operation:
        """A snapshot, as if it were an instance."""
        found = self._registry.find_snapshot(project, name, snapshot).value
        wish = Wish(project, name, snapshot, alone=True)
        return start_source(self._operations, found.url, project, post.target, lambda *args: self._send(wish, *args))

    async def _send(self, wish: Wish, operation: Operation, peer: Peer) -> None:
        async with self._still(wish) as still:
            snapshots = [each for each, _ in still.snapshots]
            await peer.send_header(make_offer(snapshots, self._offer(still.record, snapshots)))
            answer = await peer.receive_header()
            wanted = answer.snapshot_names if answer.refresh else [each.name for each in snapshots]
            unknown = set(wanted) - {each.name for each in snapshots}
            if unknown:
                raise MigrationFailed(f"The target asks for snapshots that were not offered: {', '.join(unknown)}")
            meter = Meter(operation.progress)
            ours = read_answer(answer)
            if ours is None:
                await peer.during(self._lxd.send(self._folders(still, wanted), peer, answer.rsync or [], meter))
            else:
                trees = [(each.name, tree) for each, tree in still.snapshots if each.name in wanted]
                assert still.tree is not None
                await peer.during(send_moments(self._host, [*trees, ("", still.tree)], peer, meter, ours.listing))
                await peer.tell(Phase("done"))
        await peer.expect_success()

    def _folders(self, still: Still, wanted: Sequence[str]) -> list[Folder]:
        """As an LXD has them on its disk: the root beside what was kept of the image."""
        moments = [(each.name, each.instance, tree) for each, tree in still.snapshots if each.name in wanted]
        assert still.tree is not None
        moments.append(("", still.record, still.tree))
        return [Folder(name, tree, self._metadata.of(record)) for name, record, tree in moments]

    def _still(self, wish: Wish) -> contextlib.AbstractAsyncContextManager[Still]:
        if wish.snapshot:
            return self._stills.hold_snapshot(wish.project, wish.name, wish.snapshot)
        return self._stills.hold(wish.project, wish.name, snapshots=not wish.alone)

    def _offer(self, record: InstanceRecord, snapshots: Sequence[SnapshotRecord]) -> Offer:
        offer = Offer(base=record.config.get("volatile.base_image", ""))
        offer.dates = {each.name: Dates(each.created_at, each.expires_at) for each in snapshots}
        for name, of in (("", record), *((each.name, each.instance) for each in snapshots)):
            kept = self._metadata.of(of)
            if kept is not None:
                offer.kept[of.metadata] = kept
                offer.keeps[name] = of.metadata
        return offer


def start_source(
    operations: Operations,
    url: str,
    project: str,
    target: Target,
    send: Any,
    what: str = "instance",
    channels: Sequence[str] = CHANNELS,
) -> Operation:
    """The operation of a source, that waits for its channels or connects to the target's."""
    far = Far(target.operation, target.certificate, target.secrets) if target is not None else None

    async def run(operation: Operation) -> None:
        async with far.connect() if far is not None else awaited(operation, channels) as peer, ending(peer):
            await send(operation, peer)

    kind: Any = "task" if far is not None else "websocket"
    resources = {f"{what}s".replace("volumes", "storage_volumes"): [url]}
    operation = operations.start(kind, f"Migrating {what}", project, resources, run, may_cancel=True)
    if far is None:
        operation.update({name: operation.expect_channel(name) for name in channels})
    return operation


@contextlib.asynccontextmanager
async def awaited(operation: Operation, names: Sequence[str] = CHANNELS) -> AsyncIterator[Peer]:
    """The peer, when somebody has connected all the channels of an operation."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            channels = [await operation.channel(name) for name in names]
    except TimeoutError as error:
        raise MigrationFailed(f"Nobody connected to the migration within {_CONNECT_S:.0f} s") from error
    peer = Peer(*channels)
    try:
        yield peer
    finally:
        await peer.close()


@contextlib.asynccontextmanager
async def ending(peer: Peer) -> AsyncIterator[None]:
    """Tell the other side if it fails here."""
    try:
        yield
    except asyncio.CancelledError:
        await asyncio.shield(peer.fail("it was cancelled"))
        raise
    except Exception as error:  # border: whatever it is, the other side must not wait for ever
        await peer.fail(str(error))
        raise


async def send_moments(
    host: Host, moments: Sequence[tuple[str, Path]], peer: Peer, meter: Meter, listing: bool
) -> None:
    """Trees in order (snapshots, then the volume itself under ""), each as what differs from the one before."""
    async with scratch_directory() as scratch:
        known: Path | None = None
        if listing:
            known = scratch / "listing"
            if not await receive_listing(peer.fs, known, meter.quietly):
                known = None
        for number, (name, tree) in enumerate(moments):
            note = scratch / f"note{number}" if number + 1 < len(moments) else None
            await send_tree(host, tree, peer.fs, meter.of(name), known=known, note=note)
            known = note
