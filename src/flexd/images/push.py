# SPDX-License-Identifier: Apache-2.0
"""Sending an image to another server, which gave our client a secret for it (API extension images_push_relay)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any, BinaryIO
from urllib.parse import urlencode

import aiohttp
import msgspec

from flexd.api.errors import BadRequest, FlexdError
from flexd.api.image import ImageExportPost
from flexd.images.contract import ExportFiles, ImageRecord
from flexd.images.meter import Meter
from flexd.images.transfer import CHUNK_BYTES, Session, Web, check_url, reason_of
from flexd.operations.contract import Progress


class PushFailed(FlexdError):
    def __init__(self, fingerprint: str, target: str, reason: object) -> None:
        super().__init__(f'Failed pushing image "{fingerprint}" to "{target}": {reason}')


def check_push(post: ImageExportPost) -> None:
    check_url(post.target)
    if not post.secret:
        raise BadRequest("Invalid push of an image: the target's secret is required")


async def push(web: Web, record: ImageRecord, files: ExportFiles, post: ImageExportPost, progress: Progress) -> None:
    """Upload, and wait until the target has checked and recorded it."""
    base = post.target.rstrip("/")
    query = {"project": post.project} if post.project else {}
    with ExitStack() as stack:
        opened = [(path, stack.enter_context(await asyncio.to_thread(path.open, "rb"))) for path in _paths(files)]
        async with web.session(post.certificate) as session:
            try:
                answer = await _upload(session, f"{base}/1.0/images", query, record, files, post, opened, progress)
                await _wait(session, base, answer, post.secret)
            except (aiohttp.ClientError, TimeoutError, _Refused, msgspec.DecodeError) as error:
                raise PushFailed(record.fingerprint, base, reason_of(error)) from error


class _Refused(Exception):
    pass


def _paths(files: ExportFiles) -> list[Any]:
    return [files.metadata] if files.rootfs is None else [files.metadata, files.rootfs]


async def _upload(
    session: Session,
    url: str,
    query: dict[str, str],
    record: ImageRecord,
    files: ExportFiles,
    post: ImageExportPost,
    opened: list[tuple[Any, BinaryIO]],
    progress: Progress,
) -> dict[str, Any]:
    headers = _headers(record, post)
    meter = Meter(progress, record.size, "upload_progress")
    if files.rootfs is None:
        headers["Content-Type"] = "application/octet-stream"
        headers["Content-Length"] = str(record.size)
        body: Any = meter.through("image", _read(opened[0][1]))
    else:
        body = aiohttp.FormData()
        for name, filename, (_, file) in zip(
            ("metadata", "rootfs"), (files.metadata_name, files.rootfs_name), opened, strict=True
        ):
            body.add_field(name, file, filename=filename, content_type="application/octet-stream")
        progress({"upload_progress": "image"})
    async with session.open("POST", url, params=query, data=body, headers=headers) as answer:
        return _envelope(await answer.read(), answer.status)


def _headers(record: ImageRecord, post: ImageExportPost) -> dict[str, str]:
    headers = {
        "fingerprint": record.fingerprint,
        "secret": post.secret,
        "filename": record.filename,
        "public": "true" if record.public else "false",
        "properties": urlencode(record.properties),
        "aliases": urlencode([("alias", alias.name) for alias in post.aliases]),
        "profiles": urlencode([("profile", name) for name in post.profiles]),
    }
    return {f"X-LXD-{name}": value for name, value in headers.items() if value}


async def _read(file: BinaryIO) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield piece


async def _wait(session: Session, base: str, envelope: dict[str, Any], secret: str) -> None:
    """Until the target's operation has ended; the secret opens it to us, who are not trusted there."""
    url = f"{base}{envelope['operation']}/wait"
    async with session.open("GET", url, params={"secret": secret}, timeout=_NO_LIMIT) as answer:
        ended = _envelope(await answer.read(), answer.status)["metadata"]
    if ended["status_code"] != 200:
        raise _Refused(ended["err"] or ended["status"])


# Checking and recording an image may take minutes, in which the target has nothing to say.
_NO_LIMIT = aiohttp.ClientTimeout(total=None)


def _envelope(text: bytes, status: int) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    if answer.get("type") == "error" or status >= 400:
        raise _Refused(answer.get("error") or f"the server answered {status}")
    return answer
