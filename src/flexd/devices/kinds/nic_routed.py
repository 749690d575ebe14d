# SPDX-License-Identifier: Apache-2.0
"""Device kind `nic`, type `routed`: a veth pair with static addresses that the host routes to, and answers for on the
network of its parent (proxy ARP and NDP)."""

from collections.abc import Mapping

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.devices import nics
from flexd.devices.contract import DeviceContext, RunConfig
from flexd.devices.nics import VethNic, ip_fault, ips_fault, split, value_of
from flexd.runtime.contract import NicSpec

# LXD's choice for the host's end; no other machine sees them.
_HOST_ADDRESSES = {"ipv4": "169.254.0.1", "ipv6": "fe80::1"}
_FULL = {"ipv4": 32, "ipv6": 128}
_FLAGS = {"ipv4": "-4", "ipv6": "-6"}


def _family_keys(family: str, version: int) -> tuple[Key, ...]:
    return (
        Key(f"{family}.address", description="Static addresses", check=lambda value: ips_fault(version, value)),
        Key(f"{family}.gateway", default="auto", choices=("auto", "none"), description="Whether it is routed out"),
        Key(
            f"{family}.host_address",
            default=_HOST_ADDRESSES[family],
            description="Address of the host's end",
            check=lambda value: ip_fault(version, value),
        ),
        Key(f"{family}.host_table", kind="integer", description="Routing table for the routes, beside the main one"),
    )


class RoutedNic(VethNic, type="nic", subtype="routed"):
    """No bridge, no broadcasts: every packet passes the host's routing."""

    UPDATABLE = VethNic.UPDATABLE - {nics.BOOT.name, *(key.name for key in nics.ROUTES)}
    KEYS = (
        Key("nictype", description="`routed`", choices=("routed",), required=True),
        Key("parent", description="Interface on whose network the addresses are", check=nics.interface_fault),
        nics.NAME,
        nics.HWADDR,
        nics.MTU,
        nics.HOST_NAME,
        nics.QUEUE,
        nics.VLAN,
        nics.GVRP,
        *_family_keys("ipv4", 4),
        *_family_keys("ipv6", 6),
        *nics.LIMITS,
        *nics.ROUTES,
    )

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        found = super().faults(device, config)
        for family in _FLAGS:
            if config.get(f"{family}.routes") and not config.get(f"{family}.address"):
                found.append(Fault(f"devices.{device}.{family}.routes", f'needs "{family}.address" as the next hop'))
        return found

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        found = await self.limit_faults(context)
        parent = context.config.get("parent")
        if not parent:
            unused = context.config.get("vlan")
            return [*found, Fault(f"devices.{context.device}.vlan", 'needs a "parent"')] if unused else found
        missing = await self.parent_faults(context) + await self.vlan_faults(context)
        if missing:
            return [*found, *missing]
        where = f"devices.{context.device}.parent"
        for family, key in (("ipv4", "forwarding"), ("ipv6", "forwarding"), ("ipv6", "proxy_ndp")):
            used = context.config.get(f"{family}.address")
            if used and await self.host.links.get_sysctl(parent, family, key) != "1":
                found.append(Fault(where, f"Routed mode requires sysctl net.{family}.conf.{parent}.{key}=1"))
        return found

    async def run_config(self, context: DeviceContext) -> RunConfig:
        config = context.config
        addresses: list[str] = []
        gateways: list[str] = []
        for family in _FLAGS:
            own = split(config.get(f"{family}.address"))
            addresses += [f"{each}/{_FULL[family]}" for each in own]
            if own and config.get(f"{family}.gateway") != "none":
                gateways.append(self._host_address(config, family))
        spec = NicSpec(
            self.inner_link(context),
            value_of(context, "name"),
            hwaddr=value_of(context, "hwaddr"),
            addresses=tuple(addresses),
            gateways=tuple(gateways),
        )
        return RunConfig(nics=(spec,))

    def _host_address(self, config: Mapping[str, str], family: str) -> str:
        return config.get(f"{family}.host_address") or _HOST_ADDRESSES[family]

    async def start(self, context: DeviceContext) -> None:
        config, host_name = context.config, value_of(context, "host_name")
        parent = self.parent(context) if config.get("parent") else ""
        if parent:
            await self.make_vlan(context)
        mtu = config.get("mtu")
        if not mtu and parent:
            link = await self.host.links.get(parent)
            mtu = str(link.mtu) if link is not None else ""
        await self.make_pair(context, int(mtu or 0))
        if any(config.get(key.name) for key in nics.LIMITS):
            await self.limit(context)
        await self.host.links.set_up(host_name)
        families = [family for family in _FLAGS if config.get(f"{family}.address")]
        await self.host.links.set_addresses(
            host_name, [f"{self._host_address(config, family)}/{_FULL[family]}" for family in families]
        )
        for family in families:
            await self.host.links.set_sysctl(host_name, family, "forwarding", "1")
            for address in split(config.get(f"{family}.address")):
                await self._route(context, family, f"{address}/{_FULL[family]}")
                if parent:
                    words = ["neighbour", "replace", "proxy", address, "dev", parent]
                    await self.host.processes.run(["ip", _FLAGS[family], *words])
        for family in families:
            # Subnets behind the instance; its first address is the next hop.
            for subnet in split(config.get(f"{family}.routes")):
                await self._route(context, family, subnet, "via", split(config[f"{family}.address"])[0])

    async def _route(self, context: DeviceContext, family: str, subnet: str, *via: str) -> None:
        """They go with the link."""
        table = context.config.get(f"{family}.host_table")
        for words in ([], ["table", table] if table else None):
            if words is not None:
                argv = ["ip", _FLAGS[family], "route", "replace", subnet, *via]
                await self.host.processes.run([*argv, "dev", value_of(context, "host_name"), "proto", "boot", *words])

    async def stop(self, context: DeviceContext) -> None:
        parent = self.parent(context) if context.config.get("parent") else ""
        for family, flag in _FLAGS.items() if parent else ():
            for address in split(context.config.get(f"{family}.address")):
                words = ["neighbour", "del", "proxy", address, "dev", parent]
                await self.host.processes.run(["ip", flag, *words], check=False)
        await super().stop(context)
