# SPDX-License-Identifier: Apache-2.0
"""Device kind `gpu`: the DRM nodes of graphics cards. Only whole cards (`physical`) can be given to containers here."""

from collections.abc import Mapping

import msgspec

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.api.resources import ResourcesGPU, ResourcesGPUCard
from flexd.devices.contract import DeviceContext
from flexd.devices.unix import PERMISSIONS, NodeKind, hex_fault
from flexd.host.contract import Node

_REFUSED = {
    "mdev": "mediated devices (mdev) can only be given to virtual machines",
    "mig": "NVIDIA MIG needs libnvidia-container, which is not supported",
    "sriov": "SR-IOV GPUs can only be given to virtual machines",
}


class Gpu(NodeKind, type="gpu"):
    """Without a choice of card: all of them."""

    REQUIRED = True
    KEYS = (
        Key("gputype", default="physical", description="`physical`; the others are refused with the reason"),
        Key("vendorid", check=hex_fault, description="Vendor id of the card"),
        Key("productid", check=hex_fault, description="Product id of the card"),
        Key("id", kind="integer", description="DRM card number"),
        Key("pci", description="PCI address of the card"),
        *PERMISSIONS,
    )

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        found = super().faults(device, config)
        kind, where = config.get("gputype") or "physical", f"devices.{device}"
        if kind != "physical":
            found.append(Fault(f"{where}.gputype", _REFUSED.get(kind, f'unsupported gputype "{kind}"')))
        for one, others in (("pci", ("id", "productid", "vendorid")), ("id", ("pci", "productid", "vendorid"))):
            both = next((each for each in others if config.get(one) and config.get(each)), None)
            if both is not None:
                found.append(Fault(f"{where}.{both}", f"Cannot use {both} when {one} is set"))
        return found

    async def wanted(self, context: DeviceContext) -> dict[str, Node]:
        resources = await self.host.machine.resources()
        gpu = msgspec.convert(resources.get("gpu", {}), ResourcesGPU)
        found: dict[str, Node] = {}
        for card in gpu.cards:
            if card.drm is None or not _fits(card, context.config):
                continue
            drm = card.drm
            pairs = ((drm.card_name, drm.card_device), (drm.render_name, drm.render_device))
            for name, device in (*pairs, (drm.control_name, drm.control_device)):
                major, _, minor = device.partition(":")
                if name and major.isdecimal() and minor.isdecimal():
                    found[f"/dev/dri/{name}"] = Node("c", int(major), int(minor))
        return found

    async def missing(self, context: DeviceContext) -> str:
        del context
        if not await self.host.nodes.has_class("drm"):
            return "this host has no GPU, or its kernel no driver for it (CONFIG_DRM)"
        return "Failed to detect requested GPU device"


def _fits(card: ResourcesGPUCard, config: Mapping[str, str]) -> bool:
    wanted = (
        (config.get("vendorid"), card.vendor_id),
        (config.get("productid"), card.product_id),
        (config.get("pci"), card.pci_address),
        (config.get("id"), str(card.drm.id) if card.drm is not None else ""),
    )
    return all(not value or value == actual for value, actual in wanted)
