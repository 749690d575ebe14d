# SPDX-License-Identifier: Apache-2.0
"""Devices: what an instance's `devices` entries turn into. One file per kind in `kinds/`, found by scanning."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from msgspec import Struct

from flexd.api.errors import Fault
from flexd.api.idmap import IdMap
from flexd.api.keys import Key, check_config
from flexd.host.contract import Host
from flexd.network.networks import Networks
from flexd.runtime.contract import MountSpec, NicSpec
from flexd.storage.pools import Pools


class DeviceContext(Struct, frozen=True):
    """One device of one instance. `volatile` holds its `volatile.<device>.*` keys without that prefix."""

    project: str
    instance: str
    runtime_name: str
    device: str
    config: Mapping[str, str]
    volatile: Mapping[str, str]
    idmap: IdMap
    directory: Path  # the instance's own, for mounts that outlive a call


class RunConfig(Struct, frozen=True):
    """What a device adds to the container's start."""

    nics: tuple[NicSpec, ...] = ()
    mounts: tuple[MountSpec, ...] = ()


class Parts(Struct, frozen=True):
    """What device kinds are built from."""

    host: Host
    pools: Pools
    networks: Networks
    daemon_id: str  # tells this daemon's host-wide names from another's


class Kind:
    """Base of device kinds. Its type and subtype (`nic`, `bridged`) are class keywords that register the class.

    `start` and `stop` are idempotent: a journalled step may repeat them or find half of the work done.
    """

    KEYS: ClassVar[tuple[Key, ...]] = ()
    registered: ClassVar[dict[tuple[str, str], "type[Kind]"]] = {}

    def __init_subclass__(cls, *, type: str, subtype: str = "") -> None:
        Kind.registered[type, subtype] = cls

    def __init__(self, parts: Parts) -> None:
        self.host, self.pools, self.networks = parts.host, parts.pools, parts.networks
        self.daemon_id = parts.daemon_id

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        """What is wrong with the entry itself, without looking at the host."""
        given = {key: value for key, value in config.items() if key != "type"}
        return check_config(given, self.KEYS, f"devices.{device}")

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        """What this host lacks for the entry (network, path, pool); asked at create, edit and before a start."""
        del context
        return []

    def new_volatile(self, device: str, config: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
        """Values to keep as `volatile.<device>.*` besides those that are known (a generated `hwaddr`)."""
        del device, config, known
        return {}

    async def run_config(self, context: DeviceContext) -> RunConfig:
        """What the container's configuration needs to know; asked after `start`."""
        del context
        return RunConfig()

    async def start(self, context: DeviceContext) -> None:
        """Make the host side (a veth pair, a mount) before the container starts."""

    async def stop(self, context: DeviceContext) -> None:
        """Remove the host side after the container has ended, or when its start failed."""
