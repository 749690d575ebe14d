# SPDX-License-Identifier: Apache-2.0
"""`overlay`: the image unpacked once per pool with the ids it was made with; a volume is a layer of differences.

`images/FP/rootfs` is the lower layer, seen through an idmapped mount; `containers/c1/layer/{upper,work}` hold ids as
the container's map makes them (an idmapped upper layer fails for the host's root: EOVERFLOW); `rootfs` is the mount.
"""

import asyncio
import os
from pathlib import Path

from flexd.api.idmap import IdMap
from flexd.host.contract import HostError
from flexd.operations.undo import Undo
from flexd.storage.contract import IdmapUnsupported, Unpack, VolumeKind
from flexd.storage.directory import DirectoryDriver
from flexd.storage.facts import read_number, render_idmap, write_fact

# An image that was deleted while volumes still lie on it: kept for them, hidden from everybody else.
_UNWANTED = "unwanted"


class OverlayDriver(DirectoryDriver):
    name = "overlay"
    version = "1"
    optimized_images = True

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
        layers = (link for folder in ("containers", "virtual-machines") for link in self._links(folder))
        return all(_fingerprint(link) != fingerprint for link in layers)

    def _links(self, folder: str) -> list[Path]:
        parent = self._directory / folder
        return [parent / name / "lower" for name in os.listdir(parent)] if parent.is_dir() else []

    def _unwanted_images(self) -> set[str]:
        images = self._directory / "images"
        return {name for name in os.listdir(images) if (images / name / _UNWANTED).exists()}

    # --- volumes ---

    async def create_from_image(
        self, kind: VolumeKind, name: str, fingerprint: str, unpack: Unpack, *, size_bytes: int
    ) -> None:
        async def link(staging: Path) -> None:
            # Relative, so that a pool can be mounted elsewhere; counts as a use of the image from here on.
            await asyncio.to_thread((staging / "lower").symlink_to, f"../../images/{fingerprint}/rootfs")

        async with self._lock(fingerprint):
            await self._ensure_image(fingerprint, unpack)
            await self._create(kind, name, size_bytes=size_bytes, fill=link)

    async def delete_volume(self, kind: VolumeKind, name: str) -> None:
        link = self._volume(kind, name) / "lower"
        fingerprint = await asyncio.to_thread(_fingerprint, link)
        await super().delete_volume(kind, name)
        if fingerprint is not None:
            await self._drop_unused(fingerprint)

    def _lay_out(self, volume: Path) -> None:
        layer = volume / "layer"
        _make_directories(layer, layer / "upper", layer / "work", volume / "rootfs")

    def _layer(self, volume: Path) -> Path:
        return volume / "layer"

    def _content(self, volume: Path) -> Path:
        return volume / "layer" / "upper"

    async def _mount(self, volume: Path, idmap: IdMap) -> None:
        layer, rootfs = volume / "layer", volume / "rootfs"
        fingerprint = await asyncio.to_thread(_fingerprint, volume / "lower")
        if fingerprint is None:  # made empty: the upper layer is all there is
            await self._host.mounts.bind(layer / "upper", rootfs)
            return
        await self._host.mounts.overlay(
            rootfs,
            lower=self._volume("image", fingerprint) / "rootfs",
            upper=layer / "upper",
            work=layer / "work",
            lower_idmap=idmap or None,
        )

    # --- another id map ---

    async def _change_idmap(self, volume: Path, old: IdMap | None, new: IdMap) -> None:
        if old is None:
            await asyncio.to_thread(self._dress, volume, new)
        else:
            await self._rewrite(volume, old, new)
        await asyncio.to_thread(self._admit, volume, new)

    def _dress(self, volume: Path, idmap: IdMap) -> None:
        """The root directory of an overlay shows the upper layer's owner and mode: take over the image's."""
        lower = volume / "lower"
        root = os.stat(lower if lower.exists() else volume / "rootfs")
        upper = volume / "layer" / "upper"
        os.chown(upper, idmap.host_uid(root.st_uid) or 0, idmap.host_gid(root.st_gid) or 0)
        upper.chmod(root.st_mode & 0o7777)

    async def _rewrite(self, volume: Path, old: IdMap, new: IdMap) -> None:
        """Shift the upper layer to other ids. In a copy: ids shifted half-way could not be told from the others."""
        layer, fresh, former = volume / "layer", volume / "layer.new", volume / "layer.old"
        project = await asyncio.to_thread(read_number, volume, "project")
        if project is not None:  # there are two copies for a while
            await self._host.quotas.set_limit(volume, project, 0)
        await asyncio.to_thread(_make_directories, fresh, fresh / "work")
        await self._host.files.copy_tree(layer / "upper", fresh / "upper")
        await self._host.files.shift_tree(fresh / "upper", old=old, new=new)
        await asyncio.to_thread(write_fact, fresh, "idmap", render_idmap(new))
        await self._host.processes.run(["sync", "-f", os.fspath(fresh)])
        await asyncio.to_thread(layer.rename, former)
        await asyncio.to_thread(fresh.rename, layer)
        await self._tidy(volume)

    async def _recover(self, volume: Path) -> None:
        """`_rewrite` makes `layer.new` whole before `layer` goes: without `layer`, the new one is the volume."""
        names = set(await asyncio.to_thread(os.listdir, volume))
        if "layer" not in names:
            await asyncio.to_thread((volume / "layer.new").rename, volume / "layer")
        if names & {"layer.new", "layer.old"}:
            await self._tidy(volume)

    async def _tidy(self, volume: Path) -> None:
        """Remove what a rewrite leaves and put its limit back."""
        for name in ("layer.new", "layer.old"):
            await self._host.files.remove_tree(volume / name)
        project = await asyncio.to_thread(read_number, volume, "project")
        if project is not None:
            size_bytes = await asyncio.to_thread(read_number, volume, "size")
            await self._host.quotas.set_limit(volume, project, size_bytes or 0)

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


def _fingerprint(link: Path) -> str | None:
    """The image that a volume's `lower` leads to; None for a volume made empty, or none at all."""
    try:
        return Path(os.readlink(link)).parent.name
    except FileNotFoundError:
        return None


DRIVER = OverlayDriver
