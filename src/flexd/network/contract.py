# SPDX-License-Identifier: Apache-2.0
"""Networks: the data shared with the rest, and what a driver does.

`flexd.network.networks.Networks` is the service; `drivers/<type>.py` are the drivers, found by scanning the folder.
"""

from datetime import datetime
from typing import Protocol

from msgspec import Struct, field

from flexd.api.errors import Conflict, Fault, NotFound
from flexd.api.keys import Key
from flexd.api.network import NetworkLease, NetworkState
from flexd.api.times import ZERO_TIME


class NetworkNotFound(NotFound):
    pass


class NetworkInUse(Conflict):
    pass


class NetworkRecord(Struct):
    """The document `/networks/PROJECT/NAME` (managed networks only)."""

    name: str
    type: str = "bridge"
    project: str = "default"
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)
    created_at: datetime = ZERO_TIME


class Port(Struct, frozen=True):
    """An instance's interface on a network: what DHCP and DNS must know of it."""

    network: str
    instance: str  # DNS name
    project: str
    device: str
    hwaddr: str
    ipv4_address: str = ""  # static, else from the pool
    ipv6_address: str = ""


class Driver(Protocol):
    """One network on this host. All methods are idempotent."""

    type: str
    KEYS: tuple[Key, ...]

    async def fill(self, config: dict[str, str]) -> dict[str, str]:
        """Resolve "auto" and what is absent into real values (free subnets)."""
        ...

    def faults(self, config: dict[str, str]) -> list[Fault]:
        """Faults beyond the rows' own checks (a range outside its subnet)."""
        ...

    async def start(self) -> None:
        """Make the host match the configuration; also after a daemon or host restart, and after an edit."""
        ...

    async def stop(self) -> None: ...
    async def rename(self, new_name: str) -> None:
        """Called while stopped."""
        ...

    async def update(self, old: dict[str, str], new: dict[str, str]) -> None:
        """Apply an edit live; instances keep their links."""
        ...

    async def set_ports(self, ports: list[Port]) -> None:
        """The whole list of known ports: static leases, DNS names."""
        ...

    async def state(self) -> NetworkState: ...
    async def leases(self) -> list[NetworkLease]: ...
