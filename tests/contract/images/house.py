# SPDX-License-Identifier: Apache-2.0
"""The parts that image tests handle, and the short ways to use them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from flexd.images.images import Images
from flexd.images.incoming import UploadHeaders, UploadPart
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.operations import Operation, Operations


class Failed(Exception):
    """An operation that did not succeed, with its error."""


class House(Struct):
    images: Images
    journal: Journal
    events: Events
    operations: Operations
    directory: Path
    unlinked: list[str]
    settings: dict[str, str]

    async def upload(self, data: bytes, rootfs: bytes | None = None, headers: UploadHeaders | None = None) -> str:
        """Import a unified image, or with `rootfs` a split one; returns its fingerprint."""
        headers = headers or UploadHeaders()
        if rootfs is None:
            operation = await self.images.create_from_upload("default", chunks(data), headers, multipart=False)
        else:
            body = parts(("metadata", data), ("rootfs", rootfs))
            operation = await self.images.create_from_upload("default", body, headers, multipart=True)
        result = await ended(operation)
        fingerprint: str = result["fingerprint"]
        return fingerprint

    def files(self) -> list[str]:
        """What lies in the images' directory."""
        return sorted(path.name for path in self.directory.iterdir() if path.name != ".stage")


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 60_000):
        yield data[start : start + 60_000]


async def parts(*named: tuple[str, bytes]) -> AsyncIterator[UploadPart]:
    for name, data in named:
        yield UploadPart(name, f"{name}.tar", chunks(data))


async def ended(operation: Operation) -> dict[str, Any]:
    await operation.wait()
    if operation.status != "Success":
        raise Failed(operation.err or operation.status)
    return operation.metadata
