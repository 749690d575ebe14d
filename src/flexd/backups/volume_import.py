# SPDX-License-Identifier: Apache-2.0
"""`POST /1.0/storage-pools/POOL/volumes/custom` with a backup as its body: a volume with its snapshots.

The file is stored, read from end to end and judged, and only then unpacked, confined, into a volume that a journalled
plan makes whole or not at all.
"""

import asyncio
import contextlib
import tarfile
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct, field

from flexd.api.errors import BadRequest, Conflict
from flexd.api.times import ZERO_TIME, now
from flexd.api.units import parse_size
from flexd.backups.document import BadBackup
from flexd.backups.optimized import VOLUME, expected_streams, receive_streams, require_streams
from flexd.backups.parts import Parts
from flexd.backups.volume_format import VolumeIndex, parse_volume_index
from flexd.images.archive import Archives, free_space_fault
from flexd.images.backup_survey import VOLUME as LAYOUT
from flexd.images.backup_survey import BackupSurvey, read_index, survey_backup
from flexd.images.contract import BadImage
from flexd.images.incoming import Incoming
from flexd.images.survey import Limits
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.operations import Operation
from flexd.storage.contract import Stream, VolumeRecord
from flexd.storage.custom import FILESYSTEM, check_config_of, file_of, is_content_type
from flexd.storage.names import check_snapshot_name, check_volume_name, volume_ref, volume_url
from flexd.storage.pools import scratch_of
from flexd.storage.volumes import lock_of, path_of

Args = dict[str, Any]
_NAME = "file"  # of the upload; clients do not tell what theirs is called
_BLOCK_BYTES = 1 << 20


class Layer(Struct, frozen=True):
    """A state of the volume, in the order in which they are unpacked. `snapshot` empty: the volume itself."""

    member: str
    snapshot: str = ""
    description: str = ""
    created_at: datetime = ZERO_TIME
    expires_at: datetime = ZERO_TIME


class _Unpacking(Struct):
    """The arguments of the step that makes the volume. `place` and `streams`: of an optimized backup."""

    record: VolumeRecord
    file: str
    layers: list[Layer]
    place: str = ""
    streams: list[Stream] = field(default_factory=list)


class VolumeImport:
    def __init__(self, parts: Parts, archives: Archives) -> None:
        self._host = parts.host
        self._volumes = parts.volumes
        self._pools = parts.pools
        self._archives = archives
        self._journal = parts.journal
        self._operations = parts.operations
        self._locks = parts.locks
        self._directory = parts.directory
        self._records = parts.records
        parts.journal.register("volume_backups.unpack", self._unpack, self._ununpack)

    async def create(self, pool: str, project: str, name: str, body: AsyncIterator[bytes]) -> Operation:
        """Store the body, and look at its index: what cannot be restored at all is told at once. `name` empty: that of
        the backup."""
        self._pools.driver(pool)
        incoming = await Incoming.make(self._directory)
        try:
            await incoming.write_metadata(body)
            index = await self._index(incoming.metadata)
            record = self._record(pool, project, name, index)
            if index.optimized:
                require_streams(self._pools.driver(pool), index.backend)
        except BaseException:
            await incoming.discard()
            raise

        async def run(operation: Operation) -> None:
            try:
                await self._import(record, index, incoming.metadata, operation.progress)
            finally:
                await incoming.discard()

        resources = {"storage_volumes": [volume_url(record)]}
        return self._operations.start(
            "task", "Restoring custom volume backup", project, resources, run, may_cancel=True
        )

    async def _index(self, file: Path) -> VolumeIndex:
        with _as_backup():
            text = await self._archives.examine(file, _NAME, partial(read_index, name=_NAME))
        return await asyncio.to_thread(parse_volume_index, text, _NAME)

    def _record(self, pool: str, project: str, name: str, index: VolumeIndex) -> VolumeRecord:
        then = index.described()
        name = name or index.name
        check_volume_name(name)
        if not is_content_type(then.content_type):
            raise BadBackup(f'Failed restoring backup {_NAME}: content type "{then.content_type}" is not known')
        record = VolumeRecord(name, pool, "custom", project, then.description, dict(then.config), then.content_type)
        record.config = {key: value for key, value in record.config.items() if not key.startswith("volatile.")}
        record.created_at = then.created_at if then.created_at > ZERO_TIME else now()
        check_config_of(self._pools.record(pool).driver, record)
        for snapshot in index.snapshots:
            check_snapshot_name(snapshot)
        self._check_free(record)
        return record

    def _check_free(self, record: VolumeRecord) -> None:
        if self._records.get(*path_of(record)) is not None:
            raise Conflict("Volume by that name already exists")

    async def _import(self, record: VolumeRecord, index: VolumeIndex, file: Path, progress: Progress) -> None:
        progress({"import_progress": "Checking backup"})
        survey = await self._survey(file)
        await self._check_space(record.pool, survey)
        unpacking = _Unpacking(record, str(file), _layers(index, survey))
        async with contextlib.AsyncExitStack() as stack:
            if index.optimized:
                driver = self._pools.driver(record.pool)
                reception = await stack.enter_async_context(require_streams(driver, index.backend).receiving())
                expected = expected_streams(survey.header, index.snapshots, VOLUME, survey.blobs)
                progress({"import_progress": "Unpacking the streams"})
                with _as_backup():
                    unpacking.streams = await receive_streams(self._archives, file, _NAME, expected, reception)
                unpacking.place = str(reception.place)
            async with self._locks.hold(lock_of(record), "import"):
                self._check_free(record)
                await self._journal.run(_plan(unpacking), progress)
        self._volumes.event("storage-volume-created", record)

    async def _survey(self, file: Path) -> BackupSurvey:
        usage = await self._host.files.filesystem(self._directory)
        size_bytes = (await asyncio.to_thread(file.stat)).st_size
        # An image of a disk is mostly zeros: no ratio tells a bomb from it, the pool's free space does.
        limits = Limits(max(usage.total_bytes, 1), ratio=1 << 20)
        consume = partial(survey_backup, name=_NAME, size_bytes=size_bytes, limits=limits, layout=LAYOUT)
        with _as_backup():
            return await self._archives.examine(file, _NAME, consume)

    async def _check_space(self, pool: str, survey: BackupSurvey) -> None:
        resources = await self._pools.resources(pool)
        free_bytes = resources.space.total - resources.space.used
        fault = free_space_fault(free_bytes, survey.survey.expanded_bytes if not survey.blobs else 0)
        if fault is not None:
            raise BadRequest(f'Failed restoring backup into storage pool "{pool}": {fault}')

    # --- unpacking ---------------------------------------------------------------------------------------------------

    async def _unpack(self, args: Args, progress: Progress) -> None:
        """The oldest snapshot first; what follows is written as what differs, so that they share the rest."""
        unpacking = msgspec.convert(args, _Unpacking)
        if unpacking.place:
            await self._adopt(unpacking)
            return
        record, layers = unpacking.record, unpacking.layers
        ref, size_bytes = volume_ref(record), _size_bytes(record)
        for number, layer in enumerate(layers):
            fill = self._filler(unpacking, layer, f"{number + 1}/{len(layers)}", progress)
            if number == 0:
                await self._pools.create_from_tree(ref, record.project, fill, size_bytes=size_bytes)
            else:
                await self._pools.refresh_from_tree(ref, fill)
            if layer.snapshot:
                await self._pools.create_snapshot(ref, layer.snapshot, record.project)
                await self._note(record, layer)

    async def _adopt(self, unpacking: _Unpacking) -> None:
        record = unpacking.record
        ref, place, order = volume_ref(record), Path(unpacking.place), unpacking.streams
        size_bytes = _size_bytes(record)
        await self._pools.create_from_streams(ref, record.project, place, order, size_bytes=size_bytes, owners={})
        for layer in unpacking.layers:
            if layer.snapshot:
                await self._note(record, layer)

    async def _note(self, record: VolumeRecord, layer: Layer) -> None:
        """A snapshot's document. LXD 5.0 tells no dates: then they are taken in the order of the backup, now."""
        snapshot = msgspec.structs.replace(
            record,
            name=f"{record.name}@{layer.snapshot}",
            description=layer.description,
            created_at=layer.created_at if layer.created_at > ZERO_TIME else now(),
            expires_at=layer.expires_at,
        )
        await self._records.txn([self._records.put(path_of(snapshot), snapshot)])

    def _filler(self, unpacking: _Unpacking, layer: Layer, which: str, progress: Progress) -> Any:
        file, content_type = Path(unpacking.file), unpacking.record.content_type

        def percent(number: int) -> None:
            progress({"import_progress": f"Unpack {which}: {min(number, 100)}%"})

        async def fill(target: Path) -> None:
            image = file_of(target, content_type)
            if image is None:
                await self._archives.unpack(file, _NAME, target, percent, unified=True, member=layer.member)
            else:
                await self._archives.examine(file, _NAME, partial(_extract, member=layer.member, target=image))

        return fill

    async def _ununpack(self, args: Args) -> None:
        ref = volume_ref(msgspec.convert(args, _Unpacking).record)
        await self._pools.delete_volume(scratch_of(ref))
        await self._pools.delete_volume(ref)


def _size_bytes(record: VolumeRecord) -> int:
    """The limit; what is one file has the size of that."""
    return parse_size(record.config.get("size", "")) if record.content_type == FILESYSTEM else 0


def _layers(index: VolumeIndex, survey: BackupSurvey) -> list[Layer]:
    """In the order of the index: the oldest first."""
    filesystem = index.described().content_type == FILESYSTEM
    layers = []
    for name in (*index.snapshots, ""):
        base = f"backup/volume-snapshots/{name}" if name else "backup/volume"
        member = base if filesystem else f"{base}.img"
        if not index.optimized and member not in (survey.roots if filesystem else survey.blobs):
            raise BadBackup(f"Invalid backup {_NAME}: {member} is missing")
        said = index.snapshot(name)
        layers.append(
            Layer(member, name, said.description, said.created_at, said.expires_at) if name else Layer(member)
        )
    return layers


def _plan(unpacking: _Unpacking) -> Plan:
    """Undone by a restarted daemon: the file that it was made of is gone then."""
    record = unpacking.record
    steps = (
        Step("storage.note_volume", {"record": msgspec.to_builtins(record)}),
        Step("volume_backups.unpack", msgspec.to_builtins(unpacking)),
    )
    return Plan(f'restore storage volume "{record.name}" on pool "{record.pool}" from a backup', steps)


def _extract(stream: BinaryIO, *, member: str, target: Path) -> bool:
    """One file of an archive, with holes where it is empty. In a thread."""
    with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 18) as tar:
        for found in tar:
            content = tar.extractfile(found) if found.name.removeprefix("./") == member else None
            if content is not None:
                _write_sparse(iter(partial(content.read, _BLOCK_BYTES), b""), target, found.size)
                return True
    raise BadBackup(f"Invalid backup {_NAME}: {member} is missing")


def _write_sparse(blocks: Iterator[bytes], target: Path, size_bytes: int) -> None:
    empty = bytes(_BLOCK_BYTES)
    with target.open("xb") as file:
        target.chmod(0o600)
        for block in blocks:
            if block == empty:
                file.seek(len(block), 1)
            else:
                file.write(block)
        file.truncate(size_bytes)


@contextlib.contextmanager
def _as_backup() -> Iterator[None]:
    """The same rules as for images, told of a backup."""
    try:
        yield
    except BadImage as error:
        raise BadBackup(str(error).replace("Invalid image ", "Invalid backup ", 1)) from error
