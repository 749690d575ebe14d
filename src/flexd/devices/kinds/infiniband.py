# SPDX-License-Identifier: Apache-2.0
"""Device kind `infiniband`: an IPoIB interface of the host, or a virtual function of its card."""

import re
from collections.abc import Mapping

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.devices import nics
from flexd.devices.contract import DeviceContext
from flexd.devices.kinds.nic_physical import PhysicalNic
from flexd.devices.kinds.nic_sriov import SriovNic

_MISSING = "this host has no InfiniBand hardware, or its kernel no driver for it (CONFIG_INFINIBAND)"
_GUID = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){7}([0-9a-f:]{0,36})", re.IGNORECASE)


def _hwaddr_fault(value: str) -> str | None:
    return None if _GUID.fullmatch(value) else f'invalid address "{value}" (8 or 20 bytes in hexadecimal)'


class InfinibandPhysical(PhysicalNic, type="infiniband", subtype="physical"):
    """Given away as a physical NIC is."""

    UPDATABLE = frozenset()
    KEYS = (
        Key("nictype", description="`physical` or `sriov`", required=True, choices=("physical",)),
        Key("parent", description="Interface of the host", check=nics.interface_fault, required=True),
        Key("hwaddr", description="Address of the interface", check=_hwaddr_fault),
        nics.NAME,
        nics.MTU,
    )

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        if not await self.host.nodes.has_class("infiniband"):
            return [Fault(f"devices.{context.device}", _MISSING)]
        return await super().host_faults(context)


class InfinibandSriov(SriovNic, type="infiniband", subtype="sriov"):
    """A virtual function of a card."""

    UPDATABLE = frozenset()
    KEYS = (Key("nictype", description="`sriov`", required=True, choices=("sriov",)), *InfinibandPhysical.KEYS[1:])

    def new_volatile(self, device: str, config: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
        return PhysicalNic.new_volatile(self, device, config, known)

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        if not await self.host.nodes.has_class("infiniband"):
            return [Fault(f"devices.{context.device}", _MISSING)]
        return await super().host_faults(context)

    async def start(self, context: DeviceContext) -> None:
        await PhysicalNic.start(self, context)

    async def stop(self, context: DeviceContext) -> None:
        await PhysicalNic.stop(self, context)
