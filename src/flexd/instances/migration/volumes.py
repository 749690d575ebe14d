# SPDX-License-Identifier: Apache-2.0
"""Custom volumes from and to other servers: the same protocol as instances', with a volume's files instead of a root.

What instances have of it is theirs to say: a volume that a running one uses is sent as it changes, and none is
refreshed while somebody uses it.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from flexd.api.errors import BadRequest, Conflict
from flexd.api.idmap import IdMap
from flexd.api.storage_volume import StorageVolumePost, StorageVolumesPost
from flexd.api.times import now
from flexd.api.units import parse_size
from flexd.host.contract import Host
from flexd.instances.migration.link import Far
from flexd.instances.migration.messages import RSYNC, Header, Snapshot
from flexd.instances.migration.meter import Meter
from flexd.instances.migration.offer import (
    RSYNC_FEATURES,
    Answer,
    Dates,
    Offer,
    Phase,
    read_answer,
    read_offer,
    seconds_of,
    when,
)
from flexd.instances.migration.peer import MigrationFailed, Peer
from flexd.instances.migration.rsync import Folder, Rsync
from flexd.instances.migration.source import awaited, ending, send_moments, start_source
from flexd.instances.migration.trees import receive_tree, send_listing
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.storage.contract import VolumeRecord
from flexd.storage.custom import FILESYSTEM, check_config_of, without_empty
from flexd.storage.names import check_snapshot_name, check_volume_name, split_snapshot, volume_ref, volume_url
from flexd.storage.pools import Pools
from flexd.storage.volumes import Volumes, lock_of

Args = dict[str, Any]


class Arrival(Struct):
    """A volume that is on its way."""

    peer: Peer
    offer: Offer | None
    header: Header
    record: VolumeRecord
    snapshots: list[tuple[str, Dates]]
    meter: Meter
    refresh: bool
    surplus: list[str]


class VolumeMigration:
    def __init__(
        self,
        *,
        host: Host,
        volumes: Volumes,
        pools: Pools,
        journal: Journal,
        operations: Operations,
        locks: Locks,
        rsync: Rsync,
    ) -> None:
        self._host = host
        self._volumes = volumes
        self._pools = pools
        self._journal = journal
        self._operations = operations
        self._locks = locks
        self._rsync = rsync
        self._arrivals: dict[str, Arrival] = {}
        journal.register("migration.receive_volume", self._receive, self._unreceive)
        journal.register("migration.refresh_volume", self._receive)
        journal.register("migration.answer_volume", self._answer_well)

    # --- the source ---

    def start(self, pool: str, kind: str, project: str, name: str, post: StorageVolumePost) -> Operation:
        record = self._volumes.custom(pool, kind, project, name, tried="migrating").value
        _check_content(record)
        url = volume_url(record)
        alone = post.volume_only
        return start_source(
            self._operations,
            url,
            project,
            post.target,
            lambda operation, peer: self._send(record, alone, operation, peer),
            "volume",
        )

    async def _send(self, record: VolumeRecord, alone: bool, operation: Operation, peer: Peer) -> None:
        ref = volume_ref(record)
        async with AsyncExitStack() as stack:
            async with self._locks.hold(lock_of(record), "migrate"):
                kept = [] if alone else self._pools.list_snapshots(ref)
                names = [split_snapshot(each.name)[1] for each in kept]
                live = bool(self._volumes.running_users(record))
                views = [
                    (name, await stack.enter_async_context(self._pools.view(ref, IdMap(), snapshot=name)))
                    for name in names
                ]
                tree = await stack.enter_async_context(self._pools.view(ref, IdMap(), live=live))
            await peer.send_header(_offer(kept))
            answer = await peer.receive_header()
            wanted = answer.snapshot_names if answer.refresh else names
            if set(wanted) - set(names):
                raise MigrationFailed("The target asks for snapshots that were not offered")
            moments = [*((name, view) for name, view in views if name in wanted), ("", tree)]
            meter = Meter(operation.progress)
            ours = read_answer(answer)
            if ours is None:
                folders = [Folder(name, view, None, root="") for name, view in moments]
                await peer.during(self._rsync.send(folders, peer, answer.rsync or [], meter))
            else:
                await peer.during(send_moments(self._host, moments, peer, meter, ours.listing))
                await peer.tell(Phase("done"))
        await peer.expect_success()

    # --- the target ---

    async def create(self, pool: str, project: str, post: StorageVolumesPost) -> Operation:
        source = post.source
        check_volume_name(post.name)
        if source.mode not in ("pull", "push", ""):
            raise BadRequest(f'Failed migrating storage volume: mode "{source.mode}" is not known (pull, push)')
        far = Far(source.operation, source.certificate, source.secrets) if source.mode != "push" else None
        record = VolumeRecord(
            post.name,
            pool,
            "custom",
            project,
            post.description,
            without_empty(post.config),
            post.content_type or FILESYSTEM,
            now(),
        )
        _check_content(record)
        check_config_of(self._pools.record(pool).driver, record)
        known = self._volumes.find(record)
        if known is not None and not source.refresh:
            raise Conflict("Volume by that name already exists")
        if known is not None:
            self._volumes.check_idle(known, "refreshing")

        async def run(operation: Operation) -> None:
            async with far.connect() if far is not None else awaited(operation) as peer, ending(peer):
                await self._arrive(record, post, operation, peer)

        kind: Any = "task" if far is not None else "websocket"
        resources = {"storage_volumes": [volume_url(record)]}
        operation = self._operations.start(kind, "Creating volume", project, resources, run, may_cancel=True)
        if far is None:
            operation.update({name: operation.expect_channel(name) for name in ("control", "fs")})
        return operation

    async def _arrive(self, record: VolumeRecord, post: StorageVolumesPost, operation: Operation, peer: Peer) -> None:
        header = await peer.receive_header()
        async with self._locks.hold(lock_of(record), "migrate"):
            known = self._volumes.find(record)
            if known is not None and not post.source.refresh:
                raise Conflict("Volume by that name already exists")
            if known is not None:
                self._volumes.check_idle(known, "refreshing")
            arrival = self._judge(known or record, header, post, operation, peer, refresh=known is not None)
            await peer.send_header(_answer(arrival))
            self._arrivals[operation.id] = arrival
            try:
                await peer.during(self._journal.run(_plan(arrival, operation.id), operation.progress))
            finally:
                del self._arrivals[operation.id]
        self._volumes.event("storage-volume-updated" if arrival.refresh else "storage-volume-created", record)

    def _judge(
        self,
        record: VolumeRecord,
        header: Header,
        post: StorageVolumesPost,
        operation: Operation,
        peer: Peer,
        *,
        refresh: bool,
    ) -> Arrival:
        offer = read_offer(header)
        told = [] if post.source.volume_only else [_dated(each, offer) for each in header.snapshots]
        for name, _ in told:
            check_snapshot_name(name)
        ours = {
            split_snapshot(each.name)[1]: seconds_of(each.created_at)
            for each in (self._pools.list_snapshots(volume_ref(record)) if refresh else [])
        }
        theirs = {name: seconds_of(dates.created_at) for name, dates in told}
        missing = [(name, dates) for name, dates in told if ours.get(name) != theirs[name]]
        surplus = [name for name in ours if theirs.get(name) != ours[name]]
        surplus = [] if post.source.volume_only else surplus
        return Arrival(peer, offer, header, record, missing, Meter(operation.progress), refresh, surplus)

    async def _receive(self, args: Args, _progress: Progress) -> None:
        arrival = self._arrivals[args["arrival"]]
        ref = volume_ref(arrival.record)
        for name in arrival.surplus:
            await self._pools.delete_snapshot(ref, name)
        if arrival.offer is not None:
            await self._receive_moments(arrival, None)
            phase = await arrival.peer.hear(Phase)
            if phase.what != "done":
                raise MigrationFailed(f'The other server announces "{phase.what}", which a volume does not have')
            return
        features = arrival.header.rsync or []
        async with self._rsync.session(arrival.peer, features, IdMap(), arrival.meter, root="") as receiving:
            await self._receive_moments(arrival, receiving)

    async def _answer_well(self, args: Args, _progress: Progress) -> None:
        """As for instances: whoever asked may delete the source now."""
        arrival = self._arrivals[args["arrival"]]
        await self._pools.sync(volume_ref(arrival.record))
        await arrival.peer.succeed()

    async def _receive_moments(self, arrival: Arrival, rsync: Any) -> None:
        ref, record = volume_ref(arrival.record), arrival.record
        moments: Sequence[tuple[str, Dates | None]] = [*arrival.snapshots, ("", None)]
        for number, (name, dates) in enumerate(moments):
            first = number == 0
            fill = rsync.filler(name) if rsync is not None else self._filler(arrival, name)
            if first and not arrival.refresh:
                size_bytes = parse_size(record.config.get("size", ""))
                await self._pools.create_from_tree(ref, record.project, fill, size_bytes=size_bytes)
            else:
                data = await self._pools.data_directory(ref)
                if first and rsync is None:
                    await send_listing(self._host, data, IdMap(), arrival.peer.fs, arrival.meter.quietly)
                await fill(data)
            if dates is not None:
                await self._pools.create_snapshot(
                    ref, name, record.project, created_at=dates.created_at, expires_at=dates.expires_at
                )

    def _filler(self, arrival: Arrival, name: str) -> Any:
        async def fill(target: Path) -> None:
            await receive_tree(self._host, target, IdMap(), arrival.peer.fs, arrival.meter.of(name))

        return fill

    async def _unreceive(self, args: Args) -> None:
        await self._pools.delete_volume(volume_ref(msgspec.convert(args["record"], VolumeRecord)))


def _check_content(record: VolumeRecord) -> None:
    if record.content_type != FILESYSTEM:
        raise BadRequest(
            f'Failed migrating storage volume "{record.name}": volumes of content type "{record.content_type}" stay on '
            "their server"
        )


def _offer(kept: Sequence[VolumeRecord]) -> Header:
    names = [split_snapshot(each.name)[1] for each in kept]
    dates = {name: Dates(each.created_at, each.expires_at) for name, each in zip(names, kept, strict=True)}
    told = [
        Snapshot(name, created_at=seconds_of(each.created_at), expires_at=seconds_of(each.expires_at))
        for name, each in zip(names, kept, strict=True)
    ]
    return Header(
        fs=RSYNC,
        rsync=list(RSYNC_FEATURES),
        snapshot_names=names,
        snapshots=told,
        predump=False,
        flexd=msgspec.json.encode(Offer(dates=dates)),
    )


def _dated(told: Snapshot, offer: Offer | None) -> tuple[str, Dates]:
    exact = offer.dates.get(told.name) if offer is not None else None
    return told.name, exact or Dates(when(told.created_at), when(told.expires_at))


def _answer(arrival: Arrival) -> Header:
    names = [name for name, _ in arrival.snapshots]
    wanted = [each for each in arrival.header.snapshots if each.name in names]
    answer = Header(fs=RSYNC, snapshot_names=names, snapshots=wanted, refresh=arrival.refresh)
    answer.rsync = [feature for feature in RSYNC_FEATURES if feature in (arrival.header.rsync or ())]
    if arrival.offer is not None:
        answer.flexd = msgspec.json.encode(Answer(listing=arrival.refresh))
    return answer


def _plan(arrival: Arrival, token: str) -> Plan:
    """Undone by a restarted daemon, but for what a refresh has got."""
    record = arrival.record
    args = {"record": msgspec.to_builtins(record), "arrival": token}
    answer = Step("migration.answer_volume", args)
    if arrival.refresh:
        return Plan(f'refresh storage volume "{record.name}"', (Step("migration.refresh_volume", args), answer))
    steps = (Step("storage.note_volume", args), Step("migration.receive_volume", args), answer)
    return Plan(f'receive storage volume "{record.name}"', steps)
