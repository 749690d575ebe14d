# SPDX-License-Identifier: Apache-2.0
"""Networks: the data shared with the rest, and what a driver does.

`flexd.network.networks.Networks` is the service; `drivers/<type>.py` are the drivers, found by scanning the folder:
each module names its class as `DRIVER`.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Protocol

from msgspec import Struct, field

from flexd.api.errors import BadRequest, Fault, NotFound
from flexd.api.keys import Key
from flexd.api.network import NetworkLease, NetworkState
from flexd.api.times import ZERO_TIME
from flexd.host.contract import Host
from flexd.projects.record import DEFAULT_PROJECT

# RFC 1035, section 2.3.4.
_MAX_LABEL = 63


class NetworkNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Network not found")


class NetworkInUse(BadRequest):
    """LXD answers 400, not 409."""

    def __init__(self) -> None:
        super().__init__("The network is currently in use")


class NetworkRecord(Struct):
    """The document `/networks/PROJECT/NAME` (managed networks only)."""

    name: str
    type: str = "bridge"
    project: str = DEFAULT_PROJECT
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)
    created_at: datetime = ZERO_TIME


class Port(Struct, frozen=True):
    """An instance's interface on a network: what DHCP and DNS must know of it."""

    network: str
    instance: str
    project: str
    device: str
    hwaddr: str
    ipv4_address: str = ""  # static, else from the pool
    ipv6_address: str = ""

    @property
    def label(self) -> str:
        """Its name in the DNS, which no instance of another project can have; "" if that is too long for one. A name
        has no underscore, so that none of the default project's is like `c1_project`."""
        own = "" if self.project == DEFAULT_PROJECT else f"_{self.project.replace('.', '_')}"
        return f"{self.instance}{own}" if len(self.instance) + len(own) <= _MAX_LABEL else ""


class Attachment(Struct, frozen=True):
    """Where an instance's interface is plugged in: the host's bridge and the MTU that the interface takes from it."""

    bridge: str
    mtu: int


class DriverContext(Struct, frozen=True):
    """What every driver gets: `directory` is the network's own; `reserved` lists the subnets (CIDR) of the other
    managed networks."""

    host: Host
    directory: Path
    reserved: Callable[[], list[str]]


class Driver(Protocol):
    """One network on this host. All methods are idempotent, and `stop` works whatever is left of the network.

    `Class(context, name, config)` makes one without touching the host.
    """

    type: ClassVar[str]
    KEYS: ClassVar[tuple[Key, ...]]

    def __init__(self, context: DriverContext, name: str, config: dict[str, str]) -> None: ...

    async def fill(self, config: dict[str, str], *, new: bool) -> dict[str, str]:
        """Resolve "auto" into real values (free subnets); for a new network also what is absent."""
        ...

    def faults(self, config: dict[str, str]) -> list[Fault]:
        """Faults beyond the rows' own checks (a range outside its subnet)."""
        ...

    async def start(self) -> None:
        """Make the host match the configuration; also after a daemon or host restart, and after an edit."""
        ...

    async def stop(self) -> None:
        """Take everything off the host; the directory stays."""
        ...

    async def update(self, new: dict[str, str]) -> None:
        """Apply an edit live; instances keep their links."""
        ...

    async def wait_failed(self) -> None:
        """Return when something that `start` set up has ended by itself, so that another `start` is due."""
        ...

    async def set_ports(self, ports: list[Port]) -> None:
        """The whole list of known ports: static leases, DNS names."""
        ...

    async def port(self, port: Port, *, choose: bool) -> Port:
        """Check a port's addresses against the configuration and the other ports (`InvalidInput`), paths relative to
        the device; with `choose` fill in free static ones where it has none."""
        ...

    def attachment(self) -> Attachment: ...
    async def state(self) -> NetworkState: ...
    async def leases(self) -> list[NetworkLease]: ...

    def warnings(self) -> list[str]:
        """What does not work here though it is configured, as found by the last start, in words for people."""
        ...
