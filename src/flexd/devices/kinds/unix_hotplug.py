# SPDX-License-Identifier: Apache-2.0
"""Device kinds `unix-hotplug` and `usb`: nodes of USB hardware by vendor and product, as it is plugged in and out."""

from collections.abc import Mapping

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.devices.contract import DeviceContext
from flexd.devices.unix import PERMISSIONS, NodeKind, hex_fault
from flexd.host.contract import Node

# Nodes for programs that speak USB themselves; all others belong to drivers.
_RAW = "/dev/bus/usb/"


class UnixHotplug(NodeKind, type="unix-hotplug"):
    """Nodes that drivers make for it (ttyUSB0, hidraw1, sda)."""

    KEYS = (
        Key("vendorid", check=hex_fault, description="Vendor id of the USB device"),
        Key("productid", check=hex_fault, description="Product id of the USB device"),
        Key("required", kind="bool", default="false", description="Whether it must be there for a start"),
        *PERMISSIONS,
    )

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        found = super().faults(device, config)
        if not config.get("vendorid") and not config.get("productid"):
            reason = "Unix hotplug devices require a vendorid or productid"
            found.append(Fault(f"devices.{device}", reason))
        return found

    async def wanted(self, context: DeviceContext) -> dict[str, Node]:
        return {path: node for path, node in (await self._all(context)).items() if not path.startswith(_RAW)}

    async def _all(self, context: DeviceContext) -> dict[str, Node]:
        config = context.config
        return await self.host.nodes.of_usb(config.get("vendorid", ""), config.get("productid", ""))


class Usb(UnixHotplug, type="usb"):
    """The device's own node, for programs that speak USB. Without ids: all of them."""

    KEYS = UnixHotplug.KEYS

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        return NodeKind.faults(self, device, config)

    async def wanted(self, context: DeviceContext) -> dict[str, Node]:
        return {path: node for path, node in (await self._all(context)).items() if path.startswith(_RAW)}
