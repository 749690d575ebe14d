# SPDX-License-Identifier: Apache-2.0
"""Images over HTTP: LXD's `url` source (a page whose headers name an image), a plain link to an image file, and
the image of another server (pull mode)."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import aiohttp
import msgspec
from msgspec import Struct

from flexd.api.errors import BadRequest
from flexd.api.image import Image, ImageAliasesEntry, ImageSource, ImagesPostSource
from flexd.api.times import ZERO_TIME
from flexd.images.contract import ImageNotFound
from flexd.images.incoming import Incoming, UploadPart, check_fingerprint
from flexd.images.meter import Meter
from flexd.images.sources import Fetched, Offer, alias_of
from flexd.images.transfer import (
    CHUNK_BYTES,
    DownloadFailed,
    NotOnServer,
    Session,
    Web,
    check_status,
    check_url,
    reason_of,
)
from flexd.operations.contract import Progress

# An image's record, with all its properties.
_RECORD_BYTES = 1 << 20
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class UrlFetch:
    description = "Downloading image"

    def __init__(self, web: Web, source: ImagesPostSource, architectures: list[str]) -> None:
        check_url(source.url)
        self._web, self._url = web, source.url
        self._headers = {"LXD-Server-Architectures": ", ".join(architectures), "LXD-Server-Version": "5.0.2"}

    async def into(self, incoming: Incoming, progress: Progress) -> Fetched:
        async with self._web.session() as session:
            url, fingerprint = await self._locate(session)
            incoming.filename = unquote(urlsplit(url).path.rpartition("/")[2])
            await receive(session, url, {}, incoming, progress)
        check_fingerprint(fingerprint, incoming.fingerprint)
        return Fetched("download_progress")

    async def _locate(self, session: Session) -> tuple[str, str]:
        """(where the image is, its fingerprint or ""). A page that names no image is the image itself."""
        try:
            async with session.open("HEAD", self._url, allow_redirects=True, headers=self._headers) as answer:
                named = _named(answer, "Image-URL")
                fingerprint = _named(answer, "Image-Hash").lower()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DownloadFailed(self._url, reason_of(error)) from error
        if not named:
            return self._url, fingerprint
        if not fingerprint:
            raise BadRequest(f'Invalid image source URL "{self._url}": Missing LXD-Image-Hash header')
        check_url(named)
        return named, fingerprint


def _named(answer: aiohttp.ClientResponse, header: str) -> str:
    return answer.headers.get(f"LXD-{header}") or answer.headers.get(f"Incus-{header}") or ""


async def receive(session: Session, url: str, query: dict[str, str], incoming: Incoming, progress: Progress) -> None:
    """An image as servers export it: one file, or two as multipart/form-data, which cannot be taken up in the middle
    and is asked for again as a whole."""
    for attempt in range(session.patience.attempts):
        try:
            async with session.open("GET", url, params=query, headers={"Accept-Encoding": "identity"}) as answer:
                check_status(answer, url)
                meter = Meter(progress, answer.content_length)
                if answer.content_type != "multipart/form-data":
                    chunks = session.chunks(url, params=query, first=answer)
                    await incoming.write_metadata(meter.through("image", chunks))
                else:
                    await incoming.write_parts(_parts(aiohttp.MultipartReader.from_response(answer), meter))
            return
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, TimeoutError) as error:
            if attempt + 1 == session.patience.attempts:
                raise DownloadFailed(url, f"{reason_of(error)}, {attempt + 1} times") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise DownloadFailed(url, reason_of(error)) from error
        await incoming.restart()
        await asyncio.sleep(session.patience.pause_s * 2**attempt)


async def _parts(reader: Any, meter: Meter) -> AsyncIterator[UploadPart]:
    while (part := await reader.next()) is not None:
        name = part.name or ""
        yield UploadPart(name, part.filename or "", meter.through(name, _chunks(part)))


async def _chunks(part: aiohttp.BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(CHUNK_BYTES):
        yield bytes(chunk)


def check_copy(offer: Offer, found: str) -> None:
    """The files must be those that the fingerprint names. A registry's image has a digest in its place, which nothing
    here can be checked against."""
    if found != offer.fingerprint and offer.properties.get("type") == "oci":
        name = offer.properties.get("id", "")
        raise BadRequest(
            f'Failed copying image "{offer.fingerprint}": it was made of the OCI image "{name}", whose digest is its '
            "fingerprint; fetch it from its registry instead"
        )
    check_fingerprint(offer.fingerprint, found)


class _AliasAnswer(Struct):
    metadata: ImageAliasesEntry


class _ImageAnswer(Struct):
    metadata: Image


class ServerFetch:
    """From another LXD, Incus or flexd that lets us read it: public, or with a secret of `POST images/FP/secret`."""

    description = "Downloading image"

    def __init__(self, web: Web, source: ImagesPostSource, architecture: str) -> None:
        self._web, self._source, self.architecture = web, source, architecture
        self._base = source.server.rstrip("/") + "/1.0/images"
        self.name = source.fingerprint or source.alias
        # A secret opens the door once: what was fetched with it has no place to look for newer versions.
        alias = "" if source.secret else alias_of(source)
        self.origin = ImageSource(alias, source.certificate, source.image_type, source.protocol or "lxd", source.server)

    async def locate(self) -> Offer:
        try:
            async with self._web.session(self._source.certificate) as session:
                image = await self._image(session)
        except NotOnServer as error:
            raise ImageNotFound(f'Image not found on server "{self._source.server}"') from error
        if image.type not in ("", "container"):
            raise BadRequest(f'Image "{self.name}" of server "{self._source.server}" is for a {image.type}')
        expires_at = None if image.expires_at == ZERO_TIME else image.expires_at
        return Offer(image.fingerprint, self.origin, image.properties, image.filename, expires_at)

    async def receive(self, offer: Offer, incoming: Incoming, progress: Progress) -> None:
        url = f"{self._base}/{offer.fingerprint}/export"
        async with self._web.session(self._source.certificate) as session:
            await receive(session, url, self._query(), incoming, progress)
        check_copy(offer, incoming.fingerprint)
        incoming.filename = offer.filename or incoming.filename

    async def _image(self, session: Session) -> Image:
        fingerprint, alias = self._source.fingerprint, alias_of(self._source)
        if alias and not _FINGERPRINT.fullmatch(fingerprint):
            name = quote(alias, safe="")
            fingerprint = (await self._get(session, f"{self._base}/aliases/{name}", _AliasAnswer)).metadata.target
        url = f"{self._base}/{quote(fingerprint, safe='')}"
        image: Image = (await self._get(session, url, _ImageAnswer)).metadata
        if not _FINGERPRINT.fullmatch(image.fingerprint) or not image.fingerprint.startswith(fingerprint):
            raise DownloadFailed(url, f'the server names another image: "{image.fingerprint[:80]}"')
        return image

    async def _get(self, session: Session, url: str, kind: type[Any]) -> Any:
        text, _ = await session.document(url, _RECORD_BYTES, params=self._query())
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise DownloadFailed(url, f"not an answer of an image server: {error}") from error

    def _query(self) -> dict[str, str]:
        query = {"secret": self._source.secret, "project": self._source.project}
        return {name: value for name, value in query.items() if value}
