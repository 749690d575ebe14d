# SPDX-License-Identifier: Apache-2.0
"""Managed bridge: a Linux bridge with addresses; dnsmasq for DHCP, DNS and router advertisements; an nftables table.

`start` makes the host match the configuration whatever it finds, so that creating, restoring and editing are one road.
"""

import asyncio
import logging
import random
from collections.abc import Iterable, Iterator
from typing import ClassVar

from msgspec import Struct
from msgspec.structs import replace

from flexd.api.errors import Fault, FlexdError, raise_faults
from flexd.api.keys import Key
from flexd.api.network import NetworkLease, NetworkState
from flexd.host.contract import Link
from flexd.network.addresses import (
    choose_ipv4,
    choose_ipv6,
    interface_of,
    parse_list,
    random_hwaddr,
)
from flexd.network.bridge_keys import BRIDGE_KEYS, MAX_MTU, config_faults
from flexd.network.contract import Attachment, DriverContext, Port
from flexd.network.dnsmasq import DnsmasqFiles, render_config, render_names, render_static_leases, slaac, stateful
from flexd.network.dnsmasq_process import DnsmasqProcess
from flexd.network.firewall import (
    FAMILY,
    drop_warning,
    dropping_chains,
    nat_wanted,
    on,
    render_table,
    table_name,
)
from flexd.network.hostlinks import read_state
from flexd.network.ports import all_leases, choose_addresses, clean, key_of, port_faults
from flexd.network.textfiles import read_value, write_text, write_value

log = logging.getLogger(__name__)

_MTU = 1500
# Subnets and MAC addresses are to be unlikely to meet another host's; nothing secret.
_RANDOM = random.SystemRandom()


class BridgeRecord(Struct, frozen=True):
    """What we made, so that a stranger's bridge of the same name is left alone and an edit takes back what it drops,
    also over a crash. `index` 0: about to be made; `boot_id` "": there is none."""

    hwaddr: str
    boot_id: str = ""
    index: int = 0
    external: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()


class BridgeUnusable(FlexdError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f'Failed starting network "{name}": {reason}')


class BridgeDriver:
    type: ClassVar[str] = "bridge"
    KEYS: ClassVar[tuple[Key, ...]] = BRIDGE_KEYS

    def __init__(self, context: DriverContext, name: str, config: dict[str, str]) -> None:
        self._host = context.host
        self._reserved = context.reserved
        self._name = name
        self._config = dict(config)
        self._files = DnsmasqFiles(context.directory)
        self._record_path = context.directory / "bridge.json"
        self._ports_path = context.directory / "ports.json"
        self._dnsmasq = DnsmasqProcess(context.host, self._files)
        self._warnings: list[str] = []

    # --- configuration ---

    async def fill(self, config: dict[str, str], *, new: bool) -> dict[str, str]:
        filled = {name: value for name, value in config.items() if value != ""}
        if new:
            filled.setdefault("ipv4.address", "auto")
            filled.setdefault("ipv6.address", "auto" if await self._ipv6_here() else "none")
        wanted = [family for family in ("ipv4", "ipv6") if filled.get(f"{family}.address") == "auto"]
        if wanted:
            taken = await self._taken()
            for family in wanted:
                choose = choose_ipv4 if family == "ipv4" else choose_ipv6
                filled[f"{family}.address"] = str(await asyncio.to_thread(choose, taken, _RANDOM))
                if new:
                    filled.setdefault(f"{family}.nat", "true")
        return filled

    def faults(self, config: dict[str, str]) -> list[Fault]:
        return config_faults(config)

    async def _taken(self) -> list[str]:
        """Subnets that an automatic choice must not touch: of interfaces, of routes, of other managed networks."""
        links = [link for link in await self._host.links.all() if link.name != self._name]
        on_links = [f"{address.address}/{address.prefix}" for link in links for address in link.addresses]
        routed = [route.destination for route in await self._host.links.routes() if route.link != self._name]
        return [subnet.split("%")[0] for subnet in (*on_links, *routed, *self._reserved())]

    async def _ipv6_here(self) -> bool:
        """Whether new interfaces get IPv6: not where the kernel has none or the administrator turned it off."""
        return await self._host.links.get_sysctl("default", "ipv6", "disable_ipv6") == "0"

    async def _effective(self) -> dict[str, str]:
        """The configuration without what this host can't do."""
        if interface_of(self._config, "ipv6") is None or await self._ipv6_here():
            return self._config
        self._warn("IPv6 is configured but disabled on this host (net.ipv6.conf.default.disable_ipv6)")
        return {**self._config, "ipv6.address": "none"}

    def _warn(self, text: str) -> None:
        text = text if f'"{self._name}"' in text else f'Network "{self._name}": {text}'
        self._warnings.append(text)
        log.warning("%s", text)

    def warnings(self) -> list[str]:
        return list(self._warnings)

    # --- on and off ---

    async def start(self) -> None:
        self._warnings = []
        config = await self._effective()
        link = await self._ensure_bridge(config)
        await self._configure_link(config)
        await self._release(config)
        await self._plug_external(config, link)
        await self._route(config)
        await self._enable_forwarding(config)
        await self._filter(config)
        await self._serve(config, link)

    async def stop(self) -> None:
        await self._dnsmasq.stop()
        if await self._host.firewall.available() is None:
            await self._host.firewall.delete_table(FAMILY, table_name(self._name))
        link = await self._host.links.get(self._name)
        record = await self._record()
        if link is not None and await self._is_ours(link, record):
            await self._unplug(record.external, link)
            await self._host.links.delete(self._name)
        await self._write_record(BridgeRecord(record.hwaddr))

    async def update(self, new: dict[str, str]) -> None:
        self._config = dict(new)
        await self.start()

    async def wait_failed(self) -> None:
        await self._dnsmasq.wait_exit()

    # --- the bridge ---

    async def _record(self) -> BridgeRecord:
        known = await asyncio.to_thread(read_value, self._record_path, BridgeRecord)
        # Kept for as long as the network: a bridge left to itself takes the address of its lowest port.
        return known or BridgeRecord(random_hwaddr(_RANDOM))

    async def _write_record(self, record: BridgeRecord) -> None:
        await asyncio.to_thread(write_value, self._record_path, record)

    async def _is_ours(self, link: Link, record: BridgeRecord) -> bool:
        made_here = record.boot_id == await self._host.machine.boot_id() and record.index in (0, link.index)
        return link.kind == "bridge" and made_here

    async def _ensure_bridge(self, config: dict[str, str]) -> Link:
        record = await self._record()
        link = await self._host.links.get(self._name)
        if link is not None and not await self._is_ours(link, record):
            raise BridgeUnusable(self._name, f'the interface "{self._name}" exists and was not made for it')
        hwaddr = config.get("bridge.hwaddr") or record.hwaddr
        if link is None:
            record = BridgeRecord(record.hwaddr, await self._host.machine.boot_id())
            await self._write_record(record)
            # Not quite its MTU: only one that is changed later is kept when a port with a smaller one comes.
            await self._host.links.create_bridge(self._name, hwaddr=hwaddr, mtu=min(self._mtu + 1, MAX_MTU - 1))
            link = await self._host.links.get(self._name)
            if link is None:
                raise BridgeUnusable(self._name, "its bridge vanished while it was being set up")
        elif link.hwaddr != hwaddr.lower():
            await self._host.links.set_hwaddr(self._name, hwaddr)
        await self._write_record(replace(record, index=link.index))
        return link

    async def _release(self, config: dict[str, str]) -> None:
        """Take back what an earlier configuration had and this one has not; remember what this one has."""
        record = await self._record()
        external = tuple(parse_list(config.get("bridge.external_interfaces")))
        routes = tuple(subnet for _, subnet in self._routes(config))
        link = await self._host.links.get(self._name)
        if link is not None:
            await self._unplug([name for name in record.external if name not in external], link)
        if set(record.routes) - set(routes):
            for flag in ("-4", "-6"):
                await self._ip(flag, "route", "flush", "dev", self._name, "proto", "static")
        await self._write_record(replace(record, external=external, routes=routes))

    @property
    def _mtu(self) -> int:
        return int(self._config.get("bridge.mtu") or _MTU)

    async def _configure_link(self, config: dict[str, str]) -> None:
        links = self._host.links
        if await links.get_sysctl(self._name, "ipv6", "disable_ipv6") is not None:
            # The host is this network's router: it believes no router in it, nor waits to find its address doubled.
            for key in ("accept_ra", "autoconf", "accept_dad"):
                await links.set_sysctl(self._name, "ipv6", key, "0")
        await links.set_mtu(self._name, self._mtu)
        await links.set_up(self._name)
        addresses = [interface_of(config, family) for family in ("ipv4", "ipv6")]
        await links.set_addresses(self._name, [str(address) for address in addresses if address is not None])

    async def _plug_external(self, config: dict[str, str], bridge: Link) -> None:
        for name in parse_list(config.get("bridge.external_interfaces")):
            link = await self._host.links.get(name)
            if link is None:
                self._warn(f'the external interface "{name}" is not there')
                continue
            if any(address.scope == "global" for address in link.addresses):
                raise BridgeUnusable(self._name, f'Only unconfigured network interfaces can be bridged ("{name}")')
            if link.master_index != bridge.index:
                await self._host.links.set_master(name, self._name)
            await self._host.links.set_up(name)

    async def _unplug(self, names: Iterable[str], bridge: Link) -> None:
        for name in names:
            link = await self._host.links.get(name)
            if link is not None and link.master_index == bridge.index:
                await self._host.links.set_master(name, None)

    # --- routes and forwarding ---

    def _routes(self, config: dict[str, str]) -> Iterator[tuple[str, str]]:
        """(flag of ip(8), subnet) of the additional subnets."""
        for family, flag in (("ipv4", "-4"), ("ipv6", "-6")):
            if interface_of(config, family) is not None:
                yield from ((flag, subnet) for subnet in parse_list(config.get(f"{family}.routes")))

    async def _route(self, config: dict[str, str]) -> None:
        """iproute2, as the host contract reads routes only; protocol `static` tells ours from those of instances."""
        for flag, subnet in self._routes(config):
            await self._ip(flag, "route", "replace", subnet, "dev", self._name, "proto", "static")

    async def _ip(self, *words: str) -> None:
        await self._host.processes.run(["ip", *words])

    async def _enable_forwarding(self, config: dict[str, str]) -> None:
        routed = interface_of(config, "ipv4") and on(config, "ipv4.routing")
        if routed and not await self._host.machine.sysctl("net.ipv4.ip_forward", "1"):
            self._warn("IPv4 forwarding (net.ipv4.ip_forward) can't be turned on")
        if interface_of(config, "ipv6") and on(config, "ipv6.routing"):
            await self._enable_forwarding_ipv6()

    async def _enable_forwarding_ipv6(self) -> None:
        """A forwarding host ignores router advertisements and would lose its own default route, unless accept_ra is 2
        (ip-sysctl); as LXD, interfaces that listened to routers before go on doing so."""
        links = self._host.links
        if await links.get_sysctl("all", "ipv6", "forwarding") == "1":
            return
        for name in ["default", *(link.name for link in await links.all())]:
            if await links.get_sysctl(name, "ipv6", "accept_ra") == "1":
                await links.set_sysctl(name, "ipv6", "accept_ra", "2")
        await links.set_sysctl("all", "ipv6", "forwarding", "1")

    # --- firewall ---

    async def _filter(self, config: dict[str, str]) -> None:
        body = render_table(self._name, config)
        missing = await self._host.firewall.available()
        if missing is not None:
            if body:
                what = " and ".join(["filter rules", *(f"NAT of {family}" for family in nat_wanted(config))])
                self._warn(f"no {what}: {missing}")
            return
        if body:
            await self._host.firewall.replace_table(FAMILY, table_name(self._name), body)
        else:
            await self._host.firewall.delete_table(FAMILY, table_name(self._name))
        await self._look_for_drops(config)

    async def _look_for_drops(self, config: dict[str, str]) -> None:
        families = [
            family for family in ("ipv4", "ipv6") if interface_of(config, family) and on(config, f"{family}.routing")
        ]
        if not families:
            return
        try:
            done = await self._host.processes.run(["nft", "-j", "list", "chains"])
            chains = dropping_chains(done.stdout)
        except (FlexdError, ValueError) as error:
            log.info('other firewalls in the way of network "%s" can\'t be looked for: %s', self._name, error)
            return
        for chain in chains:
            self._warn(drop_warning(self._name, chain))

    # --- DHCP and DNS ---

    async def _serve(self, config: dict[str, str], link: Link) -> None:
        if interface_of(config, "ipv6") and not slaac(config) and not stateful(config):
            self._warn("instances get no IPv6 addresses: a prefix longer than /64 needs ipv6.dhcp.stateful")
        changed = await self._write_ports(await self._ports(), config)
        started = await self._dnsmasq.ensure(
            lambda user, group: render_config(self._name, config, self._files, user=user, group=group, mtu=self._mtu),
            epoch=str(link.index),
        )
        if changed and not started:
            await self._dnsmasq.reload()

    async def _ports(self) -> list[Port]:
        return await asyncio.to_thread(read_value, self._ports_path, list[Port]) or []

    async def _write_ports(self, ports: list[Port], config: dict[str, str]) -> bool:
        static_leases, names = render_static_leases(ports, config), render_names(ports, config)

        def write() -> bool:
            write_value(self._ports_path, ports)
            changed = write_text(self._files.static_leases, static_leases)
            return write_text(self._files.names, names) or changed

        return await asyncio.to_thread(write)

    async def set_ports(self, ports: list[Port]) -> None:
        if await self._write_ports(clean(ports), self._config):
            await self._dnsmasq.reload()

    async def port(self, port: Port, *, choose: bool) -> Port:
        others = [other for other in await self._ports() if key_of(other) != key_of(port)]
        raise_faults(port_faults(self._name, self._config, port, others))
        if not choose:
            return port
        return choose_addresses(self._config, port, others, await self._dnsmasq.leases())

    # --- readings ---

    def attachment(self) -> Attachment:
        return Attachment(self._name, self._mtu)

    async def state(self) -> NetworkState:
        link = await self._host.links.get(self._name)
        if link is None:
            return NetworkState(state="down", type="broadcast", mtu=self._mtu)
        return await read_state(self._host, link)

    async def leases(self) -> list[NetworkLease]:
        return all_leases(self._name, self._config, await self._ports(), await self._dnsmasq.leases())


DRIVER = BridgeDriver
