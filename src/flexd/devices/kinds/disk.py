# SPDX-License-Identifier: Apache-2.0
"""Device kind `disk`: the root file system, and host paths, block devices, custom volumes or tmpfs inside.

Except for the root, the source is mounted at `DIRECTORY/disk.DEVICE` first (idmapped where ids are to be shifted), and
the container binds from there.
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from msgspec.structs import replace

from flexd.api.errors import BadRequest, Fault, Forbidden
from flexd.api.idmap import IdMap
from flexd.api.keys import Key
from flexd.api.units import is_true, parse_size
from flexd.devices import throttle
from flexd.devices.contract import DeviceContext, Kind, RunConfig
from flexd.host.contract import HostError
from flexd.runtime.contract import MountSpec, RunningContainer
from flexd.storage.contract import VolumeRef
from flexd.storage.names import storage_name

_TMPFS = "tmpfs:"
_PROPAGATIONS = ("private", "shared", "slave", "unbindable", "rprivate", "rshared", "rslave", "runbindable")


def is_root(config: Mapping[str, str]) -> bool:
    """Whether an entry is the instance's root disk: type disk, path /, no source (LXD's rule)."""
    return config.get("type") == "disk" and config.get("path") == "/" and not config.get("source")


def _path_fault(value: str) -> str | None:
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts or "\n" in value:
        return f'invalid path "{value}" (expected an absolute path without "..")'
    return None


def _options_fault(value: str) -> str | None:
    if any(character.isspace() for character in value):
        return f'invalid mount options "{value}" (separated by commas, without spaces)'
    return None


class Disk(Kind, type="disk"):
    """Bind mounts and volumes."""

    SAVABLE = True
    UPDATABLE = frozenset({*throttle.KEYS, "size", "boot.priority", "required", "optional"})
    KEYS = (
        Key("path", description="Where it appears inside the instance", required=True, check=_path_fault),
        Key("source", description="Path or block device of the host, custom volume of `pool`, or `tmpfs:`"),
        Key("pool", description="Storage pool of the root disk or of the custom volume"),
        Key(
            "size", kind="size", description="Size of the root disk (a quota, where the pool can enforce one) or tmpfs"
        ),
        Key("readonly", kind="bool", default="false", description="Whether writes are refused"),
        Key("recursive", kind="bool", default="false", description="Whether mounts below the source come along"),
        Key("required", kind="bool", default="true", description="Whether a missing source fails the start"),
        Key("optional", kind="bool", default="false", description="The opposite of `required`, LXD's older word"),
        Key("shift", kind="bool", default="false", description="Whether the source's ids are shifted to the map's"),
        Key("propagation", default="private", choices=_PROPAGATIONS, description="How later mounts below it spread"),
        Key("raw.mount.options", check=_options_fault, description="Options for mounting a block device or tmpfs"),
        Key("limits.read", check=throttle.rate_fault, description="Bytes (10MB) or operations (100iops) per second"),
        Key("limits.write", check=throttle.rate_fault, description="As `limits.read`"),
        Key("limits.max", check=throttle.rate_fault, description="The same for reading and writing"),
        Key("boot.priority", kind="integer", description="Of virtual machines; without effect here"),
    )

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        found = super().faults(device, config)
        where = f"devices.{device}"
        if config.get("limits.max") and (config.get("limits.read") or config.get("limits.write")):
            found.append(Fault(f"{where}.limits.max", "cannot be used together with limits.read or limits.write"))
        found += [Fault(f"{where}.{key}", message) for key, message in self._mixed(config)]
        return found

    def _mixed(self, config: Mapping[str, str]) -> list[tuple[str, str]]:
        """Keys that contradict each other or miss one another."""
        source, pool = config.get("source", ""), config.get("pool", "")
        if is_root(config):
            return [] if pool else [("pool", "the root disk needs a storage pool")]
        found = []
        if not source:
            found.append(("source", "a disk other than the root needs a source"))
        elif pool and "/" in source:
            found.append(("source", f'invalid volume name "{source}"'))
        elif not pool and source.startswith(("ceph:", "cephfs:")):
            found.append(("source", "Ceph is not supported"))
        elif not pool and source != _TMPFS and not source.startswith("/"):
            found.append(("source", f'invalid source "{source}" (an absolute path, or set a pool)'))
        if config.get("path") == "/":
            found.append(("path", 'only the root disk (without a source) can have the path "/"'))
        if config.get("size") and source != _TMPFS:
            found.append(("size", "only the root disk and tmpfs can have a size"))
        if source == _TMPFS and is_true(config.get("shift")):
            found.append(("shift", "a tmpfs belongs to the instance's root already"))
        return found

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        config, where = context.config, f"devices.{context.device}"
        pool, source = config.get("pool", ""), config.get("source", "")
        if pool and pool not in self.pools.names():
            return [Fault(f"{where}.pool", f'Storage pool "{pool}" not found')]
        if pool and source:
            content = self.pools.content_type(self._volume(context))
            if content is None:
                return [Fault(f"{where}.source", f'Storage volume "{source}" not found on pool "{pool}"')]
            if content != "filesystem":
                return [Fault(f"{where}.source", "Custom block volumes cannot be used on containers")]
        if source.startswith("/") and self._required(config) and not await asyncio.to_thread(Path(source).exists):
            return [Fault(f"{where}.source", f'Missing source path "{source}" for disk "{context.device}"')]
        return await self._limit_faults(context)

    async def _limit_faults(self, context: DeviceContext) -> list[Fault]:
        limited = next((key for key in throttle.KEYS if context.config.get(key)), None)
        if limited is None:
            return []
        where = f"devices.{context.device}.{limited}"
        controllers = (await self.host.cgroups.layout()).controllers
        if "blkio" not in controllers and "io" not in controllers:
            return [Fault(where, "this host's kernel has no cgroup controller io (CONFIG_BLK_DEV_THROTTLING)")]
        if await self._block_device(context) is None:
            return [Fault(where, "cannot be enforced: its file system is on no block device")]
        return []

    def _required(self, config: Mapping[str, str]) -> bool:
        if config.get("required"):
            return is_true(config["required"])
        return not is_true(config.get("optional"))

    def _volume(self, context: DeviceContext) -> VolumeRef:
        """The custom volume behind the entry: one of those that the instance's project uses."""
        config = context.config
        return VolumeRef(config["pool"], "custom", storage_name(context.volume_project, config["source"], "custom"))

    def _mount_point(self, context: DeviceContext) -> Path:
        return context.directory / f"disk.{quote(context.device, safe='')}"

    # --- on and off --------------------------------------------------------------------------------------------------

    async def run_config(self, context: DeviceContext) -> RunConfig:
        point = self._mount_point(context)
        if is_root(context.config) or not await asyncio.to_thread(point.exists):
            return RunConfig()  # a source that is not required and missing has no mount point
        config = context.config
        options = ["rbind" if is_true(config.get("recursive")) else "bind"]
        options.append("create=file" if await asyncio.to_thread(point.is_file) else "create=dir")
        if is_true(config.get("readonly")):
            options.append("ro")
        if config.get("propagation"):
            options.append(config["propagation"])
        target = config["path"].strip("/")
        return RunConfig(mounts=(MountSpec(str(point), target, "none", tuple(options)),))

    async def start(self, context: DeviceContext) -> None:
        if is_root(context.config):
            return
        point = self._mount_point(context)
        source, shifted = await self._source(context)
        async with self._within_bounds(context, source) as source:
            await self._start(context, source, point, shifted=shifted)

    @asynccontextmanager
    async def _within_bounds(self, context: DeviceContext, source: Path | None) -> AsyncIterator[Path | None]:
        """The source, held while it is mounted if its project may use some directories only: whoever can write there
        could put a link in its place."""
        if source is None or not context.source_parent:
            yield source
            return
        try:
            async with self.host.mounts.beneath(Path(context.source_parent), source) as held:
                yield held
        except HostError as error:
            if error.errno != errno.EXDEV:
                raise
            raise Forbidden(
                f'Failed adding disk "{context.device}" to instance "{context.instance}": its source "{source}" leads '
                f"out of {context.source_parent} (restricted.devices.disk.paths)"
            ) from error

    async def _start(self, context: DeviceContext, source: Path | None, point: Path, *, shifted: bool) -> None:
        node = await self.host.nodes.read(source) if source and not context.config.get("pool") else None
        if source is not None and node is not None and node.kind == "b":
            await self._mount_block(context, source, point)
        elif not await self.host.mounts.mounted(point):
            await self._mount(context, source, point, shifted=shifted)

    async def _mount(self, context: DeviceContext, source: Path | None, point: Path, *, shifted: bool) -> None:
        if context.config["source"] == _TMPFS:
            await asyncio.to_thread(_make_mount_point, None, point)
            await self.host.mounts.mount("tmpfs", point, "tmpfs", _tmpfs_options(context))
        elif source is not None:
            await asyncio.to_thread(_make_mount_point, source, point)
            recursive, readonly = (is_true(context.config.get(key)) for key in ("recursive", "readonly"))
            bind, mounts = (source, point), self.host.mounts
            if shifted and context.idmap:
                await mounts.idmapped_bind(*bind, context.idmap, recursive=recursive, readonly=readonly)
            else:
                await mounts.bind(*bind, recursive=recursive, readonly=readonly)

    async def _mount_block(self, context: DeviceContext, source: Path, point: Path) -> None:
        """The file system on a block device, whichever it is; over it, where wanted, its shifted view."""
        config = context.config
        await asyncio.to_thread(_make_mount_point, None, point)
        made = len([mount for mount in await self.host.mounts.below(point) if mount.target == point])
        if not made:
            options = ["ro"] if is_true(config.get("readonly")) else []
            options += filter(None, [config.get("raw.mount.options", "")])
            await self.host.mounts.mount(str(source), point, "", ",".join(options))
        if made < 2 and is_true(config.get("shift")) and context.idmap:
            await self.host.mounts.idmapped_bind(point, point, context.idmap)

    async def _source(self, context: DeviceContext) -> tuple[Path | None, bool]:
        """The directory or file to bind and whether its ids are to be shifted; None: missing and not required."""
        config = context.config
        if config["source"] == _TMPFS:
            return None, False
        if config.get("pool"):
            # A custom volume keeps its ids as on disk, so that instances with different maps can share it.
            return await self.pools.mount(self._volume(context), IdMap()), True
        source = Path(config["source"])
        if not await asyncio.to_thread(source.exists) and not self._required(config):
            return None, False
        return source, is_true(config.get("shift"))

    async def stop(self, context: DeviceContext) -> None:
        if is_root(context.config):
            return
        await self.hotplug.remove((context.runtime_name, context.device))
        point = self._mount_point(context)
        while await self.host.mounts.mounted(point):
            await self.host.mounts.unmount(point, detach=True)
        await asyncio.to_thread(_remove_mount_point, point)
        if context.config.get("pool"):
            await self.pools.unmount(self._volume(context))

    # --- a source that comes later -----------------------------------------------------------------------------------

    async def adopt(self, context: DeviceContext, container: RunningContainer) -> None:
        config = context.config
        host_path = config.get("source", "").startswith("/") and not config.get("pool")
        if host_path and not self._required(config) and not await asyncio.to_thread(self._mount_point(context).exists):
            await self._look_for_source(context, container)

    async def _look_for_source(self, context: DeviceContext, container: RunningContainer) -> None:
        """Give it to the container once it is there; until then watch the directory it, or one above it, will be in."""
        source, point = Path(context.config["source"]), self._mount_point(context)
        if await asyncio.to_thread(point.exists):
            return  # done
        watched: Path | None = None
        while not await asyncio.to_thread(source.exists):
            place = await asyncio.to_thread(_existing, source.parent)
            if place == watched:
                return
            key, look = (context.runtime_name, context.device), partial(self._look_for_source, context, container)
            self.hotplug.add(key, [place], look)
            watched = place  # and once more: it may have come before it was watched for
        await self.start(context)
        for mount in (await self.run_config(context)).mounts:
            await self.runtime.add_mount(container, mount)
        if any(context.config.get(key) for key in throttle.KEYS):
            await self._limit(context, container, [context.config])

    # --- limits ------------------------------------------------------------------------------------------------------

    async def activate(self, context: DeviceContext, container: RunningContainer) -> None:
        if any(context.config.get(key) for key in throttle.KEYS):
            await self._limit(context, container, [context.config])
        await self.adopt(context, container)

    async def deactivate(self, context: DeviceContext, container: RunningContainer) -> None:
        await self.hotplug.remove((context.runtime_name, context.device))
        if any(context.config.get(key) for key in throttle.KEYS):
            await self._limit(context, container, [])

    async def update(self, old: DeviceContext, new: DeviceContext, container: RunningContainer) -> None:
        if throttle.rates(old.config) != throttle.rates(new.config):
            await self._limit(new, container, [new.config])

    async def _limit(self, context: DeviceContext, container: RunningContainer, own: list[Mapping[str, str]]) -> None:
        device = await self._block_device(context)
        if device is None:
            raise BadRequest(
                f'Failed limiting disk "{context.device}" of instance "{context.instance}": '
                "its file system is on no block device"
            )
        others = [config for config in context.siblings.values() if await self._is_on(device, context, config)]
        wanted = throttle.average(throttle.rates(config) for config in (*own, *others))
        for controller, file, value in throttle.files(device, wanted, await self.host.cgroups.layout()):
            await self.host.cgroups.write(container.cgroup, controller, file, value)

    async def _is_on(self, device: str, context: DeviceContext, config: Mapping[str, str]) -> bool:
        if config.get("type") != "disk" or not any(config.get(key) for key in throttle.KEYS):
            return False
        return await self._block_device(replace(context, config=config)) == device

    async def _block_device(self, context: DeviceContext) -> str | None:
        config = context.config
        if config.get("source") == _TMPFS:
            return None
        if is_root(config):
            path = self.pools.volume_path(VolumeRef(config["pool"], "container", context.runtime_name))
        elif config.get("pool"):
            path = self.pools.volume_path(self._volume(context))
        else:
            path = Path(config["source"])
        try:
            # A volume that is still to be made will be where its pool is.
            return await self.host.nodes.disk_of(await asyncio.to_thread(_existing, path))
        except HostError:  # gone, or not required and not there
            return None


def _existing(path: Path) -> Path:
    return next((each for each in (path, *path.parents) if each.exists()), path)


def _tmpfs_options(context: DeviceContext) -> str:
    config, idmap = context.config, context.idmap
    words = ["nosuid", "nodev", "mode=0755", f"uid={idmap.host_uid(0) or 0}", f"gid={idmap.host_gid(0) or 0}"]
    if config.get("size"):
        words.append(f"size={parse_size(config['size'])}")
    return ",".join(filter(None, [*words, config.get("raw.mount.options", "")]))


def _make_mount_point(source: Path | None, point: Path) -> None:
    point.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    if source is None or source.is_dir():
        point.mkdir(exist_ok=True)
    else:
        point.touch(exist_ok=True)


def _remove_mount_point(point: Path) -> None:
    if point.is_dir():
        point.rmdir()
    else:
        point.unlink(missing_ok=True)
