# SPDX-License-Identifier: Apache-2.0
"""Who leaves a server, how, when and for where: decided from what the servers say of themselves; pure.

Called by `flexd.cli.evacuation`; the words are LXD's (`cluster.evacuate`, `boot.stop.priority`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    Instance = Mapping[str, Any]

AUTO, LIVE, MIGRATE, STOP = "auto", "live-migrate", "migrate", "stop"
ACTIONS = (AUTO, LIVE, MIGRATE, STOP)
# Where an instance comes home to, and whether it is to run once it has arrived; kept in its configuration, so that
# whoever goes on with an evacuation needs to know nothing else.
ORIGIN = "volatile.evacuate.origin"
POWER = "volatile.evacuate.power"
RUNNING = "RUNNING"
# Of a running instance that its daemon has made fit for a live move when it started.
FIT = "volatile.migration.stateful"
# Of what a live move has left: another server has it, and this one starts it no more.
HANDED_OVER = "volatile.migration.handed_over"
# What is tied to the hardware of one host.
_TIED_DEVICES = ("gpu", "infiniband", "pci", "tpm", "unix-block", "unix-char", "unix-hotplug", "usb")
_TIED_NICS = ("physical", "sriov")
_TRUE = ("1", "on", "true", "yes")


@dataclass
class Job:
    """One instance. `action` is one of those above but auto, `origin` where it is at home; `reason` is why this action,
    where that is no matter of course."""

    instance: Instance
    action: str
    origin: str
    reason: str = ""
    falls_back: bool = False  # live, but moved cold rather than not at all

    @property
    def name(self) -> str:
        return str(self.instance["name"])

    @property
    def project(self) -> str:
        return str(self.instance.get("project") or "default")

    @property
    def label(self) -> str:
        return self.name if self.project == "default" else f"{self.project}/{self.name}"


@dataclass
class Room:
    """A server that instances may go to: what it has, and what is left of that."""

    remote: str
    memory_total: int
    memory_used: int
    cpus: int
    cpus_taken: int
    architectures: frozenset[str] = frozenset()
    pools: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()  # managed or not
    profiles: frozenset[tuple[str, str]] = frozenset()  # project, name
    instances: set[tuple[str, str]] = field(default_factory=set)
    left_behind: dict[tuple[str, str], str] = field(default_factory=dict)  # stopped copies, with their origin
    criu_problem: str = ""

    def load_with(self, memory: int, cpus: int) -> float:
        """The fuller of memory and CPUs, 1 being full; CPUs may be promised several times over, memory not."""
        return max((self.memory_used + memory) / max(self.memory_total, 1), (self.cpus_taken + cpus) / self.cpus)

    def take(self, job: Job) -> None:
        memory, cpus = demand(job.instance)
        self.memory_used += memory
        self.cpus_taken += cpus
        self.instances.add((job.project, job.name))


# --- what to do with each ------------------------------------------------------------------------------------------


def is_running(instance: Instance) -> bool:
    return str(instance.get("status", "")).lower() not in ("stopped", "error")


def shall_run(instance: Instance) -> bool:
    """Now, or before somebody's evacuation stopped it and was interrupted."""
    return is_running(instance) or setting(instance, POWER) == RUNNING


def setting(instance: Instance, key: str, default: str = "") -> str:
    value = instance.get("config", {}).get(key) or instance.get("expanded_config", {}).get(key)
    return str(value or default)


def plan(instance: Instance, *, forced: str, identity: str, criu_problem: str) -> Job:
    """`forced`: an action for all, "" for each instance's own. `identity`: the server that it leaves, its home unless
    it has been evacuated to there. `criu_problem`: why that server moves nothing live."""
    wanted = forced or setting(instance, "cluster.evacuate", AUTO)
    origin = setting(instance, ORIGIN) or identity
    if wanted == AUTO:
        return _plan_auto(instance, origin, criu_problem)
    if wanted == LIVE and not is_running(instance):
        return Job(instance, MIGRATE, origin, "it does not run")
    return Job(instance, wanted, origin)


def _plan_auto(instance: Instance, origin: str, criu_problem: str) -> Job:
    tied = tied_devices(instance)
    if tied:
        return Job(instance, STOP, origin, f"tied to this host by {', '.join(tied)}")
    if not is_running(instance):
        return Job(instance, MIGRATE, origin)
    if setting(instance, FIT) not in _TRUE:
        return Job(instance, MIGRATE, origin, "not live: it was not started fit for it (migration.stateful)")
    if criu_problem:
        return Job(instance, MIGRATE, origin, f"not live: {criu_problem}")
    return Job(instance, LIVE, origin, falls_back=True)


def tied_devices(instance: Instance) -> list[str]:
    """Devices that another host cannot be expected to have."""
    devices = instance.get("expanded_devices") or {}
    return sorted(name for name, device in devices.items() if _is_tied(device))


def _is_tied(device: Mapping[str, str]) -> bool:
    kind = device.get("type", "")
    if kind == "nic":
        return device.get("nictype", "") in _TIED_NICS
    if kind == "disk":
        return device.get("path") != "/" and device.get("source", "") != ""  # of the host, or a volume of its own
    return kind in _TIED_DEVICES


# --- when ----------------------------------------------------------------------------------------------------------


def in_stop_order(jobs: Iterable[Job]) -> list[list[Job]]:
    """Groups, one after the other: higher `boot.stop.priority` first, as when the host goes down."""
    return _grouped(jobs, "boot.stop.priority")


def in_start_order(jobs: Iterable[Job]) -> list[list[Job]]:
    """Groups, one after the other: higher `boot.autostart.priority` first, as when the host comes up."""
    return _grouped(jobs, "boot.autostart.priority")


def _grouped(jobs: Iterable[Job], key: str) -> list[list[Job]]:
    groups: dict[int, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: (job.project, job.name)):
        groups.setdefault(int(setting(job.instance, key, "0")), []).append(job)
    return [groups[priority] for priority in sorted(groups, reverse=True)]


# --- where ---------------------------------------------------------------------------------------------------------


def demand(instance: Instance) -> tuple[int, int]:
    """Bytes of memory and CPUs that it takes up now; one that does not run takes none."""
    if not shall_run(instance):
        return 0, 0
    usage = ((instance.get("state") or {}).get("memory") or {}).get("usage", 0)
    return max(int(usage), 0), cpu_count(setting(instance, "limits.cpu"))


def cpu_count(limit: str) -> int:
    """Of `limits.cpu`: a number (`2`) or a list of CPUs (`0-3,7`); without a limit one CPU is counted."""
    if limit.isdigit():
        return int(limit)
    count = 0
    for part in filter(None, limit.split(",")):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            return 1
        count += int(last) - int(first) + 1 if dash else 1
    return max(count, 1)


def is_left_behind(job: Job, room: Room) -> bool:
    """The instance of this name there is a copy of this one, made by a move that was interrupted before it deleted the
    original. It has never run: whatever runs has left that state."""
    origin = room.left_behind.get((job.project, job.name), "")
    return origin != "" and origin == job.origin


def unfit(job: Job, room: Room) -> str:
    """Why the instance cannot go there; empty if it can."""
    instance = job.instance
    if (job.project, job.name) in room.instances and not is_left_behind(job, room):
        return "has an instance of this name"
    architecture = str(instance.get("architecture") or "")
    if room.architectures and architecture not in room.architectures:
        return f"does not run {architecture}"
    for lacking in (_lacking_profiles(job, room), _lacking_parts(instance, room)):
        if lacking:
            return f"has no {lacking[0]}"
    memory, _ = demand(instance)
    free = room.memory_total - room.memory_used
    if memory > free:
        return f"has {free >> 20} MiB of memory left, {memory >> 20} MiB are needed"
    if job.action == LIVE and room.criu_problem and not job.falls_back:
        return f"takes nobody live: {room.criu_problem}"
    return ""


def _lacking_profiles(job: Job, room: Room) -> list[str]:
    names = job.instance.get("profiles") or ()
    return [f'profile "{name}"' for name in names if (job.project, name) not in room.profiles]


def _lacking_parts(instance: Instance, room: Room) -> list[str]:
    lacking = []
    for device in (instance.get("expanded_devices") or {}).values():
        pool = device.get("pool", "")
        network = device.get("network") or (device.get("parent", "") if device.get("type") == "nic" else "")
        if pool and pool not in room.pools:
            lacking.append(f'storage pool "{pool}"')
        if network and network not in room.networks:
            lacking.append(f'network "{network}"')
    return lacking


def choose(job: Job, rooms: Sequence[Room]) -> tuple[Room | None, str]:
    """The emptiest server after it has come, and why there is none if so; what it takes is booked."""
    faults = {room.remote: unfit(job, room) for room in rooms}
    fit = [room for room in rooms if not faults[room.remote]]
    if not fit:
        return None, "; ".join(f"{remote} {fault}" for remote, fault in faults.items()) or "there is no other server"
    best = min(fit, key=lambda room: (room.load_with(*demand(job.instance)), room.remote))
    best.take(job)
    return best, ""
