# SPDX-License-Identifier: Apache-2.0
"""`dir`: every volume a plain directory, the image unpacked into each; works on any file system.

`containers/c1/data` holds the files with ids as the container sees them; `containers/c1/rootfs` shows them through an
idmapped bind mount, so toggling `security.privileged` rewrites nothing. Snapshots are copies (reflinks where the file
system has them).
"""

import asyncio
from pathlib import Path

from flexd.api.idmap import IdMap
from flexd.storage.contract import Unpack, VolumeKind
from flexd.storage.snapshots import SnapshotDriver


class DirDriver(SnapshotDriver):
    name = "dir"
    version = "1"
    optimized_images = False

    async def probe(self) -> str | None:
        return None

    async def has_image(self, fingerprint: str) -> bool:
        del fingerprint
        return False

    async def create_image(self, fingerprint: str, unpack: Unpack) -> None:
        """Images are unpacked into each volume: nothing to keep."""

    async def delete_image(self, fingerprint: str) -> None:
        pass

    async def create_from_image(
        self, kind: VolumeKind, name: str, fingerprint: str, unpack: Unpack, *, size_bytes: int
    ) -> None:
        del fingerprint

        async def fill(staging: Path) -> None:
            await unpack(staging / "data")

        await self._create(kind, name, size_bytes=size_bytes, fill=fill)

    async def _lay_out(self, volume: Path, *, bare: bool) -> None:
        if not bare:
            await self._make_data(volume / "data", 0o755)
        await asyncio.to_thread((volume / "rootfs").mkdir, mode=0o700)

    async def _mount(self, volume: Path, idmap: IdMap) -> None:
        await self._bind_data(volume / "data", volume / "rootfs", idmap)

    async def _change_idmap(self, volume: Path, old: IdMap | None, new: IdMap) -> None:
        """Ids on disk are the container's own under every map."""
        del old
        await asyncio.to_thread(self._admit, volume, new)


DRIVER = DirDriver
