# SPDX-License-Identifier: Apache-2.0
"""Device kind `nic`, type `sriov`: a virtual function of a network card, given away as a physical NIC is."""

from collections.abc import Mapping
from typing import ClassVar

from flexd.api.errors import BadRequest, Fault
from flexd.api.keys import Key
from flexd.api.units import is_true
from flexd.devices import nics
from flexd.devices.contract import DeviceContext
from flexd.devices.kinds.nic_physical import PhysicalNic
from flexd.devices.nics import Nic, new_hwaddr, value_of

_NUMBER = "last_state.vf.id"


class SriovNic(PhysicalNic, type="nic", subtype="sriov"):
    """Which function it is, is chosen at each start."""

    KEYS: ClassVar[tuple[Key, ...]] = (
        Key("nictype", description="`sriov`", choices=("sriov",), required=True),
        Key("parent", description="Network card of the host", check=nics.interface_fault, required=True),
        nics.NAME,
        nics.HWADDR,
        nics.MTU,
        Key("vlan", description="VLAN that the card puts its packets in", check=nics.vlan_fault),
        Key("security.mac_filtering", kind="bool", default="false", description="Let no other MAC address out"),
        nics.BOOT,
    )

    def new_volatile(self, device: str, config: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
        new = Nic.new_volatile(self, device, config, known)
        return {key: value for key, value in new.items() if key != "host_name"}

    def parent(self, context: DeviceContext) -> str:
        return context.config["parent"]

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        missing = await self.parent_faults(context)
        if missing or await self.host.links.virtual_functions(context.config["parent"]):
            return missing
        parent = context.config["parent"]
        reason = f'"{parent}" has no SR-IOV virtual functions (sriov_numvfs is 0, or its hardware or driver has none)'
        return [Fault(f"devices.{context.device}.parent", reason)]

    async def volatile_at_start(self, context: DeviceContext) -> dict[str, str]:
        parent = context.config["parent"]
        functions = await self.host.links.virtual_functions(parent)
        for number, name in sorted(functions.items()):
            link = await self.host.links.get(name) if name else None
            if link is not None and not link.up:
                found = {"host_name": name, _NUMBER: str(number), "last_state.created": "false"}
                return found | {"last_state.hwaddr": link.hwaddr, "last_state.mtu": str(link.mtu)}
        raise BadRequest(f'Failed choosing a virtual function of "{parent}": all {len(functions)} are in use')

    async def start(self, context: DeviceContext) -> None:
        config, parent = context.config, context.config["parent"]
        checks = "on" if is_true(config.get("security.mac_filtering")) else "off"
        words = ["mac", value_of(context, "hwaddr") or new_hwaddr(), "vlan", config.get("vlan") or "0"]
        function = ["ip", "link", "set", "dev", parent, "vf", context.volatile[_NUMBER]]
        await self.host.processes.run([*function, *words])
        await self.host.processes.run([*function, "spoofchk", checks], check=checks == "on")
        if config.get("mtu"):
            await self.host.links.set_mtu(self._host_name(context), int(config["mtu"]))

    async def stop(self, context: DeviceContext) -> None:
        await super().stop(context)
        function = ["ip", "link", "set", "dev", context.config["parent"], "vf", context.volatile.get(_NUMBER, "0")]
        await self.host.processes.run([*function, "vlan", "0", "spoofchk", "off"], check=False)
