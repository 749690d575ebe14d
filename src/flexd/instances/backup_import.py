# SPDX-License-Identifier: Apache-2.0
"""`POST /1.0/instances` with a backup as its body: an instance with its snapshots, of LXD's or our own making.

The file is stored, read from end to end and judged, and only then unpacked, confined, into volumes that a journalled
plan makes whole or not at all.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from flexd.api.errors import BadRequest, Conflict
from flexd.api.idmap import IdMap
from flexd.api.image import ImageMetadata
from flexd.api.instance import Instance
from flexd.api.instance_snapshot import InstanceSnapshot
from flexd.api.times import now
from flexd.backups.document import BadBackup
from flexd.backups.optimized import INSTANCE, expected_streams, receive_streams, require_streams
from flexd.host.contract import Host
from flexd.images.archive import Archives, free_space_fault
from flexd.images.backup_survey import BackupSurvey, read_index, survey_backup
from flexd.images.contract import BadImage
from flexd.images.formats import parse_metadata
from flexd.images.incoming import Incoming
from flexd.images.survey import Limits
from flexd.instances.backup_format import (
    BackupConfig,
    BackupIndex,
    parse_config,
    parse_index,
    portable_config,
)
from flexd.instances.check import root_size_bytes
from flexd.instances.firstboot import APPLY_TEMPLATE, INSTANCE_ID
from flexd.instances.idmaps import from_wire
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.metadata import MetadataDocuments, MetadataRecord
from flexd.instances.names import check_snapshot_name
from flexd.instances.record import Config, DeviceEntries, Expanded, InstanceRecord, SnapshotRecord
from flexd.instances.registry import Registry
from flexd.instances.resolve import Resolver, Wanted
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.storage.contract import PoolNotFound, Reception, Stream, VolumeRef
from flexd.storage.pools import Pools, scratch_of
from flexd.store.contract import RevisionConflict

Args = dict[str, Any]
_CONTAINER = "backup/container"


class Overrides(Struct, frozen=True):
    """What the request's headers say, in place of the backup's own; empty: as it was."""

    name: str = ""
    pool: str = ""
    devices: DeviceEntries = {}
    config: Config = {}


class Layer(Struct, frozen=True):
    """A root file system of the backup, in the order in which they are unpacked. `snapshot` empty: the instance's own.
    `idmap`: the host ids that its files have, as LXD's JSON."""

    snapshot: str
    member: str
    idmap: str = ""


class Arrived(Struct, frozen=True):
    """Streams of a driver's own that are in the pool already, and where."""

    place: str
    streams: list[Stream]


class _Judged(Struct):
    """A backup that can be restored here, and as what."""

    record: InstanceRecord
    expanded: Expanded
    snapshots: list[SnapshotRecord] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)


class BackupImport:
    def __init__(
        self,
        *,
        host: Host,
        registry: Registry,
        resolver: Resolver,
        lifecycle: Lifecycle,
        pools: Pools,
        metadata: MetadataDocuments,
        archives: Archives,
        journal: Journal,
        operations: Operations,
        locks: Locks,
        events: Events,
        directory: Path,
    ) -> None:
        self._host = host
        self._registry = registry
        self._resolver = resolver
        self._lifecycle = lifecycle
        self._pools = pools
        self._metadata = metadata
        self._archives = archives
        self._journal = journal
        self._operations = operations
        self._locks = locks
        self._events = events
        self._directory = directory
        journal.register("imports.volume", self._unpack, self._ununpack)

    async def create(self, project: str, body: AsyncIterator[bytes], overrides: Overrides) -> Operation:
        """Store the body, and look at its index: what cannot be restored at all is told at once."""
        incoming = await Incoming.make(self._directory)
        try:
            await incoming.write_metadata(body)
            index = await self._index(incoming.metadata)
            name = self._resolver.free_name(project, overrides.name or index.name)
            pool = self._pool(project, index, overrides)
            if index.optimized:
                require_streams(self._pools.driver(pool), index.backend)
        except BaseException:
            await incoming.discard()
            raise

        async def run(operation: Operation) -> None:
            try:
                await self._import(project, name, index, incoming, overrides, operation.progress)
            finally:
                await incoming.discard()

        resources = {"instances": [InstanceRecord(name, project).url]}
        return self._operations.start("task", "Restoring backup", project, resources, run, may_cancel=True)

    async def _index(self, file: Path) -> BackupIndex:
        with _as_backup():
            text = await self._archives.examine(file, _NAME, partial(read_index, name=_NAME))
        return await asyncio.to_thread(parse_index, text, _NAME)

    def _pool(self, project: str, index: BackupIndex, overrides: Overrides) -> str:
        """The pool that is asked for, or that it was on, or the default profile's."""
        if overrides.pool:
            return self._pools.record(overrides.pool).name
        try:
            return self._pools.record(index.pool).name
        except PoolNotFound:
            root = Expanded({}, self._registry.find_profile(project, "default").value.devices).root()
            if root is None:
                raise BadRequest(
                    f'Failed restoring backup: Storage pool "{index.pool}" not found, and the default profile has no '
                    "root disk; name a pool"
                ) from None
            return root[1]["pool"]

    async def _import(
        self,
        project: str,
        name: str,
        index: BackupIndex,
        incoming: Incoming,
        overrides: Overrides,
        progress: Progress,
    ) -> None:
        progress({"import_progress": "Checking backup"})
        file = incoming.metadata
        survey = await self._survey(file)
        pool = self._pool(project, index, overrides)
        await self._check_space(pool, survey)
        async with contextlib.AsyncExitStack() as stack:
            arrived = None
            if index.optimized:
                streams = require_streams(self._pools.driver(pool), index.backend)
                reception = await stack.enter_async_context(streams.receiving())
                progress({"import_progress": "Unpacking the streams"})
                arrived = await self._receive(index, survey, file, reception)
            judged = await self._judge(project, name, survey, overrides)
            async with self._locks.hold(f"instance/{project}/{name}", "import"):
                try:
                    await self._journal.run(_plan(judged, file, arrived), progress)
                except RevisionConflict as error:
                    raise Conflict(f'Failed restoring instance "{name}": the name was taken meanwhile') from error
        record = judged.record
        await self._lifecycle.announce_ports(judged.expanded)
        self._events.lifecycle("instance-created", record.url, project, {"type": record.type})

    async def _receive(self, index: BackupIndex, survey: BackupSurvey, file: Path, reception: Reception) -> Arrived:
        """What the streams hold beside the root file systems is added to the survey, as if it were in the archive."""
        expected = expected_streams(survey.header, index.snapshots, INSTANCE, survey.blobs)
        with _as_backup():
            streams = await receive_streams(self._archives, file, _NAME, expected, reception)
        for snapshot in (*index.snapshots, ""):
            base = f"backup/snapshots/{snapshot}" if snapshot else _CONTAINER
            survey.roots.add(base)
            survey.files |= {f"{base}/{path}": text for path, text in (await reception.beside(snapshot)).items()}
        return Arrived(str(reception.place), streams)

    # --- judging -----------------------------------------------------------------------------------------------------

    async def _survey(self, file: Path) -> BackupSurvey:
        usage = await self._host.files.filesystem(self._directory)
        size_bytes = (await asyncio.to_thread(file.stat)).st_size
        # The pool's free space is looked at when the pool is known.
        limits = Limits(max(usage.total_bytes, 1))
        consume = partial(survey_backup, name=_NAME, size_bytes=size_bytes, limits=limits)
        with _as_backup():
            return await self._archives.examine(file, _NAME, consume)

    async def _check_space(self, pool: str, survey: BackupSurvey) -> None:
        resources = await self._pools.resources(pool)
        free_bytes = resources.space.total - resources.space.used
        fault = free_space_fault(free_bytes, survey.survey.expanded_bytes)
        if fault is not None:
            raise BadRequest(f'Failed restoring backup into storage pool "{pool}": {fault}')

    async def _judge(self, project: str, name: str, survey: BackupSurvey, overrides: Overrides) -> _Judged:
        index = await asyncio.to_thread(parse_index, survey.index, _NAME)
        config = index.config
        if config is None or config.described() is None:
            config = await asyncio.to_thread(parse_config, survey.files.get(f"{_CONTAINER}/backup.yaml", b""), _NAME)
        then = config.described()
        if then is None:
            raise BadBackup(f"Invalid backup {_NAME}: it does not describe an instance")
        if _CONTAINER not in survey.roots:
            raise BadBackup(f"Invalid backup {_NAME}: {_CONTAINER}/rootfs is missing")
        pool = self._pool(project, index, overrides)
        record, expanded = await self._record(project, name, then, pool, overrides)
        record = msgspec.structs.replace(record, metadata=await self._kept(survey, _CONTAINER))
        judged = _Judged(record, expanded)
        for snapshot in _chosen(config, index):
            await self._add_snapshot(judged, snapshot, survey)
        judged.layers.append(Layer("", f"{_CONTAINER}/rootfs", then.config.get("volatile.last_state.idmap", "")))
        return judged

    async def _record(
        self, project: str, name: str, then: Instance, pool: str, overrides: Overrides
    ) -> tuple[InstanceRecord, Expanded]:
        devices = self._devices(project, then, pool, overrides)
        wanted = Wanted(
            profiles=then.profiles,
            config={key: value for key, value in then.config.items() if not _is_kept(key)} | overrides.config,
            devices=devices,
            architecture=then.architecture,
            description=then.description,
            ephemeral=then.ephemeral,
            kept=self._kept_config(then),
        )
        record, expanded = await self._resolver.record(project, name, wanted)
        config = {key: value for key, value in record.config.items() if key != APPLY_TEMPLATE}
        if name == then.name and INSTANCE_ID in then.config:
            config[INSTANCE_ID] = then.config[INSTANCE_ID]
        elif name != then.name:
            config[APPLY_TEMPLATE] = "rename"
        if APPLY_TEMPLATE in then.config:
            config[APPLY_TEMPLATE] = then.config[APPLY_TEMPLATE]
        record = msgspec.structs.replace(record, config=config, created_at=then.created_at)
        return record, expanded

    def _devices(self, project: str, then: Instance, pool: str, overrides: Overrides) -> DeviceEntries:
        """Its own devices, with a root disk on the right pool."""
        devices = {name: dict(entry) for name, entry in then.devices.items()} | overrides.devices
        known = [name for name in then.profiles if self._registry.has_profile(project, name)]
        root = self._registry.expand_with(project, known, {}, devices).root()
        if root is not None and root[1].get("pool") == pool:
            return devices
        was = root or Expanded({}, then.expanded_devices).root() or ("root", {"type": "disk", "path": "/"})
        return devices | {was[0]: {**was[1], "pool": pool}}

    def _kept_config(self, then: Instance) -> Config:
        """image.* and volatile.*, as far as they are true here: a MAC address that is in use here is not."""
        kept = {key: value for key, value in portable_config(then.config).items() if _is_kept(key)}
        own = ("volatile.uuid", INSTANCE_ID, APPLY_TEMPLATE)
        taken = {
            value
            for record in self._registry.all_instances()
            for key, value in record.config.items()
            if key.endswith(".hwaddr")
        }
        return {
            key: value
            for key, value in kept.items()
            if key not in own and not (key.endswith(".hwaddr") and value in taken) and not key.endswith(".host_name")
        }

    async def _kept(self, survey: BackupSurvey, base: str) -> str:
        """What it kept of its image."""
        text = survey.files.get(f"{base}/metadata.yaml")
        if text is None:
            return ""
        with _as_backup():
            metadata: ImageMetadata = parse_metadata(text, _NAME)
        prefix = f"{base}/templates/"
        texts = {
            path.removeprefix(prefix): data.decode(errors="replace")
            for path, data in survey.files.items()
            if path.startswith(prefix)
        }
        return await self._metadata.keep(MetadataRecord(metadata, texts))

    async def _add_snapshot(self, judged: _Judged, then: InstanceSnapshot, survey: BackupSurvey) -> None:
        name = then.name.rpartition("/")[2]  # older ones are called INSTANCE/SNAPSHOT
        check_snapshot_name(name)
        base = f"backup/snapshots/{name}"
        if base not in survey.roots:
            raise BadBackup(f"Invalid backup {_NAME}: {base}/rootfs is missing")
        record = judged.record
        devices = {device: dict(entry) for device, entry in then.devices.items()}
        for device, entry in devices.items():
            if entry.get("type") == "disk" and entry.get("path") == "/":
                devices[device] = {**entry, "pool": record.pool}
        past = msgspec.structs.replace(
            record,
            architecture=then.architecture or record.architecture,
            ephemeral=then.ephemeral,
            profiles=then.profiles,
            config=portable_config(then.config) | {"volatile.uuid": record.config["volatile.uuid"]},
            devices=devices,
            metadata=await self._kept(survey, base),
        )
        made = SnapshotRecord(name, past, then.created_at, then.expires_at)
        judged.snapshots.append(made)
        judged.layers.append(Layer(name, f"{base}/rootfs", then.config.get("volatile.last_state.idmap", "")))

    # --- unpacking ---------------------------------------------------------------------------------------------------

    async def _unpack(self, args: Args, progress: Progress) -> None:
        """The oldest snapshot first; what follows is written as what differs, so that they share the rest."""
        ref, layers = _volume_of(args), msgspec.convert(args["layers"], list[Layer])
        if args["arrived"] is not None:
            await self._adopt(ref, layers, args)
            return
        for number, layer in enumerate(layers):
            fill = self._filler(Path(args["file"]), layer, f"{number + 1}/{len(layers)}", progress)
            if number == 0:
                await self._pools.create_from_tree(ref, args["project"], fill, size_bytes=args["size_bytes"])
            else:
                await self._pools.refresh_from_tree(ref, fill)
            await self._note_snapshot(ref, layer, args)

    async def _adopt(self, ref: VolumeRef, layers: list[Layer], args: Args) -> None:
        arrived = msgspec.convert(args["arrived"], Arrived)
        owners = {layer.snapshot: from_wire(layer.idmap) for layer in layers}
        place, streams, size_bytes = Path(arrived.place), arrived.streams, args["size_bytes"]
        await self._pools.create_from_streams(
            ref, args["project"], place, streams, size_bytes=size_bytes, owners=owners
        )
        for layer in layers:
            await self._note_snapshot(ref, layer, args)

    async def _note_snapshot(self, ref: VolumeRef, layer: Layer, args: Args) -> None:
        if layer.snapshot:
            created_at, expires_at = (msgspec.convert(date, _DATE) for date in args["dates"][layer.snapshot])
            await self._pools.create_snapshot(
                ref, layer.snapshot, args["project"], created_at=created_at, expires_at=expires_at
            )

    def _filler(self, file: Path, layer: Layer, which: str, progress: Progress) -> Any:
        def percent(number: int) -> None:
            progress({"import_progress": f"Unpack {which}: {min(number, 100)}%"})

        async def fill(target: Path) -> None:
            await self._archives.unpack(file, _NAME, target, percent, unified=True, member=layer.member)
            idmap = from_wire(layer.idmap)
            if idmap:
                await self._host.files.shift_tree(target, old=idmap, new=IdMap())

        return fill

    async def _ununpack(self, args: Args) -> None:
        ref = _volume_of(args)
        await self._pools.delete_volume(scratch_of(ref))
        await self._pools.delete_volume(ref)


_NAME = "file"  # of the upload; clients do not tell what theirs is called
_DATE = type(now())


@contextlib.contextmanager
def _as_backup() -> Any:
    """The same rules as for images, told of a backup."""
    try:
        yield
    except BadImage as error:
        raise BadBackup(str(error).replace("Invalid image ", "Invalid backup ", 1)) from error


def _volume_of(args: Args) -> VolumeRef:
    return VolumeRef(args["pool"], "container", args["volume"])


def _is_kept(key: str) -> bool:
    return key.startswith(("image.", "volatile."))


def _chosen(config: BackupConfig, index: BackupIndex) -> list[InstanceSnapshot]:
    """The snapshots that are in the file, the oldest first."""
    found = [snapshot for snapshot in config.snapshots if snapshot.name.rpartition("/")[2] in index.snapshots]
    missing = set(index.snapshots) - {snapshot.name.rpartition("/")[2] for snapshot in found}
    if missing:
        raise BadBackup(f"Invalid backup {_NAME}: snapshot {', '.join(sorted(missing))} is not described")
    return sorted(found, key=lambda snapshot: snapshot.created_at)


def _plan(judged: _Judged, file: Path, arrived: Arrived | None) -> Plan:
    """Undone by a restarted daemon: the file that it was made of is gone then."""
    record = judged.record
    where = {"project": record.project, "name": record.name}
    volume = {
        **where,
        "pool": record.pool,
        "volume": record.storage_name,
        "file": str(file),
        "arrived": None if arrived is None else msgspec.to_builtins(arrived),
        "layers": [msgspec.to_builtins(layer) for layer in judged.layers],
        "dates": {each.name: msgspec.to_builtins((each.created_at, each.expires_at)) for each in judged.snapshots},
        "size_bytes": root_size_bytes(judged.expanded),
    }
    documents = [msgspec.json.encode(each).decode() for each in judged.snapshots]
    return Plan(
        f'restore instance "{record.name}" from a backup',
        (
            Step("instances.record", {**where, "document": msgspec.json.encode(record).decode()}),
            Step("imports.volume", volume),
            Step("copies.snapshots", {**where, "documents": documents}),
        ),
    )


def parse_overrides(headers: Mapping[str, str]) -> Overrides:
    """`name`, `pool`, and (as newer clients send them) `devices` and `config`, which are URL queries; of a device, the
    value is one again."""
    from urllib.parse import parse_qsl

    def pairs(text: str) -> dict[str, str]:
        return dict(parse_qsl(text, keep_blank_values=True))

    return Overrides(
        name=headers.get("name", ""),
        pool=headers.get("pool", ""),
        devices={device: pairs(entry) for device, entry in pairs(headers.get("devices", "")).items()},
        config=pairs(headers.get("config", "")),
    )
