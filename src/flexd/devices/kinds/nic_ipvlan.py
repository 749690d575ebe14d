# SPDX-License-Identifier: Apache-2.0
"""Device kind `nic`, type `ipvlan`: static addresses on an interface of the host, with that one's MAC address."""

from collections.abc import Mapping

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.devices import nics
from flexd.devices.contract import DeviceContext, RunConfig
from flexd.devices.nics import Nic, ips_fault, split, value_of
from flexd.runtime.contract import NicSpec


class IpvlanNic(Nic, type="nic", subtype="ipvlan"):
    """Modes l3s (the parent routes) and l2."""

    PREFIX = "ipv"
    KEYS = (
        Key("nictype", description="`ipvlan`", choices=("ipvlan",), required=True),
        Key("parent", description="Interface of the host", check=nics.interface_fault, required=True),
        Key("mode", default="l3s", choices=("l3s", "l2"), description="ipvlan mode"),
        nics.NAME,
        nics.MTU,
        nics.VLAN,
        nics.GVRP,
        Key("ipv4.address", description="Static addresses", check=lambda value: ips_fault(4, value)),
        Key("ipv4.gateway", default="auto", description="`auto` or `none`; in mode l2 an address"),
        Key("ipv4.host_table", kind="integer", description="Routing table for routes to it, beside the main one"),
        Key("ipv6.address", description="Static addresses", check=lambda value: ips_fault(6, value)),
        Key("ipv6.gateway", default="auto", description="`auto` or `none`; in mode l2 an address"),
        Key("ipv6.host_table", kind="integer", description="Routing table for routes to it, beside the main one"),
    )

    def new_volatile(self, device: str, config: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
        new = super().new_volatile(device, config, known)
        return {key: value for key, value in new.items() if key != "hwaddr"}

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        fault = await self.probes.link_fault("CONFIG_IPVLAN", "ipvlan")
        missing = [Fault(f"devices.{context.device}.nictype", fault)] if fault else []
        return [*missing, *await self.parent_faults(context), *await self.vlan_faults(context)]

    async def run_config(self, context: DeviceContext) -> RunConfig:
        config, layer2 = context.config, context.config.get("mode") == "l2"
        addresses: list[str] = []
        gateways: list[str] = []
        on_link: list[str] = []  # in mode l3s the parent's side routes all
        for family, full in (("ipv4", 32), ("ipv6", 128)):
            own = split(config.get(f"{family}.address"))
            addresses += [f"{each}/{full}" for each in own]
            gateway = config.get(f"{family}.gateway") or "auto"
            if own and gateway == "auto" and not layer2:
                on_link.append(family)
            elif own and gateway not in ("auto", "none"):
                gateways.append(gateway)
        spec = NicSpec(
            self.inner_link(context),
            value_of(context, "name"),
            addresses=tuple(addresses),
            gateways=tuple(gateways),
            on_link=tuple(on_link),
        )
        return RunConfig(nics=(spec,))

    async def start(self, context: DeviceContext) -> None:
        await self.make_vlan(context)
        name, config = self.inner_link(context), context.config
        await self.host.links.delete(name)
        await self.host.links.create_ipvlan(name, self.parent(context), mode=config.get("mode") or "l3s")
        if config.get("mtu"):
            await self.host.links.set_mtu(name, int(config["mtu"]))
        await self._route(context, "replace")

    async def _route(self, context: DeviceContext, verb: str) -> None:
        """In mode l3s the host itself reaches the addresses by way of its loopback, and answers for them on the
        network of the parent."""
        config = context.config
        if config.get("mode") == "l2":
            return
        for family, flag, full in (("ipv4", "-4", 32), ("ipv6", "-6", 128)):
            tables = [[], ["table", config[f"{family}.host_table"]]] if config.get(f"{family}.host_table") else [[]]
            for address in split(config.get(f"{family}.address")):
                words = ["neighbour", verb, "proxy", address, "dev", self.parent(context)]
                await self.host.processes.run(["ip", flag, *words], check=verb == "replace")
                for table in tables:
                    argv = ["ip", flag, "route", verb, f"{address}/{full}", "dev", "lo", "proto", "boot", *table]
                    await self.host.processes.run(argv, check=verb == "replace")

    async def stop(self, context: DeviceContext) -> None:
        await self._route(context, "del")
        await self.host.links.delete(self.inner_link(context))
