# SPDX-License-Identifier: Apache-2.0
"""Files on their way in: written to a hidden directory, hashed as they are written, gone unless they are placed."""

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import IO, ParamSpec, TypeVar
from urllib.parse import parse_qs, parse_qsl

from msgspec import Struct, field

from flexd.api.errors import BadRequest, FlexdError
from flexd.api.units import parse_bool
from flexd.images.contract import BadImage

P = ParamSpec("P")
T = TypeVar("T")

PREFIX = ".incoming-"
# Hashing and writing a MiB takes about a millisecond: enough for a trip to a thread to cost nothing beside it.
_BLOCK_BYTES = 1 << 20
_METADATA_PARTS = ("metadata",)
_ROOTFS_PARTS = ("rootfs", "rootfs.img")


class UploadPart(Struct, frozen=True):
    """A part of a multipart/form-data body, in the order of the body; `chunks` must be read before the next part."""

    name: str
    filename: str
    chunks: AsyncIterator[bytes]


class UploadHeaders(Struct, frozen=True):
    """What X-LXD-* (or X-Incus-*) headers of `POST /1.0/images` say."""

    filename: str = ""
    fingerprint: str = ""
    public: bool = False
    profiles: list[str] | None = None
    properties: dict[str, str] = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)
    secret: str = ""


def parse_upload_headers(headers: Mapping[str, str]) -> UploadHeaders:
    """Lists and maps in them are URL queries (`profile=a&profile=b`, `os=Debian&release=12`)."""
    lowered = {name.lower(): value for name, value in headers.items()}

    def get(name: str) -> str:
        return lowered.get(f"x-lxd-{name}") or lowered.get(f"x-incus-{name}") or ""

    return UploadHeaders(
        filename=get("filename"),
        fingerprint=get("fingerprint").lower(),
        public=parse_bool(get("public")),
        profiles=parse_qs(get("profiles")).get("profile") or None,
        properties=dict(parse_qsl(get("properties"))),
        aliases=parse_qs(get("aliases")).get("alias", []),
        secret=get("secret"),
    )


class Incoming:
    """A metadata file (or the one file of a unified image) and perhaps a root file system."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metadata = directory / "metadata"
        self.rootfs = directory / "rootfs"
        self.filename = ""
        self._hash = hashlib.sha256()
        self._packed = ""
        self.size_bytes = 0
        self.has_rootfs = False

    @classmethod
    async def make(cls, below: Path) -> "Incoming":
        return cls(Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=PREFIX, dir=below)))

    async def restart(self) -> None:
        """Forget what was written, to write it again."""
        for path in (self.metadata, self.rootfs):
            await asyncio.to_thread(path.unlink, missing_ok=True)
        self._hash, self.size_bytes, self.has_rootfs = hashlib.sha256(), 0, False

    async def discard(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    @property
    def fingerprint(self) -> str:
        """sha256 of the file, or of both, one after the other."""
        return self._packed or self._hash.hexdigest()

    async def write_metadata(self, chunks: AsyncIterator[bytes]) -> None:
        await self._write(self.metadata, chunks)

    async def write_rootfs(self, chunks: AsyncIterator[bytes]) -> None:
        self.has_rootfs = True
        await self._write(self.rootfs, chunks)

    async def write_parts(self, parts: AsyncIterator[UploadPart]) -> None:
        """A split image: the part `metadata`, then `rootfs` (names and order as LXD's clients send them)."""
        seen: list[str] = []
        async for part in parts:
            seen.append(part.name)
            if part.name in _METADATA_PARTS and len(seen) == 1:
                self.filename = part.filename
                await self.write_metadata(part.chunks)
            elif part.name in _ROOTFS_PARTS and len(seen) == 2:
                await self.write_rootfs(part.chunks)
            else:
                break
        if len(seen) != 2 or not self.has_rootfs:
            got = ", ".join(f'"{name}"' for name in seen) or "none"
            raise BadImage(
                f'Invalid multipart image: expected the parts "metadata" and "rootfs" in this order, got {got}'
            )

    def packed(self, fingerprint: str, size_bytes: int) -> None:
        """Somebody has written `metadata`, a unified image, and hashed it."""
        self._packed, self.size_bytes = fingerprint, size_bytes

    def call(self, fingerprint: str) -> None:
        """Its fingerprint is not the files' hash but the digest of the OCI image that they were made of."""
        self._packed = fingerprint

    async def adopt(self) -> None:
        """Hash files that somebody else has written to `metadata` and `rootfs`."""
        self.has_rootfs = await asyncio.to_thread(self.rootfs.exists)
        for path in (self.metadata, self.rootfs) if self.has_rootfs else (self.metadata,):
            await asyncio.to_thread(self._hash_file, path)

    def _hash_file(self, path: Path) -> None:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                self._hash.update(block)
                self.size_bytes += len(block)
            os.fsync(file.fileno())

    async def _write(self, path: Path, chunks: AsyncIterator[bytes]) -> None:
        file = await _stored(path, path.open, "xb")
        try:
            pending: list[bytes] = []
            pending_bytes = 0
            async for chunk in chunks:
                pending.append(chunk)
                pending_bytes += len(chunk)
                if pending_bytes >= _BLOCK_BYTES:
                    await _stored(path, self._append, file, pending)
                    pending, pending_bytes = [], 0
            await _stored(path, self._append, file, pending)
            await _stored(path, _sync, file)
        finally:
            await asyncio.to_thread(file.close)

    def _append(self, file: IO[bytes], blocks: list[bytes]) -> None:
        for block in blocks:
            self._hash.update(block)
            self.size_bytes += file.write(block)


async def _stored(path: Path, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call in a thread; what the disk complains of becomes our error (a broken upload's OSError stays itself)."""
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except OSError as error:
        raise FlexdError(f"Failed storing image: write {path}: {error.strerror or error}") from error


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def check_fingerprint(wanted: str, found: str) -> None:
    if wanted and wanted != found:
        raise BadRequest(f"fingerprints don't match, got {found} expected {wanted}")
