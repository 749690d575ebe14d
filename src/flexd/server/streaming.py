# SPDX-License-Identifier: Apache-2.0
"""Bodies of any size between the connection and a file descriptor, in pieces read and written in threads."""

import asyncio
import os
import re
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path

from aiohttp import hdrs, web
from aiohttp.multipart import BodyPartReader

from flexd.api.errors import FlexdError, NotFound

PIECE_BYTES = 128 * 1024
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class RangeUnsatisfiable(FlexdError):
    status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


async def send_path(request: web.Request, path: Path, name: str) -> web.StreamResponse:
    """The file at a path of our own, offered under a name."""
    try:
        fd = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f'Failed reading "{name}": there is no such file') from error
    try:
        return await send_fd(request, fd, name)
    finally:
        os.close(fd)


async def send_fd(
    request: web.Request, fd: int, name: str, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """What is in an open file, or the range of it that was asked for (RFC 9110 14); HEAD: only the headers."""
    found = await asyncio.to_thread(os.fstat, fd)
    start, end = _wanted_range(request.headers.get(hdrs.RANGE), found.st_size)
    response = web.StreamResponse(headers=dict(headers or {}))
    response.content_type = "application/octet-stream"
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["Content-Disposition"] = f"inline;filename={name}"
    response.headers["Last-Modified"] = formatdate(found.st_mtime, usegmt=True)
    response.content_length = end - start
    if hdrs.RANGE in request.headers and (start, end) != (0, found.st_size):
        response.set_status(HTTPStatus.PARTIAL_CONTENT)
        response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.st_size}"
    await response.prepare(request)
    if request.method != hdrs.METH_HEAD:
        await _write_range(response, fd, start, end)
    await response.write_eof()
    return response


async def _write_range(response: web.StreamResponse, fd: int, start: int, end: int) -> None:
    while start < end:
        piece = await asyncio.to_thread(os.pread, fd, min(PIECE_BYTES, end - start), start)
        if not piece:
            raise FlexdError(f"the file became {end - start} bytes shorter while it was sent")
        await response.write(piece)
        start += len(piece)


def _wanted_range(header: str | None, size_bytes: int) -> tuple[int, int]:
    """[start, end) of one byte range; several ranges, or a malformed header, mean the whole (RFC 9110 14.2)."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[1] == match[2] == "":
        return 0, size_bytes
    if match[1] == "":
        start, end = max(size_bytes - int(match[2]), 0), size_bytes
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size_bytes) if match[2] else size_bytes
    if start >= end:
        raise RangeUnsatisfiable(f"Range {header} is outside of the file's {size_bytes} bytes")
    return start, end


async def receive_fd(request: web.Request, fd: int) -> int:
    """Write the request's body to an open file; returns its length."""
    total = 0
    async for piece in request.content.iter_chunked(PIECE_BYTES):
        await asyncio.to_thread(_write_all, fd, piece)
        total += len(piece)
    return total


def _write_all(fd: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(fd, view) :]


async def receive_path(reader: web.Request | BodyPartReader, path: Path) -> int:
    """Write a body, or one part of it, to a new file of our own; returns its length."""
    fd = await asyncio.to_thread(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if isinstance(reader, BodyPartReader):
            return await _receive_part(reader, fd)
        return await receive_fd(reader, fd)
    finally:
        await asyncio.to_thread(os.close, fd)


async def _receive_part(part: BodyPartReader, fd: int) -> int:
    total = 0
    while piece := await part.read_chunk(PIECE_BYTES):
        await asyncio.to_thread(_write_all, fd, piece)
        total += len(piece)
    return total
