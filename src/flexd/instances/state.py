# SPDX-License-Identifier: Apache-2.0
"""What an instance uses right now: CPU, memory, disk, processes, network; for one or for all in one go."""

from collections.abc import Sequence

from flexd.api.instance import Instance, InstanceFull
from flexd.api.instance_state import (
    InstanceState,
    InstanceStateCPU,
    InstanceStateDisk,
    InstanceStateMemory,
    InstanceStateNetwork,
    InstanceStateNetworkAddress,
    InstanceStateNetworkCounters,
)
from flexd.host.contract import CgroupStats, Host, Link, LinkCounters
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.record import Expanded, InstanceRecord
from flexd.instances.registry import STATUS_CODES, Registry, show_backup, show_instance, show_snapshot
from flexd.runtime.contract import RunningContainer
from flexd.storage.pools import Pools


class States:
    """The service behind `…/state` and `recursion=2`."""

    def __init__(self, *, registry: Registry, lifecycle: Lifecycle, host: Host, pools: Pools) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._host = host
        self._pools = pools

    async def state(self, project: str, name: str) -> InstanceState:
        record = self._registry.instance(project, name)
        return (await self._states([record], [self._registry.expand(record)]))[0]

    async def full(self, project: str) -> list[InstanceFull]:
        return await self._full(self._registry.all_instances(project))

    async def show_full(self, project: str, name: str) -> InstanceFull:
        return (await self._full([self._registry.instance(project, name)]))[0]

    async def _full(self, records: Sequence[InstanceRecord]) -> list[InstanceFull]:
        expansions = [self._registry.expand(record) for record in records]
        states = await self._states(records, expansions)
        shown = []
        for record, expanded, state in zip(records, expansions, states, strict=True):
            full = _with_state(show_instance(record, expanded, state.status), state)
            full.snapshots = [
                show_snapshot(snapshot, self._registry.expand_past(snapshot.instance))
                for snapshot in self._registry.snapshots_of(record)
            ]
            full.backups = [show_backup(backup) for backup in self._registry.backups_of(record)]
            shown.append(full)
        return shown

    async def _states(self, records: Sequence[InstanceRecord], expansions: Sequence[Expanded]) -> list[InstanceState]:
        """In order; the host is asked once for all, not once for each."""
        running = {r.storage_name: c for r in records if (c := self._lifecycle.running(r)) is not None}
        containers = list(running.values())
        # One after the other: two threads full of short system calls take the interpreter's lock from each other at
        # every one of them, which costs half as much again.
        stats = await self._host.cgroups.stats([container.cgroup for container in containers])
        links = await self._host.links.inside([container.init.pid for container in containers])
        host_links = await self._host.links.names() if containers else {}
        figures = dict(zip(running, zip(containers, stats, links, strict=True), strict=True))
        states = []
        for record, expanded in zip(records, expansions, strict=True):
            disk = await self._disk(record, expanded)
            found = figures.get(record.storage_name)
            status = self._lifecycle.shown_status(record)
            states.append(_state(status, disk, found, host_links))
        return states

    async def _disk(self, record: InstanceRecord, expanded: Expanded) -> dict[str, InstanceStateDisk]:
        root = expanded.root()
        usage = await self._pools.usage(record.volume) if root is not None else None
        return {root[0]: InstanceStateDisk(usage)} if root is not None and usage is not None else {}


def _with_state(instance: Instance, state: InstanceState) -> InstanceFull:
    fields = {name: getattr(instance, name) for name in Instance.__struct_fields__}
    return InstanceFull(**fields, state=state)


def _state(
    status: str,
    disk: dict[str, InstanceStateDisk],
    found: tuple[RunningContainer, CgroupStats, list[Link]] | None,
    host_links: dict[int, str],
) -> InstanceState:
    state = InstanceState(status=status, status_code=STATUS_CODES[status], disk=disk)
    if found is None:
        return state
    container, stats, links = found
    state.pid = container.init.pid
    state.processes = stats.processes or 0
    state.cpu = InstanceStateCPU(stats.cpu_usage_ns or 0)
    state.memory = InstanceStateMemory(
        usage=stats.memory_usage_bytes or 0,
        usage_peak=stats.memory_peak_bytes or 0,
        swap_usage=stats.swap_usage_bytes or 0,
        swap_usage_peak=stats.swap_peak_bytes or 0,
    )
    state.network = {link.name: _network(link, host_links) for link in links}
    return state


def _network(link: Link, host_links: dict[int, str]) -> InstanceStateNetwork:
    addresses = [
        InstanceStateNetworkAddress(
            family=address.family, address=address.address, netmask=str(address.prefix), scope=address.scope
        )
        for address in link.addresses
    ]
    return InstanceStateNetwork(
        addresses=addresses,
        counters=_counters(link.counters),
        hwaddr=link.hwaddr if not link.loopback else "",
        host_name=host_links.get(link.peer_index, "") if link.peer_index else "",
        mtu=link.mtu,
        state="up" if link.up else "down",
        type="loopback" if link.loopback else "broadcast",
    )


def _counters(counters: LinkCounters) -> InstanceStateNetworkCounters:
    return InstanceStateNetworkCounters(
        bytes_received=counters.bytes_received,
        bytes_sent=counters.bytes_sent,
        errors_received=counters.errors_received,
        errors_sent=counters.errors_sent,
        packets_dropped_inbound=counters.packets_dropped_inbound,
        packets_dropped_outbound=counters.packets_dropped_outbound,
        packets_received=counters.packets_received,
        packets_sent=counters.packets_sent,
    )
