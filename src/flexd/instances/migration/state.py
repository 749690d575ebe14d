# SPDX-License-Identifier: Apache-2.0
"""The images of a saved state on a channel: each file by name and size, then its bytes; an empty name ends it all."""

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from flexd.instances.migration.messages import BadMessage
from flexd.instances.migration.peer import MigrationFailed, PeerGone
from flexd.operations.contract import Channel

# What CRIU and we call files. No directory but one can be named, nothing hidden, nothing of ours but the notes.
_NAME = re.compile(r"(?:criu/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
_MOST_FILES = 1_000_000
_PIECE_BYTES = 1 << 20
# A record of what was done, not of what is.
_LEFT_OUT = re.compile(r".*\.log|stats-.*|irmap-cache")


class File(Struct):
    name: str
    size_bytes: int


async def send_state(images: Path, channel: Channel, count: Callable[[int], None]) -> None:
    try:
        for name, path in await asyncio.to_thread(_files, images):
            with await asyncio.to_thread(path.open, "rb") as file:
                left = os.fstat(file.fileno()).st_size
                await channel.send(msgspec.json.encode(File(name, left)))
                while left:
                    piece = await asyncio.to_thread(file.read, min(left, _PIECE_BYTES))
                    if not piece:
                        raise MigrationFailed(f"{path} became shorter while it was sent")
                    left -= len(piece)
                    count(len(piece))
                    await channel.send(piece)
        await channel.send("")
    except ConnectionError as error:
        raise PeerGone from error


async def receive_state(images: Path, channel: Channel, count: Callable[[int], None], most_bytes: int) -> None:
    """Into a new directory. `most_bytes`: more than this does not belong to what was offered."""
    await asyncio.to_thread(_make, images)
    total = 0
    for _ in range(_MOST_FILES):
        message = await channel.receive()
        if message is None:
            raise PeerGone
        if isinstance(message, str):
            return
        told = _told(message)
        total += told.size_bytes
        if total > most_bytes:
            raise BadMessage(f"the state is larger than {most_bytes} bytes")
        with await asyncio.to_thread(_create, images / told.name) as file:
            await _receive_file(file, told, channel, count)
    raise BadMessage("the state has too many files")


async def _receive_file(file: IO[bytes], told: File, channel: Channel, count: Callable[[int], None]) -> None:
    left = told.size_bytes
    while left:
        piece = await channel.receive()
        if piece is None:
            raise PeerGone
        if isinstance(piece, str) or len(piece) > left:
            raise BadMessage(f"the file {told.name} is not as long as was said")
        left -= len(piece)
        count(len(piece))
        await asyncio.to_thread(file.write, piece)


def _told(message: bytes) -> File:
    try:
        told = msgspec.json.decode(message, type=File)
    except msgspec.DecodeError as error:
        raise BadMessage(error) from error
    if _NAME.fullmatch(told.name) is None or told.size_bytes < 0:
        raise BadMessage(f"no file of a state has the name {told.name!r} and {told.size_bytes} bytes")
    return told


def _files(images: Path) -> list[tuple[str, Path]]:
    found = [path for path in (*images.glob("*"), *images.glob("criu/*")) if path.is_file()]
    return [(str(path.relative_to(images)), path) for path in sorted(found) if not _LEFT_OUT.fullmatch(path.name)]


def _make(images: Path) -> None:
    (images / "criu").mkdir(mode=0o711, parents=True)
    images.chmod(0o700)


def _create(path: Path) -> IO[bytes]:
    """World-readable inside a directory that is not: restored processes read their own memory there."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    return os.fdopen(fd, "wb", buffering=0)
