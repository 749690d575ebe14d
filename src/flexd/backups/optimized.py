# SPDX-License-Identifier: Apache-2.0
"""The parts of a backup that are a storage driver's own streams: what they are called, and how they are read again."""

import asyncio
import contextlib
import os
import tarfile
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct, field

from flexd.api.errors import BadRequest
from flexd.backups.document import BadBackup, dump, parse
from flexd.images.archive import Archives
from flexd.images.backup_survey import HEADER
from flexd.images.pack import Part, Text, Written
from flexd.storage.contract import Driver, Outgoing, Reception, Stream, Streams

_PIECE_BYTES = 1 << 20


class Naming(Struct, frozen=True):
    """`backup/container.bin` and `backup/snapshots/s0.bin`."""

    volume: str
    snapshots: str

    def member(self, stream: Stream) -> str:
        """Of a subvolume inside, its path follows: `backup/container_rootfs-a.bin`."""
        inside = stream.path.strip("/").replace("-", "--").replace("/", "-")
        base = f"{self.snapshots}/{stream.snapshot}" if stream.snapshot else self.volume
        return f"backup/{base}{f'_{inside}' if inside else ''}.bin"


INSTANCE = Naming("container", "snapshots")
VOLUME = Naming("volume", "volume-snapshots")


class _Header(Struct):
    subvolumes: list[Stream] = field(default_factory=list)


def stream_parts(outgoing: Sequence[Outgoing], naming: Naming) -> list[Part]:
    """optimized_header.yaml and the streams."""
    described = [
        {"path": each.stream.path, "snapshot": each.stream.snapshot, "readonly": each.stream.readonly}
        | {"uuid": each.stream.uuid}
        for each in outgoing
    ]
    parts: list[Part] = [Text(HEADER, dump({"subvolumes": described}))]
    return parts + [Written(naming.member(each.stream), each.write) for each in outgoing]


def expected_streams(header: bytes, snapshots: Sequence[str], naming: Naming, blobs: set[str]) -> dict[str, Stream]:
    """Which member is which stream. Without a header (`optimized_header: false`), one for each snapshot and one for the
    volume."""
    if header:
        found = parse(header, _Header, "optimized_header.yaml").subvolumes
    else:
        found = [*(Stream(snapshot) for snapshot in snapshots), Stream()]
    expected = {naming.member(stream): stream for stream in found}
    tops = [stream.snapshot for stream in found if stream.path == "/"]
    if sorted(tops) != sorted([*snapshots, ""]) or len(expected) != len(found):
        raise BadBackup("Invalid optimized_header.yaml: it does not fit the snapshots of index.yaml")
    missing = sorted(set(expected) - blobs)
    if missing:
        raise BadBackup(f"Invalid backup: {missing[0]} is missing")
    return expected


def require_streams(driver: Driver, backend: str) -> Streams:
    """LXD's words where a pool can't read another driver's streams."""
    if driver.streams is None or driver.name != backend:
        raise BadRequest(
            f'Optimized backup storage driver "{backend}" differs from the target storage pool driver "{driver.name}"'
        )
    return driver.streams


async def receive_streams(
    archives: Archives, file: Path, name: str, expected: Mapping[str, Stream], reception: Reception
) -> list[Stream]:
    """Read an archive once and give the pool each stream as it comes by; returns them in that order."""
    given_up = threading.Event()
    consume = partial(
        _pass_on, expected=expected, reception=reception, loop=asyncio.get_running_loop(), given_up=given_up
    )
    reading = asyncio.create_task(archives.examine(file, name, consume))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        given_up.set()
        await asyncio.wait([reading])
        raise


def _pass_on(
    stream: BinaryIO,
    *,
    expected: Mapping[str, Stream],
    reception: Reception,
    loop: asyncio.AbstractEventLoop,
    given_up: threading.Event,
) -> list[Stream]:
    """In a thread."""
    taken: list[Stream] = []
    with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 18) as tar:
        for member in tar:
            wanted = expected.get(member.name.removeprefix("./"))
            content = tar.extractfile(member) if wanted is not None else None
            if wanted is None or content is None:
                continue
            source, sink = os.pipe()
            arriving = asyncio.run_coroutine_threadsafe(_take(reception, wanted, source), loop)
            with contextlib.suppress(BrokenPipeError), open(sink, "wb") as pipe:  # the reader says why it closed
                # Once somebody has given up the stream ends early: it is not whole, and refused.
                while not given_up.is_set() and (block := content.read(_PIECE_BYTES)):
                    pipe.write(block)
            arriving.result()
            taken.append(wanted)
    return taken


async def _take(reception: Reception, stream: Stream, source: int) -> None:
    try:
        await reception.take(stream, source)
    finally:
        os.close(source)
