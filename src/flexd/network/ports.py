# SPDX-License-Identifier: Apache-2.0
"""The instances' interfaces on one network: faults, free addresses, leases. Pure."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv6Network

import msgspec

from flexd.api.errors import Fault
from flexd.api.network import NetworkLease
from flexd.network.addresses import (
    Address,
    choose_host,
    dhcp_ranges,
    eui64,
    hwaddr_valid,
    interface_of,
    parse_address,
)
from flexd.network.bridge_keys import DOMAIN
from flexd.network.contract import Port
from flexd.network.dnsmasq import LeaseRow, slaac, stateful
from flexd.network.firewall import on

_LOCATION = "none"  # LXD's, of a server that is not in a cluster
_FAMILIES = (("ipv4", 4), ("ipv6", 6))


def key_of(port: Port) -> tuple[str, str, str]:
    return port.project, port.instance, port.device


def address_of(port: Port, family: str) -> Address | None:
    """The static address; None if there is none, or what stands there is none."""
    text, version = (port.ipv4_address, 4) if family == "ipv4" else (port.ipv6_address, 6)
    try:
        return parse_address(text, version) if text else None
    except ValueError:
        return None


def clean(ports: Iterable[Port]) -> list[Port]:
    """Ports fit for dnsmasq's files: values that are not what they should be would be read as other options."""
    return [
        msgspec.structs.replace(
            port,
            ipv4_address=str(address_of(port, "ipv4") or ""),
            ipv6_address=str(address_of(port, "ipv6") or ""),
        )
        for port in sorted(ports, key=key_of)
        if hwaddr_valid(port.hwaddr) and DOMAIN.fullmatch(port.instance)
    ]


def port_faults(network: str, config: dict[str, str], port: Port, others: Iterable[Port]) -> Iterator[Fault]:
    """Faults of a port's static addresses; paths as the device's keys."""
    known = list(others)
    for family, version in _FAMILIES:
        text = getattr(port, f"{family}_address")
        if not text:
            continue
        wrong = _address_fault(network, config, family, text, version, known)
        if wrong is not None:
            yield Fault(f"{family}.address", wrong)


def _address_fault(
    network: str, config: dict[str, str], family: str, text: str, version: int, others: list[Port]
) -> str | None:
    try:
        address = parse_address(text, version)
    except ValueError as error:
        return str(error)
    interface = interface_of(config, family)
    if interface is None or not _gives_leases(config, family):
        needed = "DHCP is" if family == "ipv4" else 'DHCP or "ipv6.dhcp.stateful" are'
        return f'Cannot specify "{family}.address" when {needed} disabled on network "{network}"'
    if address not in interface.network:
        return f'Device IP address "{text}" not within network "{network}" subnet'
    if address == interface.ip:
        return f'IP address "{text}" is the gateway of network "{network}"'
    holder = next((other for other in others if address_of(other, family) == address), None)
    return f'IP address "{text}" already defined on another NIC ("{holder.instance}")' if holder else None


def _gives_leases(config: dict[str, str], family: str) -> bool:
    return on(config, "ipv4.dhcp") if family == "ipv4" else stateful(config)


def choose_addresses(config: dict[str, str], port: Port, others: Iterable[Port], leases: Iterable[LeaseRow]) -> Port:
    """The port with a static address in each family that it has none in and that gives leases."""
    known, rows = list(others), list(leases)
    chosen = {}
    for family, version in _FAMILIES:
        interface, ranges = interface_of(config, family), dhcp_ranges(config, family)
        if interface is None or not ranges or not _gives_leases(config, family) or address_of(port, family):
            continue
        taken: set[Address] = {interface.ip}
        taken.update(address for other in known if (address := address_of(other, family)))
        taken.update(
            parse_address(row.address, version)
            for row in rows
            if (":" in row.address) == (version == 6) and row.hwaddr != port.hwaddr
        )
        chosen[f"{family}_address"] = str(choose_host(ranges, taken, port.hwaddr))
    return msgspec.structs.replace(port, **chosen)


def all_leases(
    network: str, config: dict[str, str], ports: Iterable[Port], rows: Iterable[LeaseRow]
) -> list[NetworkLease]:
    """Gateways, static addresses, SLAAC's as far as they follow from MAC addresses, and dnsmasq's leases; each once."""
    found: dict[str, NetworkLease] = {}
    candidates = [*_gateways(network, config), *_static(config, ports), *_dynamic(ports, rows)]
    for lease in candidates:
        found.setdefault(lease.address, lease)
    return list(found.values())


def _gateways(network: str, config: dict[str, str]) -> Iterator[NetworkLease]:
    for family, _ in _FAMILIES:
        interface = interface_of(config, family)
        if interface is not None:
            yield NetworkLease(str(interface.ip), f"{network}.gw", "", _LOCATION, "gateway")


def _static(config: dict[str, str], ports: Iterable[Port]) -> Iterator[NetworkLease]:
    interface = interface_of(config, "ipv6")
    for port in ports:
        for address in (port.ipv4_address, port.ipv6_address):
            if address:
                yield NetworkLease(address, port.instance, port.hwaddr, _LOCATION, "static")
        if slaac(config) and interface is not None and port.hwaddr:
            address = str(eui64(IPv6Network((int(interface.ip) >> 64 << 64, 64)), port.hwaddr))
            yield NetworkLease(address, port.instance, port.hwaddr, _LOCATION, "dynamic")


def _dynamic(ports: Iterable[Port], rows: Iterable[LeaseRow]) -> Iterator[NetworkLease]:
    names = {port.hwaddr: port.instance for port in ports}
    for row in rows:
        hostname = row.hostname or names.get(row.hwaddr, "")
        yield NetworkLease(row.address, hostname, row.hwaddr, _LOCATION, "dynamic")
