# SPDX-License-Identifier: Apache-2.0
"""Instances as Prometheus metrics, under LXD's names (extension: metrics)."""

import os
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flexd.api.errors import BadRequest
from flexd.api.instance import InstanceFull
from flexd.api.instance_state import InstanceState, InstanceStateNetworkCounters
from flexd.api.units import parse_size

_LABELS = ("name", "project", "type")
_NANOSECONDS = 1e9

Counter = Callable[[InstanceStateNetworkCounters], int]
_NETWORK: tuple[tuple[str, str, Counter], ...] = (
    ("receive_bytes", "The amount of received bytes on a given interface.", lambda c: c.bytes_received),
    ("receive_drop", "The amount of received dropped bytes on a given interface.", lambda c: c.packets_dropped_inbound),
    ("receive_errs", "The amount of received errors on a given interface.", lambda c: c.errors_received),
    ("receive_packets", "The amount of received packets on a given interface.", lambda c: c.packets_received),
    ("transmit_bytes", "The amount of transmitted bytes on a given interface.", lambda c: c.bytes_sent),
    (
        "transmit_drop",
        "The amount of transmitted dropped bytes on a given interface.",
        lambda c: c.packets_dropped_outbound,
    ),
    ("transmit_errs", "The amount of transmitted errors on a given interface.", lambda c: c.errors_sent),
    ("transmit_packets", "The amount of transmitted packets on a given interface.", lambda c: c.packets_sent),
)


class _Instances(Collector):
    def __init__(self, instances: Iterable[InstanceFull]) -> None:
        self._running = [(i, i.state) for i in instances if i.state is not None and i.state.pid > 0]

    def collect(self) -> Iterator[Metric]:
        cpu = CounterMetricFamily("lxd_cpu_seconds", "The total number of CPU time used in seconds.", labels=_LABELS)
        processes = GaugeMetricFamily("lxd_procs_total", "The number of running processes.", labels=_LABELS)
        for instance, state in self._running:
            cpu.add_metric(_labels(instance), state.cpu.usage / _NANOSECONDS)
            processes.add_metric(_labels(instance), state.processes)
        yield cpu
        yield processes
        yield from self._memory()
        for name, text, counter in _NETWORK:
            yield self._network(name, text, counter)

    def _memory(self) -> Iterator[Metric]:
        families = {
            "MemTotal": "The amount of memory the instance may use.",
            "MemAvailable": "The amount of available memory.",
            "MemFree": "The amount of free memory.",
            "Swap": "The amount of used swap memory.",
        }
        for name, text in families.items():
            family = GaugeMetricFamily(f"lxd_memory_{name}_bytes", text, labels=_LABELS)
            for instance, state in self._running:
                family.add_metric(_labels(instance), _memory_value(name, instance, state))
            yield family

    def _network(self, name: str, text: str, counter: Counter) -> Metric:
        family = CounterMetricFamily(f"lxd_network_{name}", text, labels=("device", *_LABELS))
        for instance, state in self._running:
            for device, network in state.network.items():
                family.add_metric([device, *_labels(instance)], counter(network.counters))
        return family


def render_metrics(instances: Iterable[InstanceFull]) -> bytes:
    """Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Instances(instances))
    return generate_latest(registry)


def _labels(instance: InstanceFull) -> list[str]:
    return [instance.name, instance.project, instance.type]


def _memory_value(name: str, instance: InstanceFull, state: InstanceState) -> int:
    if name == "Swap":
        return state.memory.swap_usage
    total = _memory_limit(instance.expanded_config.get("limits.memory", ""))
    return total if name == "MemTotal" else max(total - state.memory.usage, 0)


def _memory_limit(limit: str) -> int:
    """Bytes of `limits.memory`, which may be a percentage; without a limit, the host's memory."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        if limit.endswith("%"):
            return host * int(limit[:-1]) // 100
        return parse_size(limit) or host
    except (BadRequest, ValueError):
        return host
