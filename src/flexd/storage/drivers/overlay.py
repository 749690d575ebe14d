# SPDX-License-Identifier: Apache-2.0
"""`overlay`: the image unpacked once per pool with the ids it was made with; a volume is a layer of differences.

`containers/c1/layer/{upper,work}` hold ids as the container's map makes them (an idmapped upper layer fails for the
host's root: EOVERFLOW); `layer/below` says on what they lie: `images/FP`, or `frozen/ID`, an upper layer that a
snapshot froze, lying on something itself. Lower layers are seen through idmapped mounts; `rootfs` is the mount.
"""

import asyncio
import errno
import logging
import os
from collections import Counter
from functools import partial
from pathlib import Path

from flexd.api.idmap import IdMap
from flexd.host.contract import HostError, Layer
from flexd.operations.undo import Undo
from flexd.storage.contract import IdmapUnsupported, Unpack, View, VolumeKind
from flexd.storage.directory import FROZEN
from flexd.storage.facts import parse_idmap, read_fact, read_number, render_idmap, write_fact
from flexd.storage.layers import Tangled, join
from flexd.storage.snapshots import SnapshotDriver

log = logging.getLogger(__name__)

# An image that was deleted while volumes still lie on it: kept for them, hidden from everybody else.
_UNWANTED = "unwanted"
# Each layer costs a lookup for every name that it does not have; the kernel's own limit is 500 (OVL_MAX_STACK), that of
# older kernels' one page of options about 100. From here on a snapshot copies what the container wrote.
_MAX_LAYERS = 64
# What the kernel notes on the upper layer's root about the layers below.
_OVERLAY_XATTRS = "trusted.overlay."


class OverlayDriver(SnapshotDriver):
    name = "overlay"
    version = "1"
    optimized_images = True
    shifted_on_disk = True

    async def probe(self) -> str | None:
        features = await self._host.machine.features()
        if features.overlay_idmapped_lower:
            return None
        return (
            "the overlay driver needs idmapped mounts below overlayfs (Linux 5.19 or newer; "
            f"this is {features.kernel_version}); the dir driver works without"
        )

    async def create_pool(self) -> dict[str, str]:
        filled = await super().create_pool()
        async with Undo() as undo:
            undo.push(self.delete_pool)
            await self._try_mount()
        return filled

    async def mount_pool(self) -> None:
        await super().mount_pool()
        for fingerprint in await asyncio.to_thread(self._unwanted_images):
            await self._drop_unused(fingerprint)

    # --- images ---

    async def has_image(self, fingerprint: str) -> bool:
        image = self._volume("image", fingerprint)
        return await asyncio.to_thread(lambda: image.exists() and not (image / _UNWANTED).exists())

    async def create_image(self, fingerprint: str, unpack: Unpack) -> None:
        async with self._lock(fingerprint):
            await self._ensure_image(fingerprint, unpack)

    async def delete_image(self, fingerprint: str) -> None:
        image = self._volume("image", fingerprint)
        async with self._lock(fingerprint):
            if await asyncio.to_thread(image.exists):
                await asyncio.to_thread((image / _UNWANTED).touch)
        await self._drop_unused(fingerprint)

    async def list_volumes(self) -> list[tuple[VolumeKind, str]]:
        hidden = await asyncio.to_thread(self._unwanted_images)
        return [found for found in await super().list_volumes() if found[0] != "image" or found[1] not in hidden]

    async def _ensure_image(self, fingerprint: str, unpack: Unpack) -> None:
        """The lock of the image is held, so that others who want it wait for the one that unpacks."""
        image = self._volume("image", fingerprint)
        if await asyncio.to_thread(image.exists):
            await asyncio.to_thread((image / _UNWANTED).unlink, missing_ok=True)
            return
        staging = self._staging()
        async with Undo() as undo:
            undo.push(self._host.files.remove_tree, staging)
            await asyncio.to_thread(_make_directories, staging, staging / "rootfs")
            await unpack(staging / "rootfs")
            # A rename that outlives a power cut must not show files whose data did not: containers trust the image.
            await self._host.processes.run(["sync", "-f", os.fspath(staging)])
            await asyncio.to_thread(staging.rename, image)

    async def _drop_unused(self, fingerprint: str) -> None:
        """Remove an unwanted image that no volume lies on any more."""
        image = self._volume("image", fingerprint)
        async with self._lock(fingerprint):
            if await asyncio.to_thread(self._is_unused, fingerprint):
                await self._discard(image)

    def _is_unused(self, fingerprint: str) -> bool:
        if not (self._volume("image", fingerprint) / _UNWANTED).exists():
            return False
        content = _image(fingerprint)
        return not self._pinned[content] and not self._references()[content]

    def _unwanted_images(self) -> set[str]:
        images = self._directory / "images"
        return {name for name in os.listdir(images) if (images / name / _UNWANTED).exists()}

    # --- volumes ---

    async def create_from_image(
        self, kind: VolumeKind, name: str, fingerprint: str, unpack: Unpack, *, size_bytes: int
    ) -> None:
        async def link(staging: Path) -> None:
            # Relative, so that a pool can be mounted elsewhere; counts as a use of the image from here on.
            await asyncio.to_thread(write_fact, staging / "layer", "below", _image(fingerprint))

        async with self._lock(fingerprint):
            await self._ensure_image(fingerprint, unpack)
            await self._create(kind, name, size_bytes=size_bytes, fill=link)

    async def _lay_out(self, volume: Path, *, bare: bool) -> None:
        del bare  # an upper layer without files is made at once
        layer = volume / "layer"
        await asyncio.to_thread(_make_directories, layer, layer / "upper", layer / "work", volume / "rootfs")

    def _layer(self, volume: Path) -> Path:
        return volume / "layer"

    def _content(self, volume: Path) -> Path:
        return volume / "layer" / "upper"

    async def _mount(self, volume: Path, idmap: IdMap) -> None:
        layer, rootfs = volume / "layer", volume / "rootfs"
        layers = await asyncio.to_thread(self._layers_below, layer, idmap)
        if layers:
            await self._host.mounts.overlay_layers(rootfs, layers, upper=layer / "upper", work=layer / "work")
        else:  # made empty: the upper layer is all there is
            await self._host.mounts.bind(layer / "upper", rootfs)

    def _layers_below(self, place: Path, idmap: IdMap) -> list[Layer]:
        """What a layer lies on, topmost first, as seen under a map. In a thread."""
        return self._layers(read_fact(place, "below"), idmap)

    def _layers(self, content: str | None, idmap: IdMap) -> list[Layer]:
        found = []
        while content is not None:
            image = content.startswith("images/")
            # Of a volume, which a changing view shows, the layer is in a directory of its own.
            place = self._directory / content / ("" if image or content.startswith(FROZEN) else "layer")
            frozen = not image
            own = parse_idmap(read_fact(place, "idmap") or render_idmap(IdMap())) if frozen else IdMap()
            found.append(Layer(place / ("upper" if frozen else "rootfs"), own.translation(idmap) or None))
            content = read_fact(place, "below") if frozen else None
        return found

    # --- another id map ---

    async def rewrites_owners(self, kind: VolumeKind, name: str, idmap: IdMap) -> bool:
        text = await asyncio.to_thread(read_fact, self._layer(self._volume(kind, name)), "idmap")
        return text is not None and parse_idmap(text) != idmap

    async def _change_idmap(self, volume: Path, old: IdMap | None, new: IdMap) -> None:
        if old is None:
            await asyncio.to_thread(self._dress, volume, new)
        else:
            await self._rewrite(volume, old, new)
        await asyncio.to_thread(self._admit, volume, new)

    def _dress(self, volume: Path, idmap: IdMap) -> None:
        """The root directory of an overlay shows the upper layer's owner and mode: take over the image's."""
        upper, layers = volume / "layer" / "upper", self._layers_below(volume / "layer", idmap)
        root = os.stat(layers[0].path if layers else volume / "rootfs")
        shift = (layers[0].idmap or IdMap()) if layers else idmap
        os.chown(upper, shift.host_uid(root.st_uid) or 0, shift.host_gid(root.st_gid) or 0)
        upper.chmod(root.st_mode & 0o7777)
        for name, value in _own_attributes(layers[0].path) if layers else ():
            os.setxattr(upper, name, value)

    async def _rewrite(self, volume: Path, old: IdMap, new: IdMap) -> None:
        """Shift the upper layer to other ids. In a copy: ids shifted half-way could not be told from the others."""
        layer, fresh = volume / "layer", volume / "layer.new"
        project = await asyncio.to_thread(read_number, volume, "project")
        if project is not None:  # there are two copies for a while
            await self._host.quotas.set_limit(volume, project, 0)
        await asyncio.to_thread(_make_directories, fresh, fresh / "work")
        await self._host.files.copy_tree(layer / "upper", fresh / "upper")
        await self._host.files.shift_tree(fresh / "upper", old=old, new=new)
        await asyncio.to_thread(write_fact, fresh, "idmap", render_idmap(new))
        await asyncio.to_thread(_copy_fact, layer, fresh, "below")
        await self._host.processes.run(["sync", "-f", os.fspath(fresh)])
        await self._swap("container", volume)

    # --- snapshots and copies of instance volumes ---

    def _part(self, kind: VolumeKind) -> str:
        return "data" if kind == "custom" else "layer"

    async def _freeze(self, kind: VolumeKind, volume: Path, *, live: bool) -> str:
        """A mounted overlay cannot be given other layers, so what is in use is copied: as much as the container wrote.
        Otherwise the upper layer itself is frozen, and the volume gets a new one on top of it."""
        if kind == "custom":
            return await super()._freeze(kind, volume, live=live)
        layer = volume / "layer"
        if not live:
            await self._host.mounts.unmount(volume / "rootfs")
            below = await asyncio.to_thread(self._below_if_unchanged, volume)
            if below is not None:
                return self._pin(below)
            if len(await asyncio.to_thread(self._layers_below, layer, IdMap())) < _MAX_LAYERS:
                return await self._freeze_layer(kind, volume)
        async with self._freezing() as (content, staging):
            await self._host.files.copy_tree(layer / "upper", staging / "upper")
            for fact in ("idmap", "below"):
                await asyncio.to_thread(_copy_fact, layer, staging, fact)
        return content

    async def _hold_now(self, kind: VolumeKind, volume: Path, *, live: bool) -> str:
        if kind == "custom":
            return await super()._hold_now(kind, volume, live=live)
        return await self._freeze(kind, volume, live=live)

    def _below_if_unchanged(self, volume: Path) -> str | None:
        """What an untouched upper layer lies on. In a thread."""
        upper = volume / "layer" / "upper"
        layers = self._layers_below(volume / "layer", IdMap())
        if not layers or os.listdir(upper):
            return None
        text = read_fact(volume / "layer", "idmap")
        if text is not None and not self._same_root(volume / "layer", parse_idmap(text)):
            return None
        return read_fact(volume / "layer", "below")

    def _same_root(self, layer: Path, idmap: IdMap) -> bool:
        """Whether a layer's top directory is as `_dress` left it."""
        below = self._layers_below(layer, idmap)[0]
        mine, root, shift = os.stat(layer / "upper"), os.stat(below.path), below.idmap or IdMap()
        wanted = (root.st_mode, shift.host_uid(root.st_uid) or 0, shift.host_gid(root.st_gid) or 0)
        same = (mine.st_mode, mine.st_uid, mine.st_gid) == wanted
        return same and _own_attributes(layer / "upper") == _own_attributes(below.path)

    async def _freeze_layer(self, kind: VolumeKind, volume: Path) -> str:
        """Instant. The new layer refers to the frozen one before that has its place, so nobody removes it."""
        content = self._pin(f"{FROZEN}/{self._staging().name.rpartition('-')[2]}")
        try:
            await self._make_layer(volume / "layer.new", content)
            await asyncio.to_thread((volume / "layer").rename, self._directory / content)
            await asyncio.to_thread((volume / "layer.new").rename, volume / "layer")
            await self._tidy(kind, volume)
        except BaseException:
            self._pinned[content] -= 1  # or it could never be taken back
            raise
        return content

    async def _make_layer(self, layer: Path, below: str) -> None:
        """An empty upper layer; whoever mounts it dresses it first."""
        await self._erase(layer)
        await asyncio.to_thread(_make_directories, layer, layer / "upper", layer / "work")
        await asyncio.to_thread(write_fact, layer, "below", below)

    async def unmount_volume(self, kind: VolumeKind, name: str) -> None:
        await super().unmount_volume(kind, name)
        volume = self._volume(kind, name)
        if kind != "custom" and await asyncio.to_thread(volume.exists):
            async with self._lock(str(volume)):
                await self._unstack(kind, volume)

    async def _unstack(self, kind: VolumeKind, volume: Path) -> None:
        """Make the layer that was frozen last the volume's own again, if nothing else lies on it and nothing was
        written since; join others of which nobody knows any more with what lies on them. Else a volume would grow a
        layer with every snapshot that comes and goes."""
        if kind == "custom" or await self._host.mounts.mounted(volume / "rootfs"):
            return
        async with self._lock(FROZEN):
            taken_back = await self._take_back(volume)
            await self._join_layers(volume)
        if taken_back:
            await self._tidy(kind, volume)

    async def _take_back(self, volume: Path) -> bool:
        below = await asyncio.to_thread(self._below_if_unchanged, volume)
        if below is None or not below.startswith(FROZEN) or self._pinned[below]:
            return False
        if (await asyncio.to_thread(self._references))[below] > 1:
            return False
        await asyncio.to_thread(_take_back, volume, self._directory / below)
        return True

    async def _join_layers(self, volume: Path) -> None:
        """Each layer below a volume that only one other lies on, and nothing else refers to, with that one."""
        names = await self.list_snapshots("container", volume.name)
        shown = [name for name in names if await self._is_shown(volume, name)]
        kept = await asyncio.to_thread(self._layers_of_others, volume, shown)
        upper = str(self._layer(volume).relative_to(self._directory))
        while (below := await asyncio.to_thread(read_fact, self._directory / upper, "below")) is not None:
            if not below.startswith(FROZEN):
                return
            hidden = (await asyncio.to_thread(self._references))[below] == 1
            if not hidden or upper in kept or below in kept or not await self._join(upper, below):
                upper = below

    async def _is_shown(self, volume: Path, snapshot: str) -> bool:
        return await self._host.mounts.mounted(self._shown_at(volume, snapshot))

    def _layers_of_others(self, volume: Path, shown: list[str]) -> set[str]:
        """What another volume lies on, or somebody looks at: it must not change. In a thread."""
        found = {content for content, count in self._pinned.items() if count}
        found |= {content for other in self._volumes() if other != volume for content in self._contents(other)}
        found |= {content for content in map(partial(self._snapshot_of, volume), shown) if content is not None}
        for content in list(found):
            below: str | None = content
            while below is not None and below.startswith(FROZEN):
                found.add(below)
                below = read_fact(self._directory / below, "below")
        return found

    async def _join(self, upper: str, below: str) -> bool:
        """Only of the same owners: files are moved from one to the other as they are."""
        places = self._directory / upper, self._directory / below
        try:
            joined = await asyncio.to_thread(_join_places, *places)
        except (Tangled, OSError) as error:
            log.info("layer %s stays below %s: %s", below, upper, error)
            return False
        if joined:
            await self._discard(places[1])
        return joined

    async def _show(self, kind: VolumeKind, content: str, target: Path, idmap: IdMap) -> None:
        if kind == "custom":
            await super()._show(kind, content, target, idmap)
            return
        layers = await asyncio.to_thread(self._layers, content, idmap)
        if len(layers) > 1:
            await self._host.mounts.overlay_layers(target, layers)
        else:
            await self._bind_data(layers[0].path, target, layers[0].idmap or IdMap(), readonly=True)

    async def _adopt(self, kind: VolumeKind, staging: Path, content: str) -> None:
        if kind == "custom":
            await super()._adopt(kind, staging, content)
        else:
            await asyncio.to_thread(write_fact, staging / "layer", "below", content)

    async def _thaw(self, kind: VolumeKind, volume: Path, content: str) -> None:
        if kind == "custom":
            await super()._thaw(kind, volume, content)
            return
        former = await asyncio.to_thread(read_fact, volume / "layer", "below")
        await self._make_layer(volume / "layer.new", content)
        await self._swap(kind, volume)
        if former is not None:
            await self._drop(former)

    async def create_from_tree(self, kind: VolumeKind, name: str, fill: Unpack, *, size_bytes: int) -> None:
        """The tree becomes a frozen layer with ids as they are: nothing is shifted, whatever map mounts it."""
        if kind == "custom":
            await super().create_from_tree(kind, name, fill, size_bytes=size_bytes)
            return

        async def adopt(staging: Path) -> None:
            async with self._freezing() as (content, frozen):
                await asyncio.to_thread(_make_directories, frozen / "upper")
                project = await asyncio.to_thread(read_number, staging, "project")
                if project is not None:
                    await self._host.quotas.assign(frozen, project)
                await fill(frozen / "upper")
                await asyncio.to_thread(write_fact, frozen, "idmap", render_idmap(IdMap()))
            pinned.append(content)
            await self._adopt(kind, staging, content)

        pinned: list[str] = []
        try:
            await self._create(kind, name, size_bytes=size_bytes, fill=adopt)
        finally:
            for content in pinned:
                self._pinned[content] -= 1
                await self._drop(content)

    async def refresh_volume(self, kind: VolumeKind, name: str, source: View, *, by_content: bool = False) -> None:
        """Through the overlay, so that what is equal below stays there; under the map that the upper layer has."""
        if kind == "custom":
            await super().refresh_volume(kind, name, source, by_content=by_content)
            return
        async with self._at_work(kind, name) as volume:
            text = await asyncio.to_thread(read_fact, volume / "layer", "idmap")
        idmap = IdMap() if text is None else parse_idmap(text)
        rootfs = await self.mount_volume(kind, name, idmap)
        try:
            async with source(idmap) as tree:
                await self._host.files.refresh_tree(tree, rootfs, by_content=by_content)
        finally:
            await self.unmount_volume(kind, name)

    def _measured(self, content: str) -> Path | None:
        if content.startswith("images/"):
            return None
        upper = self._directory / content / "upper"
        return upper if upper.exists() else super()._measured(content)

    def _references(self) -> Counter[str]:
        layers = [layer for volume in self._volumes() for layer in volume.glob("layer*")]
        layers += [self._directory / FROZEN / name for name in os.listdir(self._directory / FROZEN)]
        below = (read_fact(layer, "below") for layer in layers)
        return super()._references() + Counter(content for content in below if content is not None)

    def _contents(self, volume: Path) -> list[str]:
        below = read_fact(volume / "layer", "below")
        return super()._contents(volume) + ([] if below is None else [below])

    async def _release(self, content: str) -> None:
        folder, _, name = content.partition("/")
        if folder == "images":
            await self._drop_unused(name)

    async def _try_mount(self) -> None:
        """Overlay mounts and id maps depend on the file system too (overlay on overlay, NFS): find out now."""
        staging = self._staging()
        parts = [staging / part for part in ("lower", "upper", "work", "rootfs")]
        lower, upper, work, rootfs = parts
        async with Undo() as undo:
            undo.push(self._host.files.remove_tree, staging)
            await asyncio.to_thread(_make_directories, staging, *parts)
            undo.push(self._host.mounts.unmount, rootfs)
            try:
                await self._host.mounts.overlay(
                    rootfs, lower=lower, upper=upper, work=work, lower_idmap=IdMap.single(1000000, 65536)
                )
            except HostError as error:
                kind = await self._host.files.filesystem_type(self._directory)
                raise IdmapUnsupported(
                    f'Failed creating storage pool "{self._pool}": an overlay with an idmapped lower layer does not '
                    f"work on {self._directory} ({kind}): {error}; use the dir driver, or another source"
                ) from error
            await self._host.mounts.unmount(rootfs)
            await self._host.files.remove_tree(staging)


def _make_directories(*paths: Path) -> None:
    for path in paths:
        path.mkdir(mode=0o755 if path.name in ("upper", "rootfs") else 0o700)


def _image(fingerprint: str) -> str:
    return f"images/{fingerprint}"


def _copy_fact(source: Path, target: Path, name: str) -> None:
    text = read_fact(source, name)
    if text is not None:
        write_fact(target, name, text)


def _own_attributes(path: Path) -> list[tuple[str, bytes]]:
    """Extended attributes of a layer's top directory that are neither the overlay's nor hold ids."""
    names = (name for name in os.listxattr(path) if not name.startswith((_OVERLAY_XATTRS, "system.")))
    return sorted((name, os.getxattr(path, name)) for name in names)


def _join_places(upper: Path, lower: Path) -> bool:
    below = read_fact(lower, "below")
    if below is None or read_fact(upper, "idmap") != read_fact(lower, "idmap"):
        return False
    join(upper / "upper", lower / "upper")
    write_fact(upper, "below", below)
    return True


def _take_back(volume: Path, frozen: Path) -> None:
    (volume / "layer").rename(volume / "layer.old")
    try:
        frozen.rename(volume / "layer")
    except OSError as error:
        (volume / "layer.old").rename(volume / "layer")
        # EXDEV: it is charged to another project's quota (a copy of another volume).
        if error.errno != errno.EXDEV:
            raise


DRIVER = OverlayDriver
