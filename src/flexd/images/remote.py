# SPDX-License-Identifier: Apache-2.0
"""Images over HTTP: LXD's `url` source (a page whose headers name an image), a plain link to an image file, and
the image of another server (pull mode)."""

import hashlib
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import aiohttp

from flexd.api.errors import BadRequest, FlexdError, NotFound
from flexd.api.image import ImageSource, ImagesPostSource
from flexd.api.units import format_size
from flexd.images.incoming import Incoming, UploadPart, check_fingerprint
from flexd.images.sources import Fetched
from flexd.operations.contract import Progress

# No limit on the whole, which may be gigabytes over a slow line; a server that falls silent is given up.
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
_CHUNK_BYTES = 256 << 10


class DownloadFailed(FlexdError):
    def __init__(self, url: str, reason: object) -> None:
        super().__init__(f'Failed downloading image from "{url}": {reason}')


class _Meter:
    """Passes chunks on and tells how far they are: `rootfs: 45% (3.20MiB/s)`."""

    def __init__(self, progress: Progress, total_bytes: int | None) -> None:
        self._progress, self._total_bytes = progress, total_bytes
        self._begun, self._seen_bytes = time.monotonic(), 0

    async def through(self, what: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self._seen_bytes += len(chunk)
            rate = int(self._seen_bytes / max(0.001, time.monotonic() - self._begun))
            done = (
                f"{100 * self._seen_bytes // self._total_bytes}%"
                if self._total_bytes
                else format_size(self._seen_bytes)
            )
            self._progress({"download_progress": f"{what}: {done} ({format_size(rate)}/s)"})
            yield chunk


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest(f'Invalid image source URL "{url}": expected http:// or https://')


class UrlFetch:
    description = "Downloading image"

    def __init__(self, source: ImagesPostSource, architectures: list[str]) -> None:
        _check_url(source.url)
        self._url = source.url
        self._headers = {"LXD-Server-Architectures": ", ".join(architectures), "LXD-Server-Version": "5.0.2"}

    async def into(self, incoming: Incoming, progress: Progress) -> Fetched:
        try:
            async with aiohttp.ClientSession(timeout=_TIMEOUT, headers=self._headers) as session:
                url, fingerprint = await self._locate(session)
                async with session.get(url) as answer:
                    _check_status(answer, url)
                    incoming.filename = unquote(urlsplit(url).path.rpartition("/")[2])
                    meter = _Meter(progress, answer.content_length)
                    await _receive(answer, incoming, meter)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DownloadFailed(self._url, error or "timed out") from error
        check_fingerprint(fingerprint, incoming.fingerprint)
        return Fetched("download_progress")

    async def _locate(self, session: aiohttp.ClientSession) -> tuple[str, str]:
        """(where the image is, its fingerprint or ""). A page that names no image is the image itself."""
        async with session.head(self._url, allow_redirects=True) as answer:
            named = _named(answer, "Image-URL")
            fingerprint = _named(answer, "Image-Hash").lower()
        if not named:
            return self._url, fingerprint
        if not fingerprint:
            raise BadRequest(f'Invalid image source URL "{self._url}": Missing LXD-Image-Hash header')
        _check_url(named)
        return named, fingerprint


def _named(answer: aiohttp.ClientResponse, header: str) -> str:
    return answer.headers.get(f"LXD-{header}") or answer.headers.get(f"Incus-{header}") or ""


def _check_status(answer: aiohttp.ClientResponse, url: str) -> None:
    if answer.status != 200:
        raise DownloadFailed(url, f"the server answered {answer.status} {answer.reason}")


async def _receive(answer: aiohttp.ClientResponse, incoming: Incoming, meter: _Meter) -> None:
    if answer.content_type != "multipart/form-data":
        await incoming.write_metadata(meter.through("image", answer.content.iter_chunked(_CHUNK_BYTES)))
        return
    await incoming.write_parts(_parts(aiohttp.MultipartReader.from_response(answer), meter))


async def _parts(reader: Any, meter: _Meter) -> AsyncIterator[UploadPart]:
    while (part := await reader.next()) is not None:
        name = part.name or ""
        yield UploadPart(name, part.filename or "", meter.through(name, _chunks(part)))


async def _chunks(part: aiohttp.BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(_CHUNK_BYTES):
        yield chunk


class ServerFetch:
    """From another LXD, Incus or flexd that lets us read it: public, or with a secret of `POST images/FP/secret`."""

    description = "Downloading image"

    def __init__(self, source: ImagesPostSource) -> None:
        if source.mode not in ("", "pull"):
            raise BadRequest(f'Invalid image source: mode "{source.mode}" is not supported here (only pull)')
        if source.protocol not in ("", "lxd", "incus"):
            raise BadRequest(f'Invalid image source: protocol "{source.protocol}" is not supported here (only lxd)')
        if not source.server:
            raise BadRequest("Invalid image source: a server is required; images of this server need no copy")
        if not (source.fingerprint or source.alias):
            raise BadRequest("Invalid image source: Must specify one of alias or fingerprint")
        _check_url(source.server)
        self._source = source
        self._base = source.server.rstrip("/") + "/1.0/images"

    async def into(self, incoming: Incoming, progress: Progress) -> Fetched:
        source = self._source
        connector = aiohttp.TCPConnector(ssl=_pinned(source.certificate) if source.certificate else True)
        try:
            async with aiohttp.ClientSession(timeout=_TIMEOUT, connector=connector) as session:
                image = await self._image(session)
                async with session.get(f"{self._base}/{image['fingerprint']}/export", params=self._query()) as answer:
                    _check_status(answer, str(answer.url))
                    meter = _Meter(progress, answer.content_length)
                    await _receive(answer, incoming, meter)
        except (aiohttp.ClientError, TimeoutError, KeyError, TypeError) as error:
            raise DownloadFailed(self._base, error or "timed out") from error
        check_fingerprint(image["fingerprint"], incoming.fingerprint)
        incoming.filename = image.get("filename") or incoming.filename
        used = ImageSource(source.alias, source.certificate, source.image_type, source.protocol or "lxd", source.server)
        return Fetched("download_progress", update_source=used if source.alias else None)

    async def _image(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        fingerprint = self._source.fingerprint
        if not fingerprint:
            name = quote(self._source.alias, safe="")
            fingerprint = (await self._get(session, f"{self._base}/aliases/{name}"))["target"]
        return await self._get(session, f"{self._base}/{fingerprint}")

    async def _get(self, session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
        async with session.get(url, params=self._query()) as answer:
            if answer.status == 404:
                raise NotFound(f'Image not found on server "{self._source.server}"')
            _check_status(answer, url)
            found: dict[str, Any] = (await answer.json())["metadata"]
            return found

    def _query(self) -> dict[str, str]:
        query = {"secret": self._source.secret, "project": self._source.project}
        return {name: value for name, value in query.items() if value}


def _pinned(certificate: str) -> aiohttp.Fingerprint:
    """Trust exactly this certificate (PEM), as LXD's clients pass it along, whoever signed it."""
    try:
        return aiohttp.Fingerprint(hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).digest())
    except ValueError as error:
        raise BadRequest(f"Invalid image source: the certificate is not PEM: {error}") from error
