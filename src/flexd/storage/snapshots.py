# SPDX-License-Identifier: Apache-2.0
"""Snapshots and copies of what drivers keep in directories.

`frozen/ID` holds content that never changes again; a snapshot is a link to it, `containers/c1/snapshots/snap0 ->
frozen/ID`, made and removed in one step. Frozen content goes when nothing refers to it any more. How content is
frozen, shown and thawed is the driver's; as written here, a volume is a directory `data` that is copied.
"""

import asyncio
import errno
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from flexd.api.errors import BadRequest, Conflict
from flexd.api.idmap import IdMap
from flexd.host.contract import Host, HostError
from flexd.operations.undo import Undo
from flexd.storage.contract import IdmapUnsupported, SnapshotNotFound, Streams, Unpack, View, VolumeInUse, VolumeKind
from flexd.storage.directory import FROZEN, DirectoryDriver
from flexd.storage.facts import read_fact, read_number, write_fact

_SNAPSHOTS = "snapshots"
# Where snapshots of a volume are mounted, in its directory; views of a moment are mounted below the pool.
_SHOWN = "shown"
_VIEW_PREFIX = ".view-"


class SnapshotDriver(DirectoryDriver):
    """`content` is a path relative to the pool: `frozen/ID`, an image, or a volume itself."""

    def __init__(self, *, host: Host, pool: str, directory: Path, config: Mapping[str, str]) -> None:
        super().__init__(host=host, pool=pool, directory=directory, config=config)
        # Content that somebody is about to refer to, or looks at.
        self._pinned: Counter[str] = Counter()
        self._shown: dict[Path, IdMap] = {}

    @property
    def streams(self) -> Streams | None:
        return None

    # --- what a driver may do better ---

    def _part(self, kind: VolumeKind) -> str:
        """The directory in a volume that a restore replaces."""
        del kind
        return "data"

    async def _clone(self, source: Path, target: Path) -> None:
        """A tree that can be written to."""
        await self._host.files.copy_tree(source, target)

    async def _clone_frozen(self, source: Path, target: Path) -> None:
        """A tree that will not be written to."""
        await self._clone(source, target)

    async def _freeze(self, kind: VolumeKind, volume: Path, *, live: bool) -> str:
        """What the volume holds now, as content that is pinned once."""
        del kind, live
        async with self._freezing() as (content, staging):
            await self._clone_frozen(volume / "data", staging / "data")
        return content

    async def _hold_now(self, kind: VolumeKind, volume: Path, *, live: bool) -> str:
        """As `_freeze`, to be read soon; where freezing costs as much as a copy, the volume itself."""
        del kind, live
        return self._pin(str(volume.relative_to(self._directory)))

    async def _show(self, kind: VolumeKind, content: str, target: Path, idmap: IdMap) -> None:
        """Mount content read-only."""
        del kind
        await self._bind_data(self._directory / content / "data", target, idmap, readonly=True)

    async def _adopt(self, kind: VolumeKind, staging: Path, content: str) -> None:
        """Give a new volume, laid out bare, this content."""
        del kind
        await self._clone(self._directory / content / "data", staging / "data")

    async def _thaw(self, kind: VolumeKind, volume: Path, content: str) -> None:
        """Give a volume that nobody uses this content in place of its own."""
        await self._lift_limit(volume)  # there are two copies for a while
        await self._erase(volume / "data.new")
        await self._clone_over(self._directory / content / "data", volume)
        await self._swap(kind, volume)

    async def _clone_over(self, source: Path, volume: Path) -> None:
        """As `_clone`, to `data.new`; `data` is about to go."""
        await self._host.files.copy_tree_from(source, volume / "data.new", spare=volume / "data")

    async def _unstack(self, kind: VolumeKind, volume: Path) -> None:
        """After something that lay on or below this volume has gone: put back what was rearranged for it."""

    def _measured(self, content: str) -> Path | None:
        """What of content is its own on disk. In a thread."""
        return self._directory / content / "data"

    def _references(self) -> Counter[str]:
        """How often each content is referred to. In a thread."""
        links = (link for volume in self._volumes() for link in _entries(volume / _SNAPSHOTS))
        return Counter(os.readlink(link) for link in links)

    async def _release(self, content: str) -> None:
        """Something that is not frozen (an image) lost a reference."""

    # --- snapshots ---

    async def create_snapshot(self, kind: VolumeKind, name: str, snapshot: str, *, live: bool = False) -> None:
        self._check_snapshot(snapshot)
        async with self._at_work(kind, name) as volume:
            if await self._content_of(volume, snapshot) is not None:
                return
            content = await self._freeze(kind, volume, live=live)
            async with self._letting_go(content):
                await self._note_snapshot(volume, snapshot, content)

    async def delete_snapshot(self, kind: VolumeKind, name: str, snapshot: str) -> None:
        volume = self._volume(kind, name)
        if not await asyncio.to_thread(volume.exists):
            return
        async with self._at_work(kind, name):
            content = await self._content_of(volume, snapshot)
            if content is not None:
                await self._hide(volume, snapshot)
                await asyncio.to_thread((volume / _SNAPSHOTS / snapshot).unlink)
                await self._drop(content)
            # Also after one that was not made: its content may have been frozen already.
            await self._unstack(kind, volume)

    async def rename_snapshot(self, kind: VolumeKind, name: str, snapshot: str, new_snapshot: str) -> None:
        self._check_snapshot(new_snapshot)
        async with self._at_work(kind, name) as volume:
            old = await self._content_of(volume, snapshot)
            new = await self._content_of(volume, new_snapshot)
            if old is None and new is not None:
                return
            if old is None:
                raise self._no_snapshot(name, snapshot)
            if new is not None:
                raise Conflict(f'Failed renaming snapshot "{snapshot}" of volume "{name}": "{new_snapshot}" exists')
            await self._hide(volume, snapshot)
            links = volume / _SNAPSHOTS
            await asyncio.to_thread((links / snapshot).rename, links / new_snapshot)

    async def restore_snapshot(self, kind: VolumeKind, name: str, snapshot: str) -> None:
        await self.replace_content(kind, name, name, snapshot=snapshot)

    async def list_snapshots(self, kind: VolumeKind, name: str) -> list[str]:
        await self._require(kind, name)
        links = await asyncio.to_thread(_entries, self._volume(kind, name) / _SNAPSHOTS)
        return sorted(link.name for link in links)

    async def mount_snapshot(self, kind: VolumeKind, name: str, snapshot: str, idmap: IdMap) -> Path:
        async with self._at_work(kind, name) as volume:
            content, target = await self._content_of(volume, snapshot), volume / _SHOWN / snapshot
            if content is None:
                raise self._no_snapshot(name, snapshot)
            if await self._host.mounts.mounted(target):
                if self._shown.get(target) == idmap:
                    return target
                await self._host.mounts.unmount(target)
            await asyncio.to_thread(target.mkdir, mode=0o700, parents=True, exist_ok=True)
            await self._show(kind, content, target, idmap)
            self._shown[target] = idmap
            return target

    async def unmount_snapshot(self, kind: VolumeKind, name: str, snapshot: str) -> None:
        volume = self._volume(kind, name)
        async with self._lock(str(volume)):
            await self._hide(volume, snapshot)

    async def snapshot_usage(self, kind: VolumeKind, name: str, snapshot: str) -> int:
        await self._require(kind, name)
        content = await self._content_of(self._volume(kind, name), snapshot)
        if content is None:
            raise self._no_snapshot(name, snapshot)
        path = await asyncio.to_thread(self._measured, content)
        return 0 if path is None else await self._host.files.disk_usage(path)

    async def copy_snapshot(self, kind: VolumeKind, name: str, snapshot: str, new_name: str) -> None:
        await self._require(kind, new_name)
        target = self._volume(kind, new_name)
        async with self._held(kind, name, snapshot, live=False) as content, self._lock(str(target)):
            if await self._content_of(target, snapshot) is None:
                await self._note_snapshot(target, snapshot, content)

    # --- copies ---

    async def copy_volume(
        self,
        kind: VolumeKind,
        name: str,
        new_name: str,
        *,
        snapshot: str | None = None,
        size_bytes: int = 0,
        live: bool = False,
    ) -> None:
        if await asyncio.to_thread(self._volume(kind, new_name).exists):
            return
        async with self._held(kind, name, snapshot, live=live) as content:

            async def adopt(staging: Path) -> None:
                await self._adopt(kind, staging, content)

            await self._create(kind, new_name, size_bytes=size_bytes, fill=adopt, bare=True)

    async def create_from_tree(self, kind: VolumeKind, name: str, fill: Unpack, *, size_bytes: int) -> None:
        async def unpack(staging: Path) -> None:
            await fill(staging / "data")

        await self._create(kind, name, size_bytes=size_bytes, fill=unpack)

    async def replace_content(
        self, kind: VolumeKind, name: str, source_name: str, *, snapshot: str | None = None, live: bool = False
    ) -> None:
        async with self._held(kind, source_name, snapshot, live=live) as content, self._at_work(kind, name) as volume:
            if kind != "custom":
                await self._host.mounts.unmount(volume / "rootfs")
            await self._thaw(kind, volume, content)

    async def refresh_volume(self, kind: VolumeKind, name: str, source: View, *, by_content: bool = False) -> None:
        async with self._at_work(kind, name) as volume, source(IdMap()) as tree:
            await self._host.files.refresh_tree(tree, volume / "data", by_content=by_content)

    @asynccontextmanager
    async def view(
        self, kind: VolumeKind, name: str, idmap: IdMap, *, snapshot: str | None = None, live: bool = False
    ) -> AsyncIterator[Path]:
        target = self._directory / f"{_VIEW_PREFIX}{secrets.token_hex(8)}"
        async with self._held(kind, name, snapshot, live=live) as content:
            await asyncio.to_thread(target.mkdir, mode=0o700)
            try:
                await self._show(kind, content, target, idmap)
                yield target
            finally:
                await self._close_view(target)

    @asynccontextmanager
    async def changing_view(self, kind: VolumeKind, name: str, idmap: IdMap) -> AsyncIterator[Path]:
        target = self._directory / f"{_VIEW_PREFIX}{secrets.token_hex(8)}"
        async with self._at_work(kind, name) as volume:
            content = self._pin(str(volume.relative_to(self._directory)))
        async with self._letting_go(content):
            await asyncio.to_thread(target.mkdir, mode=0o700)
            try:
                await self._show(kind, content, target, idmap)
                yield target
            finally:
                await self._close_view(target)

    # --- what the base class does, with snapshots ---

    async def mount_pool(self) -> None:
        await super().mount_pool()
        await self._close_views()
        used = await asyncio.to_thread(self._references)
        for frozen in await asyncio.to_thread(_entries, self._directory / FROZEN):
            if not used[f"{FROZEN}/{frozen.name}"]:
                await self._drop(f"{FROZEN}/{frozen.name}")

    async def delete_pool(self) -> None:
        await self._close_views()
        await super().delete_pool()

    async def _close_views(self) -> None:
        """Those of a daemon that died."""
        for view in await asyncio.to_thread(_entries, self._directory, _VIEW_PREFIX):
            await self._close_view(view)

    async def _close_view(self, target: Path) -> None:
        try:
            await self._host.mounts.unmount(target)
        except HostError:  # somebody is still in there: it goes when they do
            await self._host.mounts.unmount(target, detach=True)
        await asyncio.to_thread(target.rmdir)

    async def delete_volume(self, kind: VolumeKind, name: str) -> None:
        contents = await asyncio.to_thread(self._contents, self._volume(kind, name))
        await super().delete_volume(kind, name)
        for content in contents:
            await self._drop(content)

    async def _unmount_all(self, volume: Path) -> None:
        for target in await asyncio.to_thread(_entries, volume / _SHOWN):
            await self._hide(volume, target.name)
        await super()._unmount_all(volume)

    async def _recover(self, kind: VolumeKind, volume: Path) -> None:
        """What a swap, cut short, left: the new part was made whole before the old one went."""
        part = self._part(kind)
        names = set(await asyncio.to_thread(os.listdir, volume))
        if part not in names:
            whole = f"{part}.new" if f"{part}.new" in names else f"{part}.old"
            await asyncio.to_thread((volume / whole).rename, volume / part)
        if names & {f"{part}.new", f"{part}.old"}:
            await self._tidy(kind, volume)

    async def _swap(self, kind: VolumeKind, volume: Path) -> None:
        """Put `PART.new` in the place of `PART`."""
        part = self._part(kind)
        await asyncio.to_thread((volume / part).rename, volume / f"{part}.old")
        await asyncio.to_thread((volume / f"{part}.new").rename, volume / part)
        await self._tidy(kind, volume)

    async def _tidy(self, kind: VolumeKind, volume: Path) -> None:
        """Remove what a swap leaves and put the volume's limit back."""
        part = self._part(kind)
        project = await asyncio.to_thread(read_number, volume, "project")
        for name in (f"{part}.new", f"{part}.old"):
            if project is not None:  # what goes in the background would count until it has
                await self._erase(volume / name)
            elif await asyncio.to_thread((volume / name).exists):
                await self._discard(volume / name)
        if project is not None:
            size_bytes = await asyncio.to_thread(read_number, volume, "size")
            await self._host.quotas.set_limit(volume, project, size_bytes or 0)

    # --- frozen content ---

    @asynccontextmanager
    async def _freezing(self) -> AsyncIterator[tuple[str, Path]]:
        """(new content, the directory to make it in), put in place and pinned at the end of the block."""
        content, staging = f"{FROZEN}/{secrets.token_hex(8)}", self._staging()
        async with Undo() as undo:
            undo.push(self._erase, staging)
            await asyncio.to_thread(staging.mkdir, mode=0o700)
            yield content, staging
            await asyncio.to_thread(staging.rename, self._directory / self._pin(content))

    @asynccontextmanager
    async def _held(self, kind: VolumeKind, name: str, snapshot: str | None, *, live: bool) -> AsyncIterator[str]:
        """A volume's content of this moment, or a snapshot's; stays for the block, longer if something refers to it."""
        async with self._at_work(kind, name) as volume:
            if snapshot is None:
                content = await self._hold_now(kind, volume, live=live)
            else:
                content = await self._pin_snapshot(volume, name, snapshot)
        async with self._letting_go(content):
            yield content
        if snapshot is None:
            async with self._lock(str(volume)):
                await self._unstack(kind, volume)

    @asynccontextmanager
    async def _letting_go(self, content: str) -> AsyncIterator[None]:
        """At the end of the block content is unpinned, and goes unless something refers to it by then."""
        try:
            yield
        finally:
            self._pinned[content] -= 1
            await self._drop(content)

    async def _pin_snapshot(self, volume: Path, name: str, snapshot: str) -> str:
        async with self._lock(FROZEN):
            content = await self._content_of(volume, snapshot)
            if content is None:
                raise self._no_snapshot(name, snapshot)
            return self._pin(content)

    def _pin(self, content: str) -> str:
        self._pinned[content] += 1
        return content

    async def _drop(self, content: str) -> None:
        """Remove frozen content that nothing refers to, and what only it lay on."""
        below: str | None = content
        while below is not None and below.startswith(f"{FROZEN}/"):
            async with self._lock(FROZEN):
                if self._pinned[below] or (await asyncio.to_thread(self._references))[below]:
                    return
                place = self._directory / below
                below = await asyncio.to_thread(read_fact, place, "below")
                if await asyncio.to_thread(place.exists):
                    await self._discard(place)
        if below is not None:
            await self._release(below)

    def _contents(self, volume: Path) -> list[str]:
        """What a volume refers to. In a thread."""
        return [os.readlink(link) for link in _entries(volume / _SNAPSHOTS)]

    def _volumes(self) -> list[Path]:
        folders = (self._directory / folder for folder in ("containers", "virtual-machines", "custom"))
        return [volume for folder in folders for volume in _entries(folder)]

    # --- small things ---

    @asynccontextmanager
    async def _at_work(self, kind: VolumeKind, name: str) -> AsyncIterator[Path]:
        """A volume that is there, locked, and free of what a crash left."""
        await self._require(kind, name)
        volume = self._volume(kind, name)
        async with self._lock(str(volume)):
            await self._recover(kind, volume)
            yield volume

    async def _content_of(self, volume: Path, snapshot: str) -> str | None:
        self._check_snapshot(snapshot)
        return await asyncio.to_thread(self._snapshot_of, volume, snapshot)

    def _snapshot_of(self, volume: Path, snapshot: str) -> str | None:
        """The content that a snapshot refers to. In a thread."""
        return read_fact(volume / _SNAPSHOTS, snapshot)

    def _shown_at(self, volume: Path, snapshot: str) -> Path:
        """Where a snapshot is mounted."""
        return volume / _SHOWN / snapshot

    async def _note_snapshot(self, volume: Path, snapshot: str, content: str) -> None:
        await asyncio.to_thread(_link, volume, snapshot, content)

    async def _hide(self, volume: Path, snapshot: str) -> None:
        """Unmount a snapshot."""
        target = volume / _SHOWN / snapshot
        try:
            await self._host.mounts.unmount(target)
        except HostError as error:
            if error.errno != errno.EBUSY:
                raise
            raise VolumeInUse(f'Snapshot "{snapshot}" of volume "{volume.name}" is in use: {error}') from error
        self._shown.pop(target, None)
        await asyncio.to_thread(_remove_directory, target)

    async def _bind_data(self, source: Path, target: Path, idmap: IdMap, *, readonly: bool = False) -> None:
        if not idmap:
            await self._host.mounts.bind(source, target, readonly=readonly)
            return
        try:
            await self._host.mounts.idmapped_bind(source, target, idmap, readonly=readonly)
        except HostError as error:
            features = await self._host.machine.features()
            if features.idmapped_mounts:
                raise
            raise IdmapUnsupported(
                f'Failed mounting volume "{target.parent.name}" of storage pool "{self._pool}": unprivileged '
                f"containers on the {self.name} driver need idmapped mounts (Linux 5.12 or newer; this is "
                f"{features.kernel_version})"
            ) from error

    def _check_snapshot(self, snapshot: str) -> None:
        if not snapshot or "/" in snapshot or snapshot.startswith("."):
            raise BadRequest(f'Invalid snapshot name "{snapshot}" in storage pool "{self._pool}"')

    def _no_snapshot(self, name: str, snapshot: str) -> SnapshotNotFound:
        return SnapshotNotFound(f'Snapshot not found: "{snapshot}" of "{name}" in storage pool "{self._pool}"')


def _link(volume: Path, snapshot: str, content: str) -> None:
    links = volume / _SNAPSHOTS
    links.mkdir(mode=0o700, exist_ok=True)
    write_fact(links, snapshot, content)


def _entries(folder: Path, prefix: str = "") -> list[Path]:
    """What is in a directory that may be absent, hidden names only if asked for."""
    if not folder.is_dir():
        return []
    names = (name for name in os.listdir(folder) if name.startswith(prefix or ".") == bool(prefix))
    return [folder / name for name in names]


def _remove_directory(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
