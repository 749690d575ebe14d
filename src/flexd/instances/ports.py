# SPDX-License-Identifier: Apache-2.0
"""What the networks must know of instances: names, hardware addresses and fixed addresses of their NICs."""

from collections.abc import Mapping

from flexd.api.units import is_true
from flexd.images.applications import IS_APPLICATION
from flexd.instances.record import Expanded, InstanceRecord, device_volatile
from flexd.instances.registry import Registry, profile_url
from flexd.network.contract import Port
from flexd.network.networks import Networks


class PortList:
    """Keeps DHCP and DNS of managed networks in step with the instances."""

    def __init__(self, registry: Registry, networks: Networks) -> None:
        self._registry = registry
        self._networks = networks

    def ports(self) -> dict[str, list[Port]]:
        """All ports by network."""
        found: dict[str, list[Port]] = {}
        for record in self._registry.all_instances():
            for port in self._of(record):
                found.setdefault(port.network, []).append(port)
        return found

    def _of(self, record: InstanceRecord) -> list[Port]:
        ports = []
        for device, entry in self._registry.expand(record).devices.items():
            if entry.get("type") != "nic" or not entry.get("network"):
                continue
            volatile = device_volatile(record.config, device)
            mute = is_true(record.config.get(IS_APPLICATION))
            ports.append(
                Port(
                    network=entry["network"],
                    instance=record.name,
                    project=record.project,
                    device=device,
                    hwaddr=entry.get("hwaddr") or volatile.get("hwaddr", ""),
                    ipv4_address=_fixed(entry, volatile, "ipv4", chosen=mute),
                    ipv6_address=_fixed(entry, volatile, "ipv6", chosen=mute),
                )
            )
        return ports

    def hwaddrs(self, project: str, network: str) -> set[str]:
        """The addresses of a project's interfaces on a network."""
        ports = (port for record in self._registry.all_instances(project) for port in self._of(record))
        return {port.hwaddr for port in ports if port.network == network and port.hwaddr}

    async def announce(self, expanded: Expanded) -> None:
        """Give the networks of these devices their current list of ports."""
        names = {entry["network"] for entry in expanded.devices.values() if entry.get("network")}
        ports = self.ports()
        for name in names & set(self._networks.names("default")):
            await self._networks.set_ports(name, ports.get(name, []))

    async def announce_all(self) -> None:
        """At the daemon's start."""
        ports = self.ports()
        for name in self._networks.names("default"):
            await self._networks.set_ports(name, ports.get(name, []))

    def users_of(self, network: str) -> list[str]:
        """URLs of the instances and profiles with a NIC on a network."""
        users = []
        for record in self._registry.all_instances():
            entries = self._registry.expand(record).devices.values()
            if any(network in (entry.get("network"), entry.get("parent")) for entry in entries):
                users.append(record.url)
        for document in self._registry.profiles.list():
            entries = document.value.devices.values()
            if any(network in (entry.get("network"), entry.get("parent")) for entry in entries):
                users.append(profile_url(document.value.project, document.value.name))
        return users


def _fixed(entry: Mapping[str, str], volatile: Mapping[str, str], family: str, *, chosen: bool) -> str:
    """The configured address, or the one that was chosen for an interface that may use no other, or asks for none."""
    configured = entry.get(f"{family}.address", "")
    if configured:
        return "" if configured == "none" else configured
    counts = chosen or is_true(entry.get(f"security.{family}_filtering"))
    known = volatile.get("last_state.ip_addresses", "") if counts else ""
    return next((each for each in known.split(",") if each and (":" in each) == (family == "ipv6")), "")
