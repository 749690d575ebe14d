# SPDX-License-Identifier: Apache-2.0
"""Images of simplestreams servers: the index, its signature where a keyring is set, and files checked by hash and size.

An index is remembered; it is asked for again after a minute, and only sent again if it has changed (RFC 9110 13.1.2).
"""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from msgspec import Struct, field

from flexd.api.errors import BadRequest, NotSupported
from flexd.api.image import ImageSource, ImagesPostSource
from flexd.api.simplestreams import INDEX_PATH, StreamFile, StreamImage, find_image, parse_index, parse_products
from flexd.api.times import ZERO_TIME
from flexd.host.contract import Processes
from flexd.images.confine import powerless
from flexd.images.contract import ImageNotFound
from flexd.images.incoming import Incoming
from flexd.images.keys import Settings
from flexd.images.meter import Meter
from flexd.images.programs import read_chain
from flexd.images.sources import Offer, alias_of
from flexd.images.transfer import DownloadFailed, Session, Web, check_url
from flexd.images.urls import is_loopback
from flexd.operations.contract import Progress

# Ubuntu's lists of images have 10 MB.
_DOCUMENT_BYTES = 64 << 20
_DOCUMENTS_LIMIT = 16
_FRESH_S = 60.0
_SERVERS_LIMIT = 8


class _Document(Struct):
    """One that was read, with what tells whether it is still the same."""

    etag: str
    paths: list[str] = field(default_factory=list)
    images: list[StreamImage] = field(default_factory=list)


class _Server(Struct):
    checked_at: float
    documents: dict[str, _Document] = field(default_factory=dict)

    def images(self) -> list[StreamImage]:
        return [image for document in self.documents.values() for image in document.images]


class Streams:
    """All simplestreams servers that were asked for an image."""

    def __init__(self, web: Web, processes: Processes, settings: Settings) -> None:
        self._web, self._processes, self._settings = web, processes, settings
        self._servers: dict[str, _Server] = {}

    async def find(self, server: str, name: str, architecture: str) -> StreamImage:
        """By alias or fingerprint; `Unreachable` if the server cannot be asked."""
        images = await self.images(server)
        found = find_image(images, name, architecture)
        if found is None:
            raise ImageNotFound(f'Image "{name}" for {architecture} not found on server "{server}"')
        return found

    async def images(self, server: str) -> list[StreamImage]:
        base = server.rstrip("/")
        known = self._servers.get(base)
        if known is None or time.monotonic() - known.checked_at > _FRESH_S:
            known = await self._ask(base, known)
            self._servers[base] = known
            while len(self._servers) > _SERVERS_LIMIT:
                del self._servers[next(iter(self._servers))]
        return known.images()

    async def _ask(self, base: str, known: _Server | None) -> _Server:
        keyring = keyring_of(self._settings("images.simplestreams_keyrings"), urlsplit(base).hostname or "")
        _check_server(base, keyring)
        old = known.documents if known else {}
        async with self._web.session() as session:
            reader = _Reader(session, self._processes, keyring, base)
            index = await reader.read(INDEX_PATH, old.get(INDEX_PATH))
            documents = {INDEX_PATH: index}
            for path in index.paths[:_DOCUMENTS_LIMIT]:
                documents[path] = await reader.read(path, old.get(path))
        return _Server(time.monotonic(), documents)


class _Reader:
    """Documents of one server; with a keyring only signed ones (`.sjson`: the same text, signed inline)."""

    def __init__(self, session: Session, processes: Processes, keyring: str, base: str) -> None:
        self._session, self._processes, self._keyring, self._base = session, processes, keyring, base

    async def read(self, path: str, known: _Document | None) -> _Document:
        signed = path.removesuffix(".json") + ".sjson" if self._keyring and path.endswith(".json") else path
        url = f"{self._base}/{signed}"
        conditions = {"If-None-Match": known.etag} if known and known.etag else None
        text, headers = await self._session.document(url, _DOCUMENT_BYTES, conditions)
        if not text and known is not None:
            return known
        if self._keyring:
            text = await verified(self._processes, text, self._keyring, url)
        etag = headers.get("ETag", "")
        if path == INDEX_PATH:
            return _Document(etag, paths=await asyncio.to_thread(parse_index, text, url))
        return _Document(etag, images=await asyncio.to_thread(parse_products, text, url))


class StreamFetch:
    """One image of a simplestreams server."""

    description = "Downloading image"

    def __init__(self, streams: Streams, web: Web, source: ImagesPostSource, architecture: str) -> None:
        self._streams, self._web, self.architecture = streams, web, architecture
        self._base = source.server.rstrip("/")
        self.name = source.alias or source.fingerprint
        alias = alias_of(source)
        self.origin = ImageSource(alias, source.certificate, source.image_type, "simplestreams", source.server)

    async def locate(self) -> Offer:
        found = await self._streams.find(self._base, self.name, self.architecture)
        image = found.image
        expires_at = None if image.expires_at == ZERO_TIME else image.expires_at
        return Offer(image.fingerprint, self.origin, image.properties, image.filename, expires_at)

    async def receive(self, offer: Offer, incoming: Incoming, progress: Progress) -> None:
        found = await self._streams.find(self._base, offer.fingerprint, self.architecture)
        meter = Meter(progress, found.image.size)
        async with self._web.session() as session:
            await incoming.write_metadata(self._chunks(session, found.metadata, "metadata", meter))
            self._check(found.metadata, found.metadata.sha256, incoming)
            if found.rootfs is not None:
                await incoming.write_rootfs(self._chunks(session, found.rootfs, "rootfs", meter))
                # The image's fingerprint is the hash of both; the first was right.
                self._check(found.rootfs, offer.fingerprint, incoming)

    def _chunks(self, session: Session, file: StreamFile, what: str, meter: Meter) -> AsyncIterator[bytes]:
        return meter.through(what, session.chunks(f"{self._base}/{file.path}", file.size_bytes))

    def _check(self, file: StreamFile, expected: str, incoming: Incoming) -> None:
        if incoming.fingerprint != expected:
            url = f"{self._base}/{file.path}"
            raise DownloadFailed(url, f"the SHA-256 is {incoming.fingerprint}, expected {expected}")


def keyring_of(setting: str, host: str) -> str:
    """The keyring that signs a host's indexes, by `images.simplestreams_keyrings`; "" if none is wanted."""
    others = ""
    for entry in filter(None, (word.strip() for word in setting.split(","))):
        name, equals, file = entry.partition("=")
        if not equals:
            others = name
        elif name == host:
            return file
    return others


def _check_server(base: str, keyring: str) -> None:
    """Whoever sits between could send any image over http: only a signature helps there."""
    check_url(base)
    parts = urlsplit(base)
    if parts.scheme == "https" or keyring or is_loopback(parts.hostname or ""):
        return
    raise BadRequest(
        f'Invalid image source URL "{base}": simplestreams over http:// needs a signed index; use https://, or name '
        "the signers' keyring in images.simplestreams_keyrings"
    )


async def verified(processes: Processes, text: bytes, keyring: str, url: str) -> bytes:
    """The text of a document that is signed inline by one of the keyring's keys (gpgv(1))."""
    if not await asyncio.to_thread(os.path.isfile, keyring):
        raise NotSupported(f'Failed checking "{url}": the keyring {keyring} does not exist on this host')
    signed = await asyncio.to_thread(_temporary, text)
    try:
        command = powerless(["gpgv", "--quiet", "--keyring", str(Path(keyring).absolute()), "--output", "-"])
        outcome = await read_chain(processes, [command], stdin=signed.fileno(), consume=_read)
    finally:
        signed.close()
    program = outcome.programs[0]
    if program.returncode != 0 or not outcome.result:
        said = [line.removeprefix("gpgv: ") for line in program.messages.splitlines() if line.strip()]
        raise DownloadFailed(url, f"its signature is not good: {'; '.join(said[-3:]) or program.returncode}")
    return outcome.result


def _temporary(text: bytes) -> BinaryIO:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(text)
    file.flush()
    file.seek(0)
    return file


def _read(stream: BinaryIO) -> bytes:
    return stream.read(_DOCUMENT_BYTES)
