# SPDX-License-Identifier: Apache-2.0
"""What kinds share that give device nodes of the host to a container.

A node of its own is made for the container (owner and mode as configured, in its ids) and bound to its place inside;
the files in the instance's directory tell what is given at the moment."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.api.units import is_true
from flexd.devices.contract import DeviceContext, Kind, RunConfig
from flexd.host.contract import Node
from flexd.runtime.contract import MountSpec, RunningContainer

_DEFAULT_MODE = 0o660


def id_fault(value: str) -> str | None:
    """What is wrong with a user or group id."""
    return None if value.isdecimal() and int(value) < 2**32 - 1 else f'invalid value "{value}" (expected an id)'


def mode_fault(value: str) -> str | None:
    """What is wrong with permissions in octal digits."""
    if value and set(value) <= set("01234567") and int(value, 8) <= 0o7777:
        return None
    return f'invalid mode "{value}" (octal digits, such as 0660)'


def hex_fault(value: str) -> str | None:
    """What is wrong with a vendor or product id."""
    if len(value) == 4 and set(value) <= set("0123456789abcdef"):
        return None
    return f'invalid value "{value}" (four hexadecimal digits in lower case)'


PERMISSIONS = (
    Key("mode", default="0660", check=mode_fault, description="Permissions inside the instance"),
    Key("uid", default="0", check=id_fault, description="Owner inside the instance"),
    Key("gid", default="0", check=id_fault, description="Group inside the instance"),
)


class NodeKind(Kind):
    """Base; kinds say which nodes are `wanted`."""

    REQUIRED = False  # what `required` is where it is not set

    async def wanted(self, context: DeviceContext) -> dict[str, Node]:
        """Path inside the container -> the device to be there, as the host has them now."""
        raise NotImplementedError

    def directories(self, context: DeviceContext) -> tuple[Path, ...]:
        """Where nodes may be made by hand; hardware is heard of anyway."""
        del context
        return ()

    def is_required(self, config: Mapping[str, str]) -> bool:
        return is_true(config["required"]) if config.get("required") else self.REQUIRED

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        if not self.is_required(context.config) or await self.wanted(context):
            return []
        return [Fault(f"devices.{context.device}", await self.missing(context))]

    async def missing(self, context: DeviceContext) -> str:
        """Why nothing is there."""
        del context
        return "this host has no such device"

    # --- the nodes that are given ------------------------------------------------------------------------------------

    def _prefix(self, context: DeviceContext) -> str:
        return f"unix.{_quoted(context.device)}."

    def _file(self, context: DeviceContext, path: str) -> Path:
        return context.directory / (self._prefix(context) + _quoted(path))

    async def _given(self, context: DeviceContext) -> dict[str, Node]:
        names = await asyncio.to_thread(_list, context.directory, self._prefix(context))
        nodes = [(name, await self.host.nodes.read(context.directory / name)) for name in names]
        return {unquote(name.removeprefix(self._prefix(context))): node for name, node in nodes if node is not None}

    async def _make(self, context: DeviceContext, path: str, node: Node) -> None:
        config, idmap = context.config, context.idmap
        mode = int(config["mode"], 8) if config.get("mode") else _DEFAULT_MODE
        uid, gid = idmap.host_uid(int(config.get("uid") or 0)), idmap.host_gid(int(config.get("gid") or 0))
        # An id that the map does not have belongs to nobody inside.
        where = {"mode": mode, "uid": 65534 if uid is None else uid, "gid": 65534 if gid is None else gid}
        await self.host.nodes.make(self._file(context, path), node, **where)

    def _mount(self, context: DeviceContext, path: str) -> MountSpec:
        return MountSpec(str(self._file(context, path)), path.strip("/"), "none", ("bind", "create=file"))

    async def start(self, context: DeviceContext) -> None:
        for path, node in (await self.wanted(context)).items():
            await self._make(context, path, node)

    async def run_config(self, context: DeviceContext) -> RunConfig:
        given = await self._given(context)
        mounts = tuple(self._mount(context, path) for path in given)
        return RunConfig(mounts=mounts, rules=tuple(_rule(node) for node in given.values()))

    async def stop(self, context: DeviceContext) -> None:
        await self.hotplug.remove((context.runtime_name, context.device))
        for path in await self._given(context):
            await asyncio.to_thread(self._file(context, path).unlink, missing_ok=True)

    # --- hardware that comes and goes --------------------------------------------------------------------------------

    async def activate(self, context: DeviceContext, container: RunningContainer) -> None:
        await self.adopt(context, container)

    async def adopt(self, context: DeviceContext, container: RunningContainer) -> None:
        if not self.is_required(context.config):
            await self.refresh(context, container)  # what changed while nobody looked
            key = (context.runtime_name, context.device)
            self.hotplug.add(key, self.directories(context), lambda: self.refresh(context, container))

    async def deactivate(self, context: DeviceContext, container: RunningContainer) -> None:
        del container
        await self.hotplug.remove((context.runtime_name, context.device))

    async def refresh(self, context: DeviceContext, container: RunningContainer) -> None:
        """Make what is inside what the host has."""
        wanted, given = await self.wanted(context), await self._given(context)
        for path, node in given.items():
            if wanted.get(path) != node:
                await self._take(context, container, path, node)
        for path, node in wanted.items():
            if given.get(path) != node:
                await self._give(context, container, path, node)

    async def _give(self, context: DeviceContext, container: RunningContainer, path: str, node: Node) -> None:
        await self._make(context, path, node)
        if not context.idmap:
            await self.runtime.allow_device(container, _rule(node))
        await self.runtime.add_mount(container, self._mount(context, path))

    async def _take(self, context: DeviceContext, container: RunningContainer, path: str, node: Node) -> None:
        await self.runtime.remove_mount(container, self._mount(context, path))
        if not context.idmap:
            await self.runtime.deny_device(container, _rule(node))
        await asyncio.to_thread(self._file(context, path).unlink, missing_ok=True)


def _rule(node: Node) -> str:
    return f"{node.kind} {node.major}:{node.minor} rwm"


def _quoted(text: str) -> str:
    # Dots separate the parts of a file's name.
    return quote(text, safe="").replace(".", "%2E")


def _list(directory: Path, prefix: str) -> list[str]:
    return sorted(path.name for path in directory.glob("unix.*") if path.name.startswith(prefix))
