# SPDX-License-Identifier: Apache-2.0
"""Device kind `nic`, type `physical`: an interface of the host given to the container, and back at its end.

The container's network namespace is held by a bind mount, as `ip netns` does: whatever ends the container, the
interface is still there to be fetched, under the name and with the address that it had."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.devices import nics
from flexd.devices.contract import DeviceContext, RunConfig, network_namespace
from flexd.devices.nics import Nic, value_of
from flexd.runtime.contract import NicSpec, RunningContainer


class PhysicalNic(Nic, type="nic", subtype="physical"):
    """One container at a time."""

    UPDATABLE = frozenset({"boot.priority"})
    KEYS: ClassVar[tuple[Key, ...]] = (
        Key("nictype", description="`physical`", choices=("physical",), required=True),
        Key("parent", description="Interface of the host", check=nics.interface_fault, required=True),
        nics.NAME,
        nics.HWADDR,
        nics.MTU,
        nics.VLAN,
        nics.GVRP,
        nics.BOOT,
    )

    def new_volatile(self, device: str, config: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
        new = super().new_volatile(device, config, known)
        return {key: value for key, value in new.items() if key == "name"}

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        faults = await self.vlan_faults(context)
        parent = context.config["parent"]
        link = await self.host.links.get(parent)
        # Held: it is inside already, and the instance is only edited.
        if link is None and not await self.host.mounts.mounted(self._held(context)):
            faults += await self.parent_faults(context)
        if link is not None and link.loopback:
            faults.append(Fault(f"devices.{context.device}.parent", f'"{parent}" is the loopback interface'))
        return faults

    async def volatile_at_start(self, context: DeviceContext) -> dict[str, str]:
        name = self.parent(context)
        link = await self.host.links.get(name)
        created = link is None and bool(context.config.get("vlan"))
        found = {"host_name": name, "last_state.created": "true" if created else "false"}
        if link is not None:
            found |= {"last_state.hwaddr": link.hwaddr, "last_state.mtu": str(link.mtu)}
        return found

    async def run_config(self, context: DeviceContext) -> RunConfig:
        hwaddr = context.config.get("hwaddr") or context.volatile.get("last_state.hwaddr", "")
        return RunConfig(nics=(NicSpec(self._host_name(context), value_of(context, "name"), hwaddr=hwaddr),))

    def _host_name(self, context: DeviceContext) -> str:
        return context.volatile.get("host_name") or self.parent(context)

    async def start(self, context: DeviceContext) -> None:
        config, name = context.config, self._host_name(context)
        await self.make_vlan(context)
        if await self.host.links.get(name) is None:
            return  # inside already, before a crash of the daemon
        if config.get("hwaddr"):
            await self.host.links.set_hwaddr(name, config["hwaddr"])
        if config.get("mtu"):
            await self.host.links.set_mtu(name, int(config["mtu"]))

    def _held(self, context: DeviceContext) -> Path:
        return context.directory / f"net.{quote(context.device, safe='')}"

    async def activate(self, context: DeviceContext, container: RunningContainer) -> None:
        held = self._held(context)
        if await self.host.mounts.mounted(held):
            return
        await asyncio.to_thread(_touch, held)
        await self.host.mounts.bind(network_namespace(container), held)

    async def stop(self, context: DeviceContext) -> None:
        held, name = self._held(context), self._host_name(context)
        if await self.host.mounts.mounted(held):
            if await self.host.links.get(name) is None:
                await self._fetch(context, held)
            await self.host.mounts.unmount(held, detach=True)
        await asyncio.to_thread(held.unlink, missing_ok=True)
        await self._restore(context, name)

    async def _fetch(self, context: DeviceContext, held: Path) -> None:
        await self.host.links.fetch(held, value_of(context, "name"), self._host_name(context))

    async def _restore(self, context: DeviceContext, name: str) -> None:
        """As it was before it was given away."""
        link, volatile = await self.host.links.get(name), context.volatile
        if link is None:
            return
        if volatile.get("last_state.created") == "true":
            await self.host.links.delete(name)
            return
        if volatile.get("last_state.mtu") not in (None, "", str(link.mtu)):
            await self.host.links.set_mtu(name, int(volatile["last_state.mtu"]))
        if volatile.get("last_state.hwaddr") not in (None, "", link.hwaddr):
            await self.host.links.set_hwaddr(name, volatile["last_state.hwaddr"])


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    path.touch(exist_ok=True)
