# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: network."""

from msgspec import Struct, field


class Network(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    locations: list[str] = field(default_factory=list)
    managed: bool = False
    name: str = ""
    project: str = ""
    status: str = ""
    type: str = ""
    used_by: list[str] = field(default_factory=list)


class NetworkLease(Struct):
    address: str = ""
    hostname: str = ""
    hwaddr: str = ""
    location: str = ""
    type: str = ""


class NetworkPost(Struct):
    name: str = ""


class NetworkPut(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""


class NetworkStateVLAN(Struct):
    lower_device: str = ""
    vid: int = 0


class NetworkStateCounters(Struct):
    bytes_received: int = 0
    bytes_sent: int = 0
    packets_received: int = 0
    packets_sent: int = 0


class NetworkStateBond(Struct):
    down_delay: int = 0
    lower_devices: list[str] = field(default_factory=list)
    mii_frequency: int = 0
    mii_state: str = ""
    mode: str = ""
    transmit_policy: str = ""
    up_delay: int = 0


class NetworkStateOVN(Struct):
    chassis: str = ""


class NetworkStateAddress(Struct):
    address: str = ""
    family: str = ""
    netmask: str = ""
    scope: str = ""


class NetworkStateBridge(Struct):
    forward_delay: int = 0
    id: str = ""
    stp: bool = False
    upper_devices: list[str] = field(default_factory=list)
    vlan_default: int = 0
    vlan_filtering: bool = False


class NetworkState(Struct):
    addresses: list[NetworkStateAddress] = field(default_factory=list)
    bond: NetworkStateBond | None = None
    bridge: NetworkStateBridge | None = None
    counters: NetworkStateCounters = field(default_factory=NetworkStateCounters)
    hwaddr: str = ""
    mtu: int = 0
    ovn: NetworkStateOVN | None = None
    state: str = ""
    type: str = ""
    vlan: NetworkStateVLAN | None = None


class NetworksPost(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    name: str = ""
    type: str = ""
