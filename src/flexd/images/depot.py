# SPDX-License-Identifier: Apache-2.0
"""The directory of images: `FINGERPRINT`, `FINGERPRINT.rootfs` (split) and what was read of them when they came in.

File names as LXD's; `FINGERPRINT.json` saves reading a whole archive again to know its templates.
"""

import asyncio
import os
import shutil
from pathlib import Path

import msgspec
from msgspec import Struct, field

from flexd.api.errors import FlexdError
from flexd.api.image import ImageMetadata
from flexd.images.applications import Application
from flexd.images.contract import ExportFiles
from flexd.images.formats import HEAD_BYTES, detect
from flexd.images.incoming import PREFIX, Incoming


class Known(Struct):
    """What was read of an image: its metadata, the text of its templates by name, its size when unpacked, and what an
    OCI image is for."""

    metadata: ImageMetadata
    templates: dict[str, str] = field(default_factory=dict)
    expanded_bytes: int = 0
    application: Application | None = None


class Depot:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.stage = directory / ".stage"
        self._known: dict[str, Known] = {}

    async def prepare(self) -> None:
        """Make the directory, and clear it of what a crash left coming in. Before any upload."""
        await asyncio.to_thread(self._prepare)

    def _prepare(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        # Images are other people's file systems, set-user-id programs included: for root only.
        self._directory.chmod(0o700)
        self.stage.mkdir(exist_ok=True)
        for entry in self._directory.iterdir():
            if entry.name.startswith(PREFIX):
                shutil.rmtree(entry, ignore_errors=True)

    async def incoming(self) -> Incoming:
        return await Incoming.make(self._directory)

    @property
    def directory(self) -> Path:
        return self._directory

    def metadata_file(self, fingerprint: str) -> Path:
        """The metadata archive, or the whole of a unified image."""
        return self._directory / fingerprint

    def rootfs_file(self, fingerprint: str) -> Path:
        """The second file of a split image."""
        return self._directory / f"{fingerprint}.rootfs"

    async def is_split(self, fingerprint: str) -> bool:
        return await asyncio.to_thread(self.rootfs_file(fingerprint).exists)

    async def write_known(self, incoming: Incoming, known: Known) -> None:
        await asyncio.to_thread((incoming.directory / "known").write_bytes, msgspec.json.encode(known))

    async def known(self, fingerprint: str) -> Known | None:
        """None if the file is missing, as with images that something else put here."""
        if fingerprint not in self._known:
            try:
                text = await asyncio.to_thread((self._directory / f"{fingerprint}.json").read_bytes)
            except FileNotFoundError:
                return None
            self._known[fingerprint] = msgspec.json.decode(text, type=Known)
        return self._known[fingerprint]

    async def place(self, incoming: Path, fingerprint: str) -> None:
        """Give incoming files their names; idempotent."""
        await asyncio.to_thread(self._place, incoming, fingerprint)

    def _place(self, incoming: Path, fingerprint: str) -> None:
        try:
            for name, final in (("known", ".json"), ("rootfs", ".rootfs"), ("metadata", "")):
                if (incoming / name).exists():
                    os.replace(incoming / name, self._directory / (fingerprint + final))
            os.stat(self._directory / fingerprint)
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise FlexdError(f'Failed storing image "{fingerprint}": {error}') from error
        shutil.rmtree(incoming, ignore_errors=True)

    async def remove(self, fingerprint: str) -> None:
        self._known.pop(fingerprint, None)
        await asyncio.to_thread(self._remove, fingerprint)

    def _remove(self, fingerprint: str) -> None:
        for suffix in ("", ".rootfs", ".json"):
            (self._directory / (fingerprint + suffix)).unlink(missing_ok=True)

    async def export_files(self, fingerprint: str) -> ExportFiles:
        return await asyncio.to_thread(self._export_files, fingerprint)

    def _export_files(self, fingerprint: str) -> ExportFiles:
        metadata, rootfs = self.metadata_file(fingerprint), self.rootfs_file(fingerprint)
        if not rootfs.exists():
            return ExportFiles(metadata, fingerprint + _suffix(metadata))
        return ExportFiles(metadata, f"meta-{fingerprint}{_suffix(metadata)}", rootfs, fingerprint + _suffix(rootfs))


def _suffix(path: Path) -> str:
    with path.open("rb") as file:
        return detect(file.read(HEAD_BYTES), path.name).suffix
