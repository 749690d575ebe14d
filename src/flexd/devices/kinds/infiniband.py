# SPDX-License-Identifier: Apache-2.0
"""Device kind `infiniband`: an IPoIB interface of the host, with the nodes of /dev/infiniband beside it."""

import re

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.devices import nics
from flexd.devices.contract import DeviceContext
from flexd.devices.kinds.nic_physical import PhysicalNic

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
            reason = "this host has no InfiniBand hardware, or its kernel no driver for it (CONFIG_INFINIBAND)"
            return [Fault(f"devices.{context.device}", reason)]
        return await super().host_faults(context)


class InfinibandSriov(InfinibandPhysical, type="infiniband", subtype="sriov"):
    """Virtual functions of InfiniBand cards."""

    KEYS = (Key("nictype", description="`sriov`", required=True, choices=("sriov",)), *InfinibandPhysical.KEYS[1:])

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        found = await super().host_faults(context)
        if not found and not await self.host.links.virtual_functions(context.config["parent"]):
            reason = f'"{context.config["parent"]}" has no SR-IOV virtual functions'
            found.append(Fault(f"devices.{context.device}.parent", reason))
        return found
