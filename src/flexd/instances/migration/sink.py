# SPDX-License-Identifier: Apache-2.0
"""`POST /1.0/instances {"source": {"type": "migration"}}`: this server as the target of a copy or a move.

A new copy is made whole or not at all; one that is refreshed keeps what has arrived, so that a refresh which was cut
short goes on where it was. Nothing that the source sends is trusted.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct

from flexd.api.errors import BadRequest, Conflict
from flexd.api.idmap import IdMap, IdMapEntry
from flexd.api.instance import InstancesPost
from flexd.host.contract import Host
from flexd.images.contract import ImageRecord
from flexd.images.images import Images
from flexd.instances.allocator import current_idmap
from flexd.instances.backup_format import portable_config
from flexd.instances.check import root_size_bytes
from flexd.instances.firstboot import APPLY_TEMPLATE, INSTANCE_ID
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.metadata import MetadataDocuments
from flexd.instances.migration.arriving import IN_DOUBT, Arriving, doubt_of
from flexd.instances.migration.link import Asked, Far
from flexd.instances.migration.live import misfits, running_facts
from flexd.instances.migration.messages import BadMessage, Header
from flexd.instances.migration.meter import Meter
from flexd.instances.migration.offer import (
    RSYNC_FEATURES,
    Answer,
    Offer,
    Phase,
    Running,
    compare,
    read_offer,
    take_over,
)
from flexd.instances.migration.peer import Peer
from flexd.instances.migration.rsync import Rsync
from flexd.instances.migration.source import CHANNELS, LIVE_CHANNELS, awaited, ending
from flexd.instances.migration.state import receive_state
from flexd.instances.migration.trees import receive_tree, send_listing
from flexd.instances.record import Config, Expanded, InstanceRecord, SnapshotRecord
from flexd.instances.registry import Registry
from flexd.instances.resolve import Resolver, Wanted
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.projects.projects import Projects
from flexd.storage.contract import VolumeRef
from flexd.storage.pools import Pools
from flexd.store.contract import RevisionConflict

Args = dict[str, Any]

# What a state has beside memory: the kernel's objects, and files that were deleted but are open.
_STATE_BYTES = 4 << 30


class Arrival(Struct):
    """A migration that is under way: what the journalled step that receives it works with. A daemon that starts again
    has none of these, and takes the step back."""

    peer: Peer
    offer: Offer | None
    header: Header
    record: InstanceRecord
    size_bytes: int
    snapshots: list[SnapshotRecord]
    meter: Meter
    image: ImageRecord | None = None
    refresh: bool = False
    live: bool = False
    surplus: list[str] = []
    moved: bool = False


class MigrationSink:
    def __init__(
        self,
        *,
        host: Host,
        registry: Registry,
        resolver: Resolver,
        lifecycle: Lifecycle,
        pools: Pools,
        images: Images,
        metadata: MetadataDocuments,
        projects: Projects,
        journal: Journal,
        operations: Operations,
        locks: Locks,
        events: Events,
        lxd: Rsync,
        arriving: Arriving,
    ) -> None:
        self._host = host
        self._registry = registry
        self._resolver = resolver
        self._lifecycle = lifecycle
        self._pools = pools
        self._images = images
        self._metadata = metadata
        self._projects = projects
        self._journal = journal
        self._operations = operations
        self._locks = locks
        self._events = events
        self._lxd = lxd
        self._arrivals: dict[str, Arrival] = {}
        self._arriving = arriving
        self._phases: dict[str, Callable[[Arrival], Awaitable[None]]] = {
            "files": self._files,
            "frozen": self._frozen,
        }
        journal.register("migration.receive", self._receive, self._unreceive)
        journal.register("migration.refresh", self._receive)
        journal.register("migration.snapshots", self._record_snapshots)
        journal.register("migration.answer", self._answer_well)

    async def create(self, project: str, post: InstancesPost) -> Operation:
        """Every fault that is not about what arrives is told before anything does."""
        source = post.source
        if source.mode not in ("pull", "push", ""):
            raise BadRequest(f'Failed migrating instance: mode "{source.mode}" is not known (pull, push)')
        asked = Asked.of(source.operation, source.certificate) if source.operation else None
        far = Far(source.operation, source.certificate, source.secrets) if source.mode != "push" else None
        if source.refresh and self._registry.instances.get(project, post.name) is not None:
            record = self._registry.instance(project, post.name)
            self._check_refresh(record)
        else:
            name = self._resolver.free_name(project, post.name)
            record, _ = await self._resolver.record(project, name, _wanted(post))
        resources = {"instances": [record.url]}
        channels = LIVE_CHANNELS if source.live and asked is not None else CHANNELS

        async def run(operation: Operation) -> None:
            async with far.connect() if far is not None else awaited(operation, channels) as peer, ending(peer):
                await self._arrive(project, record.name, post, operation, peer, asked)

        kind: Any = "task" if far is not None else "websocket"
        operation = self._operations.start(kind, "Creating instance", project, resources, run, may_cancel=True)
        if far is None:
            operation.update({name: operation.expect_channel(name) for name in channels})
        return operation

    def _check_refresh(self, record: InstanceRecord) -> None:
        if self._lifecycle.running(record) is not None:
            raise BadRequest(f'Failed refreshing instance "{record.name}": Cannot refresh a running instance')

    async def _arrive(
        self, project: str, name: str, post: InstancesPost, operation: Operation, peer: Peer, asked: Asked | None
    ) -> None:
        header = await peer.receive_header()
        offer = read_offer(header)
        async with self._locks.hold(f"instance/{project}/{name}", "migrate"):
            known = self._registry.instances.get(project, name)
            if known is not None and not post.source.refresh:
                raise Conflict(f'Failed creating instance "{name}": the name was taken meanwhile')
            if known is not None:
                arrival, expanded = await self._refreshed(known.value, header, offer, post, operation, peer)
            else:
                arrival, expanded = await self._new(project, name, header, offer, post, operation, peer)
            if offer is not None and offer.running is not None and asked is not None:
                await self._doubt(arrival, offer.running, asked)
            await peer.send_header(self._answer(arrival))
            arrival.moved = _is_moved(post.config)
            await peer.during(self._carry_out(arrival, operation))
            if arrival.live:
                await self._arriving.take_over(arrival.record, peer)
                await peer.succeed()
        await self._lifecycle.announce_ports(expanded)
        action = "instance-updated" if arrival.refresh else "instance-created"
        self._events.lifecycle(action, arrival.record.url, project, {"type": arrival.record.type})

    async def _doubt(self, arrival: Arrival, theirs: Running, asked: Asked) -> None:
        """It is to go on running: see that it can, and note how to ask the source whether it does."""
        name, criu = arrival.record.name, await self._host.criu.facts()
        faults = misfits(theirs, await running_facts(self._host, 0), criu)
        if arrival.refresh:
            faults.append("a copy cannot be refreshed with one that goes on running")
        if theirs.idmap != arrival.record.config.get("volatile.idmap.next", theirs.idmap):
            faults.append("it would have other ids here (security.idmap.*)")
        if faults:
            raise BadRequest(f'Failed moving instance "{name}" while it runs: ' + "; ".join(faults))
        config = arrival.record.config | {IN_DOUBT: doubt_of(asked, theirs.token)}
        arrival.record = msgspec.structs.replace(arrival.record, config=config)
        arrival.live = True

    async def _frozen(self, arrival: Arrival) -> None:
        """It stands still at the source: its state, and the last of its files."""
        running = arrival.offer.running if arrival.offer is not None else None
        if arrival.peer.criu is None or running is None or not arrival.live:
            raise BadMessage("a state that was not announced")
        images = self._lifecycle.saving.images(arrival.record)
        most_bytes = _STATE_BYTES + 2 * running.memory_bytes
        await asyncio.gather(
            self._files(arrival), receive_state(images, arrival.peer.criu, arrival.meter.of("state"), most_bytes)
        )

    # --- what it becomes ---

    async def _new(
        self,
        project: str,
        name: str,
        header: Header,
        offer: Offer | None,
        post: InstancesPost,
        operation: Operation,
        peer: Peer,
    ) -> tuple[Arrival, Expanded]:
        kept = await self._keep(offer)
        record, expanded = await self._resolver.record(project, name, _wanted(post, kept.get("", "")))
        record = msgspec.structs.replace(record, config=_moved(record.config, post.config))
        alone = post.source.instance_only or post.source.container_only
        told = [] if alone else header.snapshots
        snapshots = [take_over(each, record, offer, kept) for each in told]
        image = self._image(project, offer.base if offer is not None else "")
        meter = Meter(operation.progress)
        size_bytes = root_size_bytes(expanded)
        return Arrival(peer, offer, header, record, size_bytes, snapshots, meter, image), expanded

    async def _refreshed(
        self,
        record: InstanceRecord,
        header: Header,
        offer: Offer | None,
        post: InstancesPost,
        operation: Operation,
        peer: Peer,
    ) -> tuple[Arrival, Expanded]:
        self._check_refresh(record)
        kept = await self._keep(offer)
        alone = post.source.instance_only or post.source.container_only
        told = [] if alone else [take_over(each, record, offer, kept) for each in header.snapshots]
        difference = compare(told, self._registry.snapshots_of(record))
        missing = [each for each in told if each.name in difference.missing]
        meter = Meter(operation.progress)
        surplus = [] if alone else difference.surplus
        arrival = Arrival(peer, offer, header, record, 0, missing, meter, refresh=True, surplus=surplus)
        return arrival, self._registry.expand(record)

    async def _keep(self, offer: Offer | None) -> dict[str, str]:
        """What it kept of its image, as documents of ours: snapshot (empty: itself) to name."""
        if offer is None:
            return {}
        names = {theirs: await self._metadata.keep(record) for theirs, record in offer.kept.items()}
        return {snapshot: names[theirs] for snapshot, theirs in offer.keeps.items() if theirs in names}

    def _image(self, project: str, fingerprint: str) -> ImageRecord | None:
        """The image that it was made from, if this project has it: only what differs is then sent."""
        return self._images.known(self._projects.owner(project, "images"), fingerprint) if fingerprint else None

    def _answer(self, arrival: Arrival) -> Header:
        """In LXD's words: which snapshots are to come; in ours: whether a listing comes first."""
        names = [each.name for each in arrival.snapshots]
        wanted = [each for each in arrival.header.snapshots if each.name in names]
        answer = Header(fs=0, snapshot_names=names, snapshots=wanted, refresh=arrival.refresh)
        answer.rsync = [feature for feature in RSYNC_FEATURES if feature in (arrival.header.rsync or ())]
        if arrival.offer is not None:
            answer.flexd = msgspec.json.encode(Answer(listing=_has_base(arrival), live=arrival.live))
        return answer

    # --- receiving ---

    async def _carry_out(self, arrival: Arrival, operation: Operation) -> None:
        self._arrivals[operation.id] = arrival
        try:
            await self._journal.run(_plan(arrival, operation.id), operation.progress)
        except RevisionConflict as error:
            raise Conflict(f'Failed creating instance "{arrival.record.name}": the name was taken meanwhile') from error
        finally:
            del self._arrivals[operation.id]

    async def _receive(self, args: Args, progress: Progress) -> None:
        arrival = self._arrivals[args["arrival"]]
        ref = VolumeRef(args["pool"], "container", args["volume"])
        for name in arrival.surplus:
            await self._drop_snapshot(arrival.record, ref, name)
        if arrival.offer is None:
            await self._receive_from_lxd(arrival, ref)
            return
        if arrival.image is not None:
            await self._create_from(arrival.image, arrival, ref, progress)
        for number, snapshot in enumerate([*arrival.snapshots, None]):
            await self._moment(arrival, ref, snapshot, first=number == 0)
            if snapshot is not None:
                await self._note(arrival, ref, snapshot)
        while (phase := await arrival.peer.hear(Phase)).what != "done":
            handler = self._phases.get(phase.what)
            if handler is None:
                raise BadMessage(f'the phase "{phase.what}" is not known')
            await handler(arrival)

    async def _receive_from_lxd(self, arrival: Arrival, ref: VolumeRef) -> None:
        """By rsync, ids as LXD has them on its disk; what it kept of its image comes with its files."""
        idmap = _disk_idmap(arrival.header)
        rsync = self._lxd.session(arrival.peer, arrival.header.rsync or [], idmap, arrival.meter)
        async with rsync:
            for number, snapshot in enumerate([*arrival.snapshots, None]):
                name = snapshot.name if snapshot is not None else ""
                if number == 0 and not arrival.refresh:
                    fill = rsync.filler(name)
                    await self._pools.create_from_tree(ref, arrival.record.project, fill, size_bytes=arrival.size_bytes)
                else:
                    async with self._root(ref, IdMap()) as root:
                        await rsync.filler(name)(root)
                if snapshot is not None:
                    await self._note(arrival, ref, snapshot)
            kept = await rsync.kept()
        if kept is not None and not arrival.refresh:
            await self._adopt(arrival, await self._metadata.keep(kept))

    async def _adopt(self, arrival: Arrival, metadata: str) -> None:
        """What it kept of its image is known only now."""
        found = self._registry.instances.get(arrival.record.project, arrival.record.name)
        if found is not None:
            changed = msgspec.structs.replace(found.value, metadata=metadata)
            await self._registry.instances.update(found.path, changed, found.revision)
        arrival.record = msgspec.structs.replace(arrival.record, metadata=metadata)
        for snapshot in arrival.snapshots:
            snapshot.instance.metadata = metadata

    async def _files(self, arrival: Arrival) -> None:
        """Another pass: what has changed at the source since the last one."""
        ref = arrival.record.volume
        idmap = self._pools.writing_idmap(ref, current_idmap(arrival.record.config))
        async with self._root(ref, idmap) as root:
            await receive_tree(self._host, root, idmap, arrival.peer.fs, arrival.meter.of("changes"))

    async def _create_from(self, image: ImageRecord, arrival: Arrival, ref: VolumeRef, progress: Progress) -> None:
        async def unpack(target: Any) -> None:
            await self._images.unpack(image.fingerprint, target, progress)

        await self._pools.create_instance(
            ref, arrival.record.project, image=(image.fingerprint, unpack), size_bytes=arrival.size_bytes
        )

    async def _moment(self, arrival: Arrival, ref: VolumeRef, snapshot: SnapshotRecord | None, *, first: bool) -> None:
        """The volume as it was at one moment, or is now."""
        channel, count = arrival.peer.fs, arrival.meter.of(snapshot.name if snapshot is not None else "")
        if first and not _has_base(arrival):

            async def fill(target: Any) -> None:
                await receive_tree(self._host, target, IdMap(), channel, count)

            await self._pools.create_from_tree(ref, arrival.record.project, fill, size_bytes=arrival.size_bytes)
            return
        idmap = self._pools.writing_idmap(ref, current_idmap(arrival.record.config))
        async with self._root(ref, idmap) as root:
            if first:
                await send_listing(self._host, root, idmap, channel, arrival.meter.quietly)
            await receive_tree(self._host, root, idmap, channel, count)

    @contextlib.asynccontextmanager
    async def _root(self, ref: VolumeRef, idmap: IdMap) -> AsyncIterator[Any]:
        root = await self._pools.mount(ref, idmap)
        try:
            yield root
        finally:
            await self._pools.unmount(ref)

    async def _note(self, arrival: Arrival, ref: VolumeRef, snapshot: SnapshotRecord) -> None:
        """A snapshot has arrived. One of a refresh stays, whatever comes after."""
        await self._pools.create_snapshot(
            ref,
            snapshot.name,
            arrival.record.project,
            created_at=snapshot.created_at,
            expires_at=snapshot.expires_at,
        )
        if arrival.refresh:
            path = (arrival.record.project, arrival.record.name, snapshot.name)
            await self._registry.snapshots.txn([self._registry.snapshots.put(path, snapshot)])

    async def _drop_snapshot(self, record: InstanceRecord, ref: VolumeRef, name: str) -> None:
        await self._pools.delete_snapshot(ref, name)
        await self._registry.snapshots.delete((record.project, record.name, name))

    async def _record_snapshots(self, args: Args, _progress: Progress) -> None:
        arrival, snapshots = self._arrivals[args["arrival"]], self._registry.snapshots
        where = (arrival.record.project, arrival.record.name)
        await snapshots.txn([snapshots.put((*where, each.name), each) for each in arrival.snapshots])

    async def _answer_well(self, args: Args, _progress: Progress) -> None:
        """Tell the source that all is here. If it can't be told, all is taken back: a client that saw one side fail
        keeps what it has at the source."""
        arrival = self._arrivals[args["arrival"]]
        if arrival.live:  # there is more to come
            return
        if arrival.moved:  # its source is about to be deleted
            await self._pools.sync(arrival.record.volume)
        await arrival.peer.succeed()

    async def _unreceive(self, args: Args) -> None:
        await self._pools.delete_volume(VolumeRef(args["pool"], "container", args["volume"]))


def _has_base(arrival: Arrival) -> bool:
    return arrival.refresh or arrival.image is not None


def _plan(arrival: Arrival, token: str) -> Plan:
    """Undone by a restarted daemon: what was to arrive does not any more."""
    record = arrival.record
    where = {"project": record.project, "name": record.name}
    receive = {**where, "pool": record.pool, "volume": record.storage_name, "arrival": token}
    answer = Step("migration.answer", {**where, "arrival": token})
    if arrival.refresh:
        return Plan(f'refresh instance "{record.name}"', (Step("migration.refresh", receive), answer))
    return Plan(
        f'receive instance "{record.name}"',
        (
            Step("instances.record", {**where, "document": msgspec.json.encode(record).decode()}),
            Step("migration.receive", receive),
            Step("migration.snapshots", {**where, "arrival": token}),
            answer,
        ),
    )


def _disk_idmap(header: Header) -> IdMap:
    """The ids that files of an LXD have on its disk."""
    kinds = {(True, True): "b", (True, False): "u", (False, True): "g"}
    rows = [row for row in header.idmap if row.is_uid or row.is_gid]
    return IdMap(tuple(IdMapEntry(kinds[row.is_uid, row.is_gid], row.inside, row.outside, row.count) for row in rows))


def _wanted(post: InstancesPost, metadata: str = "") -> Wanted:
    """Configuration and devices are the client's, who read them at the source and changed what was to be changed."""
    return Wanted(
        profiles=["default"] if post.profiles is None else post.profiles,
        config={key: value for key, value in post.config.items() if not _is_kept(key)},
        devices=post.devices,
        architecture=post.architecture,
        description=post.description,
        ephemeral=post.ephemeral,
        kept=_kept(post),
        metadata=metadata,
        trigger="copy",
    )


def _is_kept(key: str) -> bool:
    return key.startswith(("image.", "volatile."))


def _kept(post: InstancesPost) -> Config:
    """What describes it wherever it is: its image, its interfaces' addresses and names, where it was evacuated from."""
    kept = {key: value for key, value in portable_config(post.config).items() if _is_kept(key)}
    named = ("volatile.base_image",)
    return {
        key: value
        for key, value in kept.items()
        if key.startswith(("image.", "volatile.evacuate.")) or key in named or key.endswith((".hwaddr", ".name"))
    }


def _moved(config: Config, sent: Config) -> Config:
    """Clients send `volatile.*` with what is moved: it is no new instance then, neither to cloud-init nor to its
    templates."""
    if not _is_moved(sent):
        return config
    config = {key: value for key, value in config.items() if key != APPLY_TEMPLATE}
    trigger = sent.get(APPLY_TEMPLATE, "")
    due = {APPLY_TEMPLATE: trigger} if trigger in ("create", "copy", "rename") else {}
    return config | {INSTANCE_ID: sent[INSTANCE_ID]} | due


def _is_moved(sent: Config) -> bool:
    return INSTANCE_ID in sent
