# SPDX-License-Identifier: Apache-2.0
"""Device kind `nic`, type `bridged`: a veth pair, one end in the container, the other on a bridge of the host."""

from collections.abc import Mapping, Sequence
from ipaddress import IPv6Interface

import msgspec

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.api.units import is_true
from flexd.devices import nics, spoofing
from flexd.devices.contract import DeviceContext, RunConfig
from flexd.devices.nics import VethNic, ip_fault, split, value_of
from flexd.network.addresses import eui64, interface_of
from flexd.network.contract import Port
from flexd.runtime.contract import NicSpec, RunningContainer

_FAMILIES = ("ipv4", "ipv6")
# Kept as LXD keeps it: what the filters let through, also when it was chosen and not configured.
_CHOSEN = "last_state.ip_addresses"
_SLAAC_PREFIX = 64  # RFC 4862 with 64 bits of interface identifier
_VLANS = ("CONFIG_BRIDGE_VLAN_FILTERING", "bridge", "vlan_filtering", "1")


def _fixed_fault(version: int, value: str) -> str | None:
    return None if value == "none" else ip_fault(version, value)


def _vlan_fault(value: str) -> str | None:
    return None if value == "none" else nics.vlan_fault(value)


def _tagged_fault(value: str) -> str | None:
    for part in split(value):
        first, _, last = part.partition("-")
        for number in filter(None, (first, last)):
            if not number.isdecimal() or not 1 <= int(number) <= 4094:
                return f'invalid VLAN IDs "{value}" (such as 5,10-12)'
    return None


class BridgedNic(VethNic, type="nic", subtype="bridged"):
    """`network=NAME` (managed) or `nictype=bridged parent=BRIDGE`."""

    UPDATABLE = VethNic.UPDATABLE | {
        *(f"{family}.address" for family in _FAMILIES),
        *("security.mac_filtering", "security.ipv4_filtering", "security.ipv6_filtering", "security.port_isolation"),
    }
    KEYS = (
        Key("network", description="Managed network to attach to, instead of nictype and parent"),
        Key("nictype", description="`bridged`, where no network is given", choices=("bridged",)),
        Key("parent", description="Bridge of the host", check=nics.interface_fault),
        nics.NAME,
        nics.HWADDR,
        nics.MTU,
        nics.HOST_NAME,
        nics.QUEUE,
        nics.BOOT,
        *nics.LIMITS,
        *nics.ROUTES,
        Key("ipv4.address", description="Fixed address given by DHCP", check=lambda v: _fixed_fault(4, v)),
        Key("ipv6.address", description="Fixed address given by DHCP", check=lambda v: _fixed_fault(6, v)),
        Key("security.mac_filtering", kind="bool", default="false", description="Let no other MAC address out"),
        Key("security.ipv4_filtering", kind="bool", default="false", description="Let no other IPv4 address out"),
        Key("security.ipv6_filtering", kind="bool", default="false", description="Let no other IPv6 address out"),
        Key("security.port_isolation", kind="bool", default="false", description="Reach no other isolated port"),
        Key("vlan", description="VLAN of untagged traffic, or `none`", check=_vlan_fault),
        Key("vlan.tagged", description="VLANs of tagged traffic (5,10-12)", check=_tagged_fault),
    )

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        found = super().faults(device, config)
        where = f"devices.{device}"
        if config.get("network"):
            found.extend(
                Fault(f"{where}.{key}", f'cannot be used together with "network" ({config["network"]})')
                for key in ("nictype", "parent")
                if config.get(key)
            )
            return found
        if not config.get("parent"):
            found.append(Fault(f"{where}.parent", 'a NIC needs a "network", or a "parent" with its "nictype"'))
        for family in _FAMILIES:
            if is_true(config.get(f"security.{family}_filtering")) and not config.get(f"{family}.address"):
                found.append(Fault(f"{where}.security.{family}_filtering", f'needs "{family}.address" or a network'))
        return found

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        where, config = f"devices.{context.device}", context.config
        network = config.get("network")
        if network and network not in self.networks.names(context.project):
            return [Fault(f"{where}.network", f'Network "{network}" not found')]
        if not network:
            link = await self.host.links.get(config["parent"])
            if link is None or link.kind != "bridge":
                return [Fault(f"{where}.parent", f'Parent device "{config["parent"]}" is not a bridge of this host')]
        found = await self.limit_faults(context)
        filtering = next((key for key in config if key.endswith("_filtering") and is_true(config[key])), None)
        missing = await self.host.firewall.available() if filtering else None
        if missing is not None:
            found.append(Fault(f"{where}.{filtering}", f"needs nftables: {missing}"))
        vlan = next((key for key in ("vlan", "vlan.tagged") if config.get(key)), None)
        fault = await self.probes.link_fault(_VLANS[0], *_VLANS[1:]) if vlan else None
        return [*found, *([Fault(f"{where}.{vlan}", f"{fault} for VLANs")] if fault else [])]

    def bridge(self, context: DeviceContext) -> str:
        return context.config.get("network") or context.config["parent"]

    def route_link(self, context: DeviceContext) -> str:
        return self.bridge(context)

    # --- on and off --------------------------------------------------------------------------------------------------

    async def volatile_at_start(self, context: DeviceContext) -> dict[str, str]:
        """The addresses that filters let through, or that nobody inside asks for, where they are not configured: the
        network gives them for good."""
        config = context.config
        wanted = [family for family in _FAMILIES if is_true(config.get(f"security.{family}_filtering"))]
        if not (wanted or context.mute) or not config.get("network"):
            return {}
        known = [each for each in split(context.volatile.get(_CHOSEN)) if each]
        port = Port(
            network=config["network"],
            instance=context.instance,
            project=context.project,
            device=context.device,
            hwaddr=value_of(context, "hwaddr"),
            ipv4_address=_address(config, "ipv4") or next((each for each in known if ":" not in each), ""),
            ipv6_address=_address(config, "ipv6") or next((each for each in known if ":" in each), ""),
        )
        chosen = await self.networks.port_address(port, choose=True)
        return {_CHOSEN: ",".join(filter(None, (chosen.ipv4_address, chosen.ipv6_address)))}

    async def run_config(self, context: DeviceContext) -> RunConfig:
        config = await super().run_config(context)
        if not context.mute or not context.config.get("network"):
            return config
        settings = (await self.networks.show(context.project, context.config["network"])).config
        given = [_address(context.config, family) for family in _FAMILIES]
        given += [each for each in split(context.volatile.get(_CHOSEN)) if each]
        (nic,) = config.nics
        return msgspec.structs.replace(config, nics=(_with_addresses(nic, given, settings),))

    async def start(self, context: DeviceContext) -> None:
        bridge, host_name = self.bridge(context), value_of(context, "host_name")
        if context.config.get("network"):
            self.networks.check_available(context.config["network"])
        mtu = context.config.get("mtu")
        if not mtu:
            link = await self.host.links.get(bridge)
            mtu = str(link.mtu) if link is not None else "0"
        await self.make_pair(context, int(mtu))
        # The host talks through the bridge only: no address, no router solicitation on the port itself.
        if await self.host.links.get_sysctl(host_name, "ipv6", "disable_ipv6") is not None:
            await self.host.links.set_sysctl(host_name, "ipv6", "disable_ipv6", "1")
        await self._filter(context)
        if any(context.config.get(key.name) for key in nics.LIMITS):
            await self.limit(context)
        await self.host.links.set_master(host_name, bridge)
        await self._set_port(context)
        await self.host.links.set_up(host_name)
        await nics.change_routes(self.host, bridge, {}, context.config)

    async def _set_port(self, context: DeviceContext) -> None:
        """Isolation and VLANs of the bridge's port."""
        config, host_name = context.config, value_of(context, "host_name")
        if is_true(config.get("security.port_isolation")):
            await self._isolate(context)
        if config.get("vlan"):
            await self.host.processes.run(["bridge", "vlan", "del", "dev", host_name, "vid", "1"], check=False)
        if config.get("vlan") not in (None, "", "none"):
            words = ["vlan", "add", "dev", host_name, "vid", config["vlan"], "pvid", "untagged"]
            await self.host.processes.run(["bridge", *words])
        for ids in split(config.get("vlan.tagged")):
            await self.host.processes.run(["bridge", "vlan", "add", "dev", host_name, "vid", ids])

    async def _isolate(self, context: DeviceContext) -> None:
        isolated = "on" if is_true(context.config.get("security.port_isolation")) else "off"
        words = ["link", "set", "dev", value_of(context, "host_name"), "isolated", isolated]
        await self.host.processes.run(["bridge", *words])

    async def stop(self, context: DeviceContext) -> None:
        await nics.change_routes(self.host, self.bridge(context), context.config, {})
        if _is_filtered(context.config):
            await self.host.firewall.delete_table("bridge", f"flexd_{self.token(context)}")
        await super().stop(context)

    async def update(self, old: DeviceContext, new: DeviceContext, container: RunningContainer) -> None:
        await super().update(old, new, container)
        if old.config.get("security.port_isolation") != new.config.get("security.port_isolation"):
            await self._isolate(new)
        before, after = (_filter_settings(each.config) for each in (old, new))
        if before == after:
            return
        if _is_filtered(new.config):
            await self._filter(new)
        elif _is_filtered(old.config):
            await self.host.firewall.delete_table("bridge", f"flexd_{self.token(old)}")

    # --- filters -----------------------------------------------------------------------------------------------------

    async def _filter(self, context: DeviceContext) -> None:
        if not _is_filtered(context.config):
            return
        guard = spoofing.Guard(
            value_of(context, "host_name"),
            value_of(context, "hwaddr").lower(),
            ipv4=await self._allowed(context, "ipv4"),
            ipv6=await self._allowed(context, "ipv6"),
        )
        await self.host.firewall.replace_table("bridge", f"flexd_{self.token(context)}", spoofing.render(guard))

    async def _allowed(self, context: DeviceContext, family: str) -> tuple[str, ...] | None:
        """Addresses of a family that may come from it; None: any."""
        config = context.config
        if not is_true(config.get(f"security.{family}_filtering")):
            return None
        if config.get(f"{family}.address") == "none":
            return ()
        found = {_address(config, family)} - {""}
        found |= {each for each in split(context.volatile.get(_CHOSEN)) if (":" in each) == (family == "ipv6")}
        if family == "ipv6" and config.get("network"):
            settings = (await self.networks.show(context.project, config["network"])).config
            interface = interface_of(settings, "ipv6")
            if isinstance(interface, IPv6Interface) and interface.network.prefixlen == _SLAAC_PREFIX:
                found.add(str(eui64(interface.network, value_of(context, "hwaddr"))))
        routed = split(config.get(f"{family}.routes"))
        return tuple(sorted(found) + routed)


def _address(config: Mapping[str, str], family: str) -> str:
    value = config.get(f"{family}.address", "")
    return "" if value == "none" else value


def _with_addresses(nic: NicSpec, given: Sequence[str], settings: dict[str, str]) -> NicSpec:
    """The first address of each family, with the subnet of its network and what leads out of that."""
    addresses, gateways = [], []
    for family in _FAMILIES:
        interface = interface_of(settings, family)
        address = next((each for each in given if each and (":" in each) == (family == "ipv6")), "")
        if interface is not None and address:
            addresses.append(f"{address}/{interface.network.prefixlen}")
            # Routers advertise themselves in IPv6, and the kernel listens.
            gateways += [settings.get("ipv4.dhcp.gateway") or str(interface.ip)] if family == "ipv4" else []
    return msgspec.structs.replace(nic, addresses=tuple(addresses), gateways=tuple(gateways))


def _filter_settings(config: Mapping[str, str]) -> dict[str, str]:
    keys = ("security.mac_filtering", *(f"security.{family}_filtering" for family in _FAMILIES))
    return {key: config.get(key, "") for key in (*keys, *(f"{family}.address" for family in _FAMILIES))}


def _is_filtered(config: Mapping[str, str]) -> bool:
    keys = ("security.mac_filtering", *(f"security.{family}_filtering" for family in _FAMILIES))
    return any(is_true(config.get(key)) for key in keys)
