# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: instance state."""

from msgspec import Struct, field


class InstanceStateMemory(Struct):
    swap_usage: int = 0
    swap_usage_peak: int = 0
    usage: int = 0
    usage_peak: int = 0


class InstanceStateCPU(Struct):
    usage: int = 0


class InstanceStateNetworkCounters(Struct):
    bytes_received: int = 0
    bytes_sent: int = 0
    errors_received: int = 0
    errors_sent: int = 0
    packets_dropped_inbound: int = 0
    packets_dropped_outbound: int = 0
    packets_received: int = 0
    packets_sent: int = 0


class InstanceStateNetworkAddress(Struct):
    address: str = ""
    family: str = ""
    netmask: str = ""
    scope: str = ""


class InstanceStateNetwork(Struct):
    addresses: list[InstanceStateNetworkAddress] = field(default_factory=list)
    counters: InstanceStateNetworkCounters = field(default_factory=InstanceStateNetworkCounters)
    host_name: str = ""
    hwaddr: str = ""
    mtu: int = 0
    state: str = ""
    type: str = ""


class InstanceStateDisk(Struct):
    usage: int = 0


class InstanceState(Struct):
    cpu: InstanceStateCPU = field(default_factory=InstanceStateCPU)
    disk: dict[str, InstanceStateDisk] = field(default_factory=dict)
    memory: InstanceStateMemory = field(default_factory=InstanceStateMemory)
    network: dict[str, InstanceStateNetwork] = field(default_factory=dict)
    pid: int = 0
    processes: int = 0
    status: str = ""
    status_code: int = 0


class InstanceStatePut(Struct):
    action: str = ""
    force: bool = False
    stateful: bool = False
    timeout: int = 0
