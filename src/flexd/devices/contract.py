# SPDX-License-Identifier: Apache-2.0
"""Devices: what an instance's `devices` entries turn into. One file per kind in `kinds/`, found by scanning."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from msgspec import Struct, field

from flexd.api.errors import Fault
from flexd.api.idmap import IdMap
from flexd.api.keys import Key, check_config
from flexd.devices.hotplug import Hotplug
from flexd.devices.keeper import Keeper
from flexd.host.contract import Host
from flexd.network.networks import Networks
from flexd.projects.record import DEFAULT_PROJECT
from flexd.runtime.contract import MountSpec, NicSpec, RunningContainer, Runtime
from flexd.storage.pools import Pools


class DeviceContext(Struct, frozen=True):
    """One device of one instance. `volatile` holds its `volatile.<device>.*` keys without that prefix; `siblings` are
    the instance's other devices, for what depends on them (NAT of a proxy on a NIC's address). `volume_project`: whose
    custom volumes its project uses; `source_parent`: the directory that a path of the host must not lead out of, ""
    where any path may be used. `mute`: nothing inside asks for addresses, so they are given from outside."""

    project: str
    instance: str
    runtime_name: str
    device: str
    config: Mapping[str, str]
    volatile: Mapping[str, str]
    idmap: IdMap
    directory: Path  # the instance's own, for mounts that outlive a call
    siblings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    volume_project: str = DEFAULT_PROJECT
    source_parent: str = ""
    mute: bool = False


class RunConfig(Struct, frozen=True):
    """What a device adds to the container; `rules` are device cgroup rules (`c 10:200 rwm`)."""

    nics: tuple[NicSpec, ...] = ()
    mounts: tuple[MountSpec, ...] = ()
    rules: tuple[str, ...] = ()


class Parts(Struct, frozen=True):
    """What device kinds are built from."""

    host: Host
    pools: Pools
    networks: Networks
    runtime: Runtime
    hotplug: Hotplug
    keeper: Keeper
    daemon_id: str  # tells this daemon's host-wide names from another's


class Kind:
    """Base of device kinds. Its type and subtype (`nic`, `bridged`) are class keywords that register the class.

    A start of the instance: `start`, `run_config` (into the container's configuration), `activate`. Plugging into one
    that runs: `start`, `plug`. Unplugging: `unplug`, `stop`; the end of the container: `stop`. All are idempotent: a
    journalled step may repeat them or find half of the work done. `stop` depends on nothing but the context.
    """

    KEYS: ClassVar[tuple[Key, ...]] = ()
    SAVABLE: ClassVar[bool] = False  # the container's state can be saved with it, and restored where its like is
    UPDATABLE: ClassVar[frozenset[str]] = frozenset()  # keys that `update` changes in place while it runs
    registered: ClassVar[dict[tuple[str, str], "type[Kind]"]] = {}

    def __init_subclass__(cls, *, type: str = "", subtype: str = "") -> None:
        if type:  # without one: a base that several kinds share
            Kind.registered[type, subtype] = cls

    def __init__(self, parts: Parts) -> None:
        self.host, self.pools, self.networks = parts.host, parts.pools, parts.networks
        self.runtime, self.hotplug, self.keeper = parts.runtime, parts.hotplug, parts.keeper
        self.daemon_id = parts.daemon_id

    def token(self, context: DeviceContext) -> str:
        """Names the device among all of the host; derived, so that a crash leaves nothing unknown."""
        seed = f"{self.daemon_id}/{context.runtime_name}/{context.device}"
        return hashlib.blake2s(seed.encode(), digest_size=6).hexdigest()

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        """What is wrong with the entry itself, without looking at the host."""
        given = {key: value for key, value in config.items() if key != "type" and not key.startswith("user.")}
        return check_config(given, self.KEYS, f"devices.{device}")

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        """What this host lacks for the entry (network, path, pool, kernel option, program, hardware), with the reason;
        asked at create, edit and before a start."""
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

    async def volatile_at_start(self, context: DeviceContext) -> dict[str, str]:
        """What must be remembered of the host as it was before `start` (`last_state.*` of a physical NIC)."""
        del context
        return {}

    async def start(self, context: DeviceContext) -> None:
        """Make the host side (a veth pair, a mount) before the container starts or the device is plugged in."""

    async def stop(self, context: DeviceContext) -> None:
        """Remove the host side after the container has ended, was unplugged from, or when its start failed."""

    async def sever(self, context: DeviceContext) -> None:
        """The container is being killed: take away at once what would only delay its end. `stop` comes all the same."""

    async def activate(self, context: DeviceContext, container: RunningContainer) -> None:
        """What needs the running container: processes beside it, limits of its cgroup. `stop` takes it back."""

    async def adopt(self, context: DeviceContext, container: RunningContainer) -> None:
        """A restarted daemon found the container running: take up what `activate` began in the daemon itself."""

    async def deactivate(self, context: DeviceContext, container: RunningContainer) -> None:
        """Take back what `activate` did to the container itself (a limit), as it goes on without the device."""

    async def plug(self, context: DeviceContext, container: RunningContainer) -> None:
        """Give a running container what `run_config` would have given it at its start."""
        config = await self.run_config(context)
        for nic in config.nics:
            if await self.host.links.get(nic.link) is not None:
                await self.host.links.move(nic.link, network_namespace(container), nic.name)
            await self._configure_inside(nic, container)
        for rule in config.rules if not context.idmap else ():
            await self.runtime.allow_device(container, rule)
        for mount in config.mounts:
            await self.runtime.remove_mount(container, mount)  # of a try that was cut short
            await self.runtime.add_mount(container, mount)
        await self.activate(context, container)

    async def _configure_inside(self, nic: NicSpec, container: RunningContainer) -> None:
        """Static addresses, which liblxc gives at a start; an interface without stays down until the guest wants it."""
        if not nic.addresses:
            return
        # Down first: routes of a try that was cut short go with it.
        lines = [f"link set dev {nic.name} {state}" for state in ("down", "up")]
        lines += [f"address replace {each} dev {nic.name}{' nodad' if ':' in each else ''}" for each in nic.addresses]
        for gateway in nic.gateways:
            everything = "::/0" if ":" in gateway else "0.0.0.0/0"
            lines += [
                f"route replace {gateway} dev {nic.name}",
                f"route append {everything} via {gateway} dev {nic.name}",
            ]
        lines += [
            f"route append {'::/0' if family == 'ipv6' else '0.0.0.0/0'} dev {nic.name}" for family in nic.on_link
        ]
        enter = ["nsenter", f"--net={network_namespace(container)}", "--", "ip", "-batch", "-"]
        await self.host.processes.run(enter, stdin=("\n".join(lines) + "\n").encode())

    async def unplug(self, context: DeviceContext, container: RunningContainer) -> None:
        """Take it out of a running container; the host side stays until `stop`."""
        config = await self.run_config(context)
        await self.deactivate(context, container)
        for mount in reversed(config.mounts):
            await self.runtime.remove_mount(container, mount)
        for rule in config.rules if not context.idmap else ():
            await self.runtime.deny_device(container, rule)
        for nic in config.nics:
            await self._take_link(nic, container)

    async def _take_link(self, nic: NicSpec, container: RunningContainer) -> None:
        """Back under its name on the host. Somebody inside may have renamed it: its address tells."""
        if await self.host.links.get(nic.link) is not None:
            return
        inside = (await self.host.links.inside([container.init.pid]))[0]
        for name in [nic.name, *(link.name for link in inside if link.hwaddr and link.hwaddr == nic.hwaddr.lower())]:
            if await self.host.links.fetch(network_namespace(container), name, nic.link):
                return

    async def update(self, old: DeviceContext, new: DeviceContext, container: RunningContainer) -> None:
        """Apply changes of `UPDATABLE` keys; called with both swapped to take them back."""


def network_namespace(container: RunningContainer) -> Path:
    """Where a container's network namespace is found while it runs."""
    return Path(f"/proc/{container.init.pid}/ns/net")
