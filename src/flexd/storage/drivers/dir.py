# SPDX-License-Identifier: Apache-2.0
"""`dir`: every volume a plain directory, the image unpacked into each; works on any file system.

`containers/c1/data` holds the files with ids as the container sees them; `containers/c1/rootfs` shows them through an
idmapped bind mount, so toggling `security.privileged` rewrites nothing. Where this kernel makes none (flexd in a
container), owners on disk are rewritten. Snapshots are copies (reflinks where the file system has them).
"""

import asyncio
from pathlib import Path

from flexd.api.idmap import IdMap
from flexd.storage.contract import IdmapUnsupported, Unpack, VolumeKind
from flexd.storage.facts import parse_idmap, read_fact, render_idmap, write_fact
from flexd.storage.snapshots import SnapshotDriver

# Facts beside `data`: the map that owners on disk are under, and one that they are on the way to.
_OWNERS, _UNFINISHED = "owners", "owners-next"


class DirDriver(SnapshotDriver):
    name = "dir"
    version = "1"
    optimized_images = False
    _without_idmaps: bool | None = None

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

    async def _bind_data(self, source: Path, target: Path, idmap: IdMap, *, readonly: bool = False) -> None:
        if await self._rewrites():
            await self._own_under(source.parent, idmap)
            await self._host.mounts.bind(source, target, readonly=readonly)
        else:
            await super()._bind_data(source, target, idmap, readonly=readonly)

    async def _clone(self, source: Path, target: Path) -> None:
        """Copies have ids as the container sees them, whatever their source is under."""
        await super()._clone(source, target)
        old = await asyncio.to_thread(_owners, source.parent)
        if old:
            await self._host.files.shift_tree(target, old=old, new=IdMap())

    async def _clone_over(self, source: Path, volume: Path) -> None:
        maps = [await asyncio.to_thread(_owners, place) for place in (source.parent, volume)]
        if any(maps):
            await self._clone(source, volume / "data.new")
        else:
            await super()._clone_over(source, volume)

    # --- where there are no idmapped mounts ---

    async def rewrites_owners(self, kind: VolumeKind, name: str, idmap: IdMap) -> bool:
        """At first they are the image's, so the first map is as much of a change as any."""
        return await self._rewrites() and await asyncio.to_thread(_owners, self._volume(kind, name)) != idmap

    async def _rewrites(self) -> bool:
        if self._without_idmaps is None:
            self._without_idmaps = not (await self._host.machine.features()).idmapped_mounts
        return self._without_idmaps

    async def _own_under(self, place: Path, idmap: IdMap) -> None:
        """Make the owners in `place/data` those of a map; nobody sees the files meanwhile."""
        unfinished = await asyncio.to_thread(read_fact, place, _UNFINISHED)
        if unfinished is not None:
            await self._rewrite(place, parse_idmap(unfinished), again=True)
        if await asyncio.to_thread(_owners, place) == idmap:
            return
        if await self._host.mounts.mounted(place / "rootfs"):
            raise IdmapUnsupported(
                f'Failed showing volume "{place.name}" of storage pool "{self._pool}" under another id map while it is '
                "in use: that needs idmapped mounts, which this kernel makes only outside of containers"
            )
        await self._rewrite(place, idmap)

    async def _rewrite(self, place: Path, new: IdMap, *, again: bool = False) -> None:
        old = await asyncio.to_thread(_owners, place)
        if again and not old:
            # Ids of the map that are there already are no ids of the container's own: those are lower.
            old = IdMap.single(0, min(entry.outside for entry in new.entries))
        await asyncio.to_thread(write_fact, place, _UNFINISHED, render_idmap(new))
        await self._host.files.shift_tree(place / "data", old=old, new=new)
        await asyncio.to_thread(write_fact, place, _OWNERS, render_idmap(new))
        await asyncio.to_thread((place / _UNFINISHED).unlink)

    async def _change_idmap(self, volume: Path, old: IdMap | None, new: IdMap) -> None:
        """Ids on disk are the container's own under every map."""
        del old
        await asyncio.to_thread(self._admit, volume, new)


def _owners(place: Path) -> IdMap:
    """The map that owners on disk are under. In a thread."""
    text = read_fact(place, _OWNERS)
    return IdMap() if text is None else parse_idmap(text)


DRIVER = DirDriver
