# SPDX-License-Identifier: Apache-2.0
"""Interfaces of the host as LXD shows networks: type, and state with the particulars of bridges, bonds and VLANs."""

import json
from collections.abc import Iterable
from typing import Any

from flexd.api.errors import FlexdError
from flexd.api.network import (
    NetworkState,
    NetworkStateAddress,
    NetworkStateBond,
    NetworkStateBridge,
    NetworkStateCounters,
    NetworkStateVLAN,
)
from flexd.host.contract import Host, Link

_TYPES = {"bridge": "bridge", "vlan": "vlan", "bond": "bond", "openvswitch": "bridge", "": "physical"}


def link_type(link: Link) -> str:
    """LXD's `type` of an unmanaged network."""
    return "loopback" if link.loopback else _TYPES.get(link.kind, "unknown")


def listed(link: Link) -> bool:
    """LXD does not list the host ends of the instances' interfaces."""
    return link.kind != "veth" and not link.name.startswith("veth")


async def read_state(host: Host, link: Link) -> NetworkState:
    """The state of a link, with what `ip` knows of its kind (rtnetlink's IFLA_INFO_DATA)."""
    links = await host.links.all() if link.kind in ("bridge", "bond") else []
    return render_state(link, await _details(host, link.name), links)


async def _details(host: Host, name: str) -> dict[str, Any]:
    """`ip -json -details link show`; nothing where it fails: the rest of the state is worth showing."""
    try:
        done = await host.processes.run(["ip", "-json", "-details", "link", "show", "dev", name])
        found = json.loads(done.stdout)
    except (FlexdError, ValueError):
        return {}
    return found[0] if found else {}


def render_state(link: Link, details: dict[str, Any], links: Iterable[Link]) -> NetworkState:
    data = details.get("linkinfo", {}).get("info_data", {})
    members = sorted(other.name for other in links if other.master_index == link.index)
    return NetworkState(
        addresses=[
            NetworkStateAddress(address.address, address.family, str(address.prefix), address.scope)
            for address in link.addresses
        ],
        bond=_bond(data, members) if link.kind == "bond" else None,
        bridge=_bridge(data, members) if link.kind == "bridge" else None,
        counters=NetworkStateCounters(
            link.counters.bytes_received,
            link.counters.bytes_sent,
            link.counters.packets_received,
            link.counters.packets_sent,
        ),
        hwaddr=link.hwaddr,
        mtu=link.mtu,
        state="up" if link.up else "down",
        type=_flags_type(link, details.get("flags", [])),
        vlan=NetworkStateVLAN(details.get("link", ""), data.get("id", 0)) if link.kind == "vlan" else None,
    )


def _flags_type(link: Link, flags: list[str]) -> str:
    if link.loopback:
        return "loopback"
    return "point-to-point" if "POINTOPOINT" in flags else "broadcast"


def _bridge(data: dict[str, Any], members: list[str]) -> NetworkStateBridge:
    return NetworkStateBridge(
        forward_delay=data.get("forward_delay", 0),
        id=_sysfs_id(data.get("bridge_id", "")),
        stp=bool(data.get("stp_state", 0)),
        upper_devices=members,  # LXD's name for the bridge's ports
        vlan_default=data.get("vlan_default_pvid", 0),
        vlan_filtering=bool(data.get("vlan_filtering", 0)),
    )


def _sysfs_id(text: str) -> str:
    """`8000.0:16:3e:1:2:3`, as `ip` writes it, the way `/sys/class/net/NAME/bridge/bridge_id` and LXD do."""
    priority, _, hwaddr = text.partition(".")
    return f"{priority}.{''.join(octet.zfill(2) for octet in hwaddr.split(':'))}" if hwaddr else text


def _bond(data: dict[str, Any], members: list[str]) -> NetworkStateBond:
    return NetworkStateBond(
        down_delay=data.get("downdelay", 0),
        lower_devices=members,
        mii_frequency=data.get("miimon", 0),
        mii_state="up" if data.get("active_slave") or members else "down",
        mode=data.get("mode", ""),
        transmit_policy=data.get("xmit_hash_policy", ""),
        up_delay=data.get("updelay", 0),
    )
