# SPDX-License-Identifier: Apache-2.0
"""HTTP for images: proxies, documents of a bounded size, and downloads that go on where they broke off.

The loop that tries again is our own: a file counts its failures anew whenever bytes came, and hands its pieces on from
inside the loop, where a library's (tenacity's, stamina's) would swallow the generator's end.
"""

import asyncio
import hashlib
import ipaddress
import logging
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from msgspec import Struct

from flexd.api.errors import BadRequest, FlexdError, NotFound
from flexd.images.keys import Settings

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 << 10
_REDIRECTS = 10
# Statuses after which asking again may help (RFC 9110 15.5, 15.6).
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class DownloadFailed(FlexdError):
    def __init__(self, url: str, reason: object) -> None:
        super().__init__(f'Failed downloading image from "{url}": {reason}')


class Unreachable(DownloadFailed):
    """The server cannot be asked now; what was fetched from it before may serve."""


class Patience(Struct, frozen=True):
    """There is no limit on a whole download, which may be gigabytes over a slow line: a server that falls silent is
    given up after `silence_s`. `attempts` in a row without a byte end a download, `reconnects` end it anyway."""

    connect_s: float = 30
    silence_s: float = 60
    attempts: int = 5
    reconnects: int = 50
    pause_s: float = 1.0


class _Transient(Exception):
    """An answer that may be another one next time."""


class Web:
    """Opens sessions; settings are read when they are needed, so that they change live."""

    def __init__(self, settings: Settings, patience: Patience | None = None) -> None:
        self._settings = settings
        self.patience = patience or Patience()

    @asynccontextmanager
    async def session(self, certificate: str = "") -> AsyncIterator["Session"]:
        """`certificate` (PEM): trust exactly this one, as LXD's clients pass it along, whoever signed it."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self.patience.connect_s, sock_read=self.patience.silence_s
        )
        context = await asyncio.to_thread(ssl.create_default_context)
        connector = aiohttp.TCPConnector(ssl=_pinned(certificate) if certificate else context)
        # trust_env: the proxies of the daemon's environment, where the configuration names none.
        async with aiohttp.ClientSession(
            timeout=timeout, connector=connector, trust_env=True, headers={"User-Agent": "flexd"}
        ) as http:
            yield Session(http, self.patience, self._proxy)

    def _proxy(self, url: str) -> str | None:
        parts = urlsplit(url)
        proxy = self._settings(f"core.proxy_{parts.scheme}")
        if not proxy or is_ignored(parts.hostname or "", self._settings("core.proxy_ignore_hosts")):
            return None
        return proxy


class Session:
    """Connections to one server, for one task."""

    def __init__(self, http: aiohttp.ClientSession, patience: Patience, proxy: Any) -> None:
        self._http, self.patience, self._proxy = http, patience, proxy

    @asynccontextmanager
    async def open(self, method: str, url: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """One answer, whatever its status, redirections followed; they never lead from https to http."""
        check_url(url)
        async with self._http.request(
            method, url, proxy=self._proxy(url), max_redirects=_REDIRECTS, **options
        ) as answer:
            if url.startswith("https:") and any(hop.url.scheme != "https" for hop in (*answer.history, answer)):
                raise DownloadFailed(url, f'the server redirects to "{answer.url}", which is not encrypted')
            yield answer

    async def document(
        self, url: str, limit_bytes: int, headers: Mapping[str, str] | None = None, **options: Any
    ) -> tuple[bytes, Mapping[str, str]]:
        """A whole answer and its headers; empty with status 304 if `headers` ask so. `NotFound` on 404."""
        failure: BaseException | None = None
        for attempt in range(self.patience.attempts):
            if attempt:
                await asyncio.sleep(self.patience.pause_s * 2 ** (attempt - 1))
            try:
                async with self.open("GET", url, headers=headers, **options) as answer:
                    if answer.status == 304:
                        return b"", answer.headers
                    check_status(answer, url)
                    return await _read_bounded(answer, url, limit_bytes), answer.headers
            except aiohttp.ClientConnectorError as error:
                # Nobody there, or not who it should be: the person who waits is told at once.
                raise Unreachable(url, reason_of(error)) from error
            except TimeoutError as error:
                raise Unreachable(url, reason_of(error)) from error
            except aiohttp.ServerFingerprintMismatch as error:
                raise DownloadFailed(url, reason_of(error)) from error
            except (_Transient, aiohttp.ClientPayloadError, aiohttp.ServerConnectionError) as error:
                failure = error
            except (aiohttp.ClientError, ValueError) as error:
                raise DownloadFailed(url, reason_of(error)) from error
        raise Unreachable(url, f"{reason_of(failure)}, {self.patience.attempts} times") from failure

    async def chunks(
        self,
        url: str,
        size_bytes: int | None = None,
        *,
        params: Mapping[str, str] | None = None,
        first: aiohttp.ClientResponse | None = None,
    ) -> AsyncIterator[bytes]:
        """A file from its first to its last byte. What breaks off is asked for again from there (RFC 9110 14.2);
        `size_bytes`: how long it must be. `first`: an answer that is open already."""
        part = _Part(url, size_bytes)
        failures = reconnects = 0
        while True:
            came = part.have
            try:
                opened = self.open("GET", url, headers=part.headers(), params=params)
                async with nullcontext(first) if first is not None and not reconnects else opened as answer:
                    skip = part.begin(answer)
                    async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                        piece, skip = chunk[skip:], max(0, skip - len(chunk))
                        if piece:
                            part.count(piece)
                            yield piece
                part.check_whole()
                return
            except (aiohttp.ClientConnectorCertificateError, aiohttp.TooManyRedirects, aiohttp.InvalidURL) as error:
                raise DownloadFailed(url, reason_of(error)) from error
            except (aiohttp.ClientError, TimeoutError, _Transient) as error:
                failures = 1 if part.have > came else failures + 1
                reconnects += 1
                if failures >= self.patience.attempts or reconnects > self.patience.reconnects or _is_final(error):
                    raise DownloadFailed(url, f"{reason_of(error)} ({part})") from error
                log.info('Download of "%s" broke off: %s (%s); trying again', url, reason_of(error), part)
            await asyncio.sleep(self.patience.pause_s * 2 ** (failures - 1))


class _Part:
    """How much of a file is here, and what identifies the file."""

    def __init__(self, url: str, size_bytes: int | None) -> None:
        self._url, self._size_bytes, self._total_bytes = url, size_bytes, size_bytes
        self.have = 0
        self._validator = ""

    def __str__(self) -> str:
        of = "" if self._total_bytes is None else f" of {self._total_bytes}"
        return f"{self.have}{of} bytes came"

    def headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}
        if self.have:
            headers["Range"] = f"bytes={self.have}-"
            if self._validator:
                headers["If-Range"] = self._validator
        return headers

    def begin(self, answer: aiohttp.ClientResponse) -> int:
        """How many bytes of the answer are here already."""
        if self.have and answer.status == 206:
            start = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
            if start is None or int(start[1]) != self.have:
                raise DownloadFailed(self._url, f"asked for bytes from {self.have}, the server sends others")
            return 0
        check_status(answer, self._url)
        if self._size_bytes is not None and answer.content_length not in (None, self._size_bytes):
            raise self._wrong_size(answer.content_length)
        validator = answer.headers.get("ETag", "")
        if self.have and validator != self._validator:
            raise DownloadFailed(self._url, "the file changed on the server while it was downloaded")
        self._validator = "" if validator.startswith("W/") else validator
        self._total_bytes = self._size_bytes if self._size_bytes is not None else answer.content_length
        return self.have

    def count(self, piece: bytes) -> None:
        self.have += len(piece)
        if self._size_bytes is not None and self.have > self._size_bytes:
            raise self._wrong_size(f"more than {self._size_bytes}")

    def check_whole(self) -> None:
        if self._total_bytes is not None and self.have < self._total_bytes:
            raise _Transient("the answer ended early")

    def _wrong_size(self, found: object) -> DownloadFailed:
        return DownloadFailed(self._url, f"expected {self._size_bytes} bytes, the server has {found}")


def check_status(answer: aiohttp.ClientResponse, url: str) -> None:
    if answer.status == 200:
        return
    said = f"the server answered {answer.status} {answer.reason}"
    if answer.status in _TRANSIENT_STATUSES:
        raise _Transient(said)
    if answer.status == 404:
        raise NotOnServer(url, said)
    raise DownloadFailed(url, said)


class NotOnServer(DownloadFailed, NotFound):
    pass


def _is_final(error: BaseException) -> bool:
    """Nobody answers at all, or somebody else does: asking again five times only makes people wait."""
    return isinstance(error, aiohttp.ServerFingerprintMismatch | aiohttp.ClientConnectorSSLError)


async def _read_bounded(answer: aiohttp.ClientResponse, url: str, limit_bytes: int) -> bytes:
    pieces, total = [], 0
    async for piece in answer.content.iter_chunked(CHUNK_BYTES):  # unpacked if it was compressed
        total += len(piece)
        if total > limit_bytes:
            raise DownloadFailed(url, f"the document has more than {limit_bytes} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def reason_of(error: BaseException | None) -> str:
    """Some of aiohttp's errors have no text, some that of the class they wrap."""
    if isinstance(error, aiohttp.TooManyRedirects):
        return f"more than {_REDIRECTS} redirections"
    if isinstance(error, TimeoutError):
        return "the server fell silent"
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return "the server's certificate is not the one that was named"
    return str(error) or type(error).__name__


def check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest(f'Invalid image source URL "{url}": expected http:// or https://')


def _pinned(certificate: str) -> aiohttp.Fingerprint:
    try:
        return aiohttp.Fingerprint(hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).digest())
    except ValueError as error:
        raise BadRequest(f"Invalid image source: the certificate is not PEM: {error}") from error


def is_ignored(host: str, ignored: str) -> bool:
    """Whether `core.proxy_ignore_hosts` names a host."""
    return any(_names(entry.strip().lower(), host.lower()) for entry in ignored.split(",") if entry.strip())


def _names(entry: str, host: str) -> bool:
    if entry in ("*", host) or host.endswith(entry if entry.startswith(".") else f".{entry}"):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
