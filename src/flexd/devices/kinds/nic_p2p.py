# SPDX-License-Identifier: Apache-2.0
"""Device kind `nic`, type `p2p`: a veth pair whose end on the host is on no bridge; the host routes to it."""

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.devices import nics
from flexd.devices.contract import DeviceContext
from flexd.devices.nics import VethNic, value_of


class P2pNic(VethNic, type="nic", subtype="p2p"):
    """What addresses the two ends have is for people to set."""

    KEYS = (
        Key("nictype", description="`p2p`", choices=("p2p",), required=True),
        nics.NAME,
        nics.HWADDR,
        nics.MTU,
        nics.HOST_NAME,
        nics.QUEUE,
        nics.BOOT,
        *nics.LIMITS,
        *nics.ROUTES,
    )

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        return await self.limit_faults(context)

    async def start(self, context: DeviceContext) -> None:
        host_name = value_of(context, "host_name")
        await self.make_pair(context, int(context.config.get("mtu") or 0))
        if any(context.config.get(key.name) for key in nics.LIMITS):
            await self.limit(context)
        await self.host.links.set_up(host_name)
        await nics.change_routes(self.host, host_name, {}, context.config)
