# SPDX-License-Identifier: Apache-2.0
"""Device kinds `unix-char` and `unix-block`: one node of the host, or one made from its numbers."""

from collections.abc import Mapping
from pathlib import Path

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.devices.contract import DeviceContext
from flexd.devices.unix import PERMISSIONS, NodeKind
from flexd.host.contract import Node

_WORDS = {"c": "character", "b": "block"}


def _path_fault(value: str) -> str | None:
    if value.startswith("/") and ".." not in value.split("/") and "\n" not in value:
        return None
    return f'invalid path "{value}" (expected an absolute path without "..")'


def _number_fault(value: str) -> str | None:
    # Majors have 12 bits, minors 20 (linux/kdev_t.h).
    return None if value.isdecimal() and int(value) < 1 << 20 else f'invalid device number "{value}"'


class UnixChar(NodeKind, type="unix-char"):
    """`source` on the host, `path` inside; each is the other's default."""

    KIND = "c"
    REQUIRED = True
    KEYS = (
        Key("source", check=_path_fault, description="Path on the host"),
        Key("path", check=_path_fault, description="Path inside the instance"),
        Key("major", check=_number_fault, description="Major number; of the source when not given"),
        Key("minor", check=_number_fault, description="Minor number; of the source when not given"),
        Key("required", kind="bool", default="true", description="Whether it must be there for a start"),
        *PERMISSIONS,
    )

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        found = super().faults(device, config)
        if not config.get("source") and not config.get("path"):
            found.append(
                Fault(f"devices.{device}", "Unix device entry is missing the required source or path property")
            )
        if bool(config.get("major")) != bool(config.get("minor")):
            found.append(Fault(f"devices.{device}.major", "major and minor must be given together"))
        return found

    def _source(self, context: DeviceContext) -> str:
        return context.config.get("source") or context.config["path"]

    async def wanted(self, context: DeviceContext) -> dict[str, Node]:
        config = context.config
        path = config.get("path") or config["source"]
        if config.get("major"):
            return {path: Node(self.KIND, int(config["major"]), int(config["minor"]))}
        node = await self.host.nodes.read(Path(self._source(context)))
        return {path: node} if node is not None and node.kind == self.KIND else {}

    async def missing(self, context: DeviceContext) -> str:
        source = self._source(context)
        if await self.host.nodes.read(Path(source)) is not None:
            return f'"{source}" is not a {_WORDS[self.KIND]} device'
        return f'The required device path "{source}" doesn\'t exist and the major and minor settings are not specified'

    def directories(self, context: DeviceContext) -> tuple[Path, ...]:
        return (Path(self._source(context)).parent,)


class UnixBlock(UnixChar, type="unix-block"):
    """The same for block devices."""

    KIND = "b"
