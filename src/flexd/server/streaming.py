# SPDX-License-Identifier: Apache-2.0
"""Bodies of any size between the connection and a file descriptor, in pieces read and written in threads."""

import asyncio
import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path

from aiohttp import hdrs, web
from msgspec import Struct

from flexd.api.errors import FlexdError, NotFound

PIECE_BYTES = 512 * 1024
# How much of a body is kept while a slow disk is written to.
_HELD_BYTES = 4 << 20
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
    """Write the request's body to an open file; returns its length. What comes in while a thread writes is written
    next, so that neither waits for the other."""
    total, pending, pending_bytes = 0, list[bytes](), 0
    writing: asyncio.Future[None] | None = None
    try:
        async for piece in request.content.iter_any():
            pending.append(piece)
            pending_bytes += len(piece)
            if pending_bytes >= PIECE_BYTES and (writing is None or writing.done() or pending_bytes >= _HELD_BYTES):
                if writing is not None:
                    await writing
                writing = asyncio.ensure_future(asyncio.to_thread(_write_all, fd, pending))
                total, pending, pending_bytes = total + pending_bytes, [], 0
        if writing is not None:
            await writing
        await asyncio.to_thread(_write_all, fd, pending)
        return total + pending_bytes
    finally:
        # The descriptor is closed by the caller, and its number may be another file's then.
        if writing is not None and not writing.done():
            await asyncio.wait([writing])


def _write_all(fd: int, pieces: list[bytes]) -> None:
    view = memoryview(b"".join(pieces))
    while view:
        view = view[os.write(fd, view) :]


class FilePart(Struct, frozen=True):
    """One file of a multipart/form-data answer."""

    field: str
    name: str
    path: Path


async def send_parts(request: web.Request, parts: Sequence[FilePart], *, boundary: str) -> web.StreamResponse:
    """Files one after the other as multipart/form-data (RFC 7578), their length known beforehand."""
    with contextlib.ExitStack() as stack:
        bodies = []
        for part in parts:
            fd = await asyncio.to_thread(os.open, part.path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            bodies.append((_part_head(part, boundary), fd, (await asyncio.to_thread(os.fstat, fd)).st_size))
        tail = f"--{boundary}--\r\n".encode()
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: f"multipart/form-data; boundary={boundary}"})
        response.content_length = sum(len(head) + size + 2 for head, _, size in bodies) + len(tail)
        await response.prepare(request)
        if request.method != hdrs.METH_HEAD:
            for head, fd, size in bodies:
                await response.write(head)
                await _write_range(response, fd, 0, size)
                await response.write(b"\r\n")
            await response.write(tail)
        await response.write_eof()
        return response


def _part_head(part: FilePart, boundary: str) -> bytes:
    disposition = f'form-data; name="{part.field}"; filename="{part.name}"'
    head = f"--{boundary}\r\nContent-Disposition: {disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"
    return head.encode()
