# SPDX-License-Identifier: Apache-2.0
"""Device kind `nic`, type `macvlan`: an interface with a MAC address of its own on one of the host's."""

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.devices import nics
from flexd.devices.contract import DeviceContext
from flexd.devices.nics import Nic, value_of


class MacvlanNic(Nic, type="nic", subtype="macvlan"):
    """Reaches the network of its parent, but not the host itself (a property of macvlan)."""

    PREFIX = "mac"
    UPDATABLE = frozenset({"boot.priority"})
    KEYS = (
        Key("nictype", description="`macvlan`", choices=("macvlan",), required=True),
        Key("parent", description="Interface of the host", check=nics.interface_fault, required=True),
        Key("mode", default="bridge", choices=("bridge", "vepa", "passthru", "private"), description="Macvlan mode"),
        nics.NAME,
        nics.HWADDR,
        nics.MTU,
        nics.VLAN,
        nics.GVRP,
        nics.BOOT,
    )

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        fault = await self.probes.link_fault("CONFIG_MACVLAN", "macvlan")
        missing = [Fault(f"devices.{context.device}.nictype", fault)] if fault else []
        return [*missing, *await self.parent_faults(context), *await self.vlan_faults(context)]

    async def start(self, context: DeviceContext) -> None:
        await self.make_vlan(context)
        name, config = self.inner_link(context), context.config
        await self.host.links.delete(name)
        await self.host.links.create_macvlan(
            name,
            self.parent(context),
            mode=config.get("mode") or "bridge",
            hwaddr=value_of(context, "hwaddr"),
            mtu=int(config.get("mtu") or 0),
        )

    async def stop(self, context: DeviceContext) -> None:
        await self.host.links.delete(self.inner_link(context))
