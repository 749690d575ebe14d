# SPDX-License-Identifier: Apache-2.0
"""Device kind `disk`: the root file system, a host path or a custom volume inside the container.

Except for the root, the source is bound to `DIRECTORY/disk.DEVICE` first (idmapped where ids are to be shifted), and
liblxc binds from there.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from flexd.api.errors import Fault
from flexd.api.idmap import IdMap
from flexd.api.keys import Key
from flexd.api.units import is_true
from flexd.devices.contract import DeviceContext, Kind, RunConfig
from flexd.runtime.contract import MountSpec
from flexd.storage.contract import VolumeRef


def is_root(config: Mapping[str, str]) -> bool:
    """Whether an entry is the instance's root disk: type disk, path /, no source (LXD's rule)."""
    return config.get("type") == "disk" and config.get("path") == "/" and not config.get("source")


def _path_fault(value: str) -> str | None:
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts or "\n" in value:
        return f'invalid path "{value}" (expected an absolute path without "..")'
    return None


class Disk(Kind, type="disk"):
    """Bind mounts and volumes."""

    KEYS = (
        Key("path", description="Where it appears inside the instance", required=True, check=_path_fault),
        Key("source", description="Path on the host, or name of a custom volume of `pool`"),
        Key("pool", description="Storage pool of the root disk or of the custom volume"),
        Key("size", kind="size", description="Size of the root disk (a quota), where the pool can enforce one"),
        Key("readonly", kind="bool", default="false", description="Whether writes are refused"),
        Key("recursive", kind="bool", default="false", description="Whether mounts below the source come along"),
        Key("required", kind="bool", default="true", description="Whether a missing source fails the start"),
        Key("optional", kind="bool", default="false", description="The opposite of `required`, LXD's older word"),
        Key("shift", kind="bool", default="false", description="Whether the source's ids are shifted to the map's"),
    )

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        found = super().faults(device, config)
        where = f"devices.{device}"
        source, pool = config.get("source", ""), config.get("pool", "")
        if is_root(config):
            if not pool:
                found.append(Fault(f"{where}.pool", "the root disk needs a storage pool"))
            return found
        if not source:
            found.append(Fault(f"{where}.source", "a disk other than the root needs a source"))
        elif pool and "/" in source:
            found.append(Fault(f"{where}.source", f'invalid volume name "{source}"'))
        elif not pool and not source.startswith("/"):
            found.append(Fault(f"{where}.source", f'invalid source "{source}" (an absolute path, or set a pool)'))
        if config.get("path") == "/":
            found.append(Fault(f"{where}.path", 'only the root disk (without a source) can have the path "/"'))
        if config.get("size"):
            found.append(Fault(f"{where}.size", "only the root disk can have a size"))
        return found

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        config, where = context.config, f"devices.{context.device}"
        pool, source = config.get("pool", ""), config.get("source", "")
        if pool and pool not in self.pools.names():
            return [Fault(f"{where}.pool", f'Storage pool "{pool}" not found')]
        if pool or is_root(config) or not self._required(config):
            return []
        if not await asyncio.to_thread(Path(source).exists):
            return [Fault(f"{where}.source", f'Missing source path "{source}" for disk "{context.device}"')]
        return []

    def _required(self, config: Mapping[str, str]) -> bool:
        if "required" in config:
            return is_true(config["required"])
        return not is_true(config.get("optional"))

    def _mount_point(self, context: DeviceContext) -> Path:
        return context.directory / f"disk.{context.device}"

    async def run_config(self, context: DeviceContext) -> RunConfig:
        if is_root(context.config):
            return RunConfig()
        point = self._mount_point(context)
        target = context.config["path"].lstrip("/")
        # `optional`: a source that is not required and missing has no mount point; liblxc then skips the entry.
        options = ["rbind" if is_true(context.config.get("recursive")) else "bind"]
        options.append("create=file" if await asyncio.to_thread(point.is_file) else "create=dir")
        if is_true(context.config.get("readonly")):
            options.append("ro")
        if not self._required(context.config):
            options.append("optional")
        return RunConfig(mounts=(MountSpec(str(point), target, "none", tuple(options)),))

    async def start(self, context: DeviceContext) -> None:
        if is_root(context.config):
            return
        point = self._mount_point(context)
        if await self.host.mounts.mounted(point):
            return
        source, shifted = await self._source(context)
        if source is None:
            return
        await asyncio.to_thread(_make_mount_point, source, point)
        recursive = is_true(context.config.get("recursive"))
        readonly = is_true(context.config.get("readonly"))
        if shifted and context.idmap:
            await self.host.mounts.idmapped_bind(source, point, context.idmap, recursive=recursive, readonly=readonly)
        else:
            await self.host.mounts.bind(source, point, recursive=recursive, readonly=readonly)

    async def _source(self, context: DeviceContext) -> tuple[Path | None, bool]:
        """The directory or file to bind and whether its ids are to be shifted; None: missing and not required."""
        config = context.config
        if config.get("pool"):
            # A custom volume keeps its ids as on disk, so that instances with different maps can share it.
            volume = VolumeRef(config["pool"], "custom", _volume_name(context))
            return await self.pools.mount(volume, IdMap()), True
        source = Path(config["source"])
        if not await asyncio.to_thread(source.exists) and not self._required(config):
            return None, False
        return source, is_true(config.get("shift"))

    async def stop(self, context: DeviceContext) -> None:
        if is_root(context.config):
            return
        point = self._mount_point(context)
        await self.host.mounts.unmount(point, detach=True)
        await asyncio.to_thread(_remove_mount_point, point)
        if context.config.get("pool"):
            await self.pools.unmount(VolumeRef(context.config["pool"], "custom", _volume_name(context)))


def _volume_name(context: DeviceContext) -> str:
    name = context.config["source"]
    return name if context.project == "default" else f"{context.project}_{name}"


def _make_mount_point(source: Path, point: Path) -> None:
    point.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    if source.is_dir():
        point.mkdir(exist_ok=True)
    else:
        point.touch(exist_ok=True)


def _remove_mount_point(point: Path) -> None:
    if point.is_dir():
        point.rmdir()
    else:
        point.unlink(missing_ok=True)
