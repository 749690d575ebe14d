# SPDX-License-Identifier: Apache-2.0
"""A machine that can do everything, unless a test takes something away."""

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from flexd.api import resources as api
from flexd.host.contract import CgroupLayout, Features, HostError, SubordinateRange
from flexd.host.fake.recorder import Recorder
from flexd.host.missing import missing

_PROGRAMS = (
    "lxc-start",
    "dnsmasq",
    "nft",
    "tar",
    "unsquashfs",
    "mksquashfs",
    "rsync",
    "btrfs",
    "mmdebstrap",
)
_CGROUPS = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cgroup", "cpu", "cpuset", "hugetlb", "io", "memory", "pids")


class FakeMachine:
    def __init__(self, recorder: Recorder) -> None:
        self.features_value = Features(
            kernel="Linux",
            kernel_version="6.12.0",
            kernel_architecture="x86_64",
            os_name="Debian GNU/Linux",
            os_version="13",
            architectures=["x86_64", "i686"],
            cgroup=CgroupLayout("v2", dict.fromkeys(_CONTROLLERS, _CGROUPS), _CGROUPS),
            idmapped_mounts=True,
            overlay_idmapped_lower=True,
            pidfd=True,
            seccomp_listener=True,
            apparmor=True,
            apparmor_stacking=True,
            apparmor_rules=["userns,"],
            unprivileged_user_namespaces=True,
            network_namespace_id=True,
            programs=dict.fromkeys(_PROGRAMS, "1.0"),
        )
        self.range = SubordinateRange(base=1000000, count=1000000000)
        self.sysctls: dict[str, str] = {}
        self.load = (0.0, 0.0, 0.0)
        self.modules = {"br_netfilter", "overlay"}  # those that can be loaded
        self.loaded: set[str] = set()
        self.profiles: dict[str, str] = {}  # AppArmor's, by file name
        self.profile_fault = "syntax error"  # a profile with these words does not compile
        self.policy_namespaces: set[str] = set()
        self.syscalls_unknown = {"mkdirr"}
        self.memory = 8 << 30
        self.cpus = "0-3"
        self.gpu = api.ResourcesGPU()
        self._boot_id = str(uuid.uuid4())
        self._recorder = recorder

    def new_boot(self) -> None:
        self._boot_id = str(uuid.uuid4())

    async def features(self) -> Features:
        self._recorder.note_reading("machine.features")
        return self.features_value

    async def missing(self) -> dict[str, str]:
        self._recorder.note_reading("machine.missing")
        return missing(self.features_value)

    async def subordinate_ids(self) -> SubordinateRange:
        self._recorder.note_reading("machine.subordinate_ids")
        return self.range

    async def boot_id(self) -> str:
        self._recorder.note_reading("machine.boot_id")
        return self._boot_id

    async def memory_bytes(self) -> int:
        self._recorder.note_reading("machine.memory_bytes")
        return self.memory

    async def online_cpus(self) -> str:
        self._recorder.note_reading("machine.online_cpus")
        return self.cpus

    async def raise_limits(self) -> dict[str, str]:
        self._recorder.note("machine.raise_limits")
        return {}

    async def sysctl(self, name: str, value: str) -> bool:
        self._recorder.note("machine.sysctl", name, value)
        self.sysctls[name] = value
        return True

    async def load_module(self, name: str) -> None:
        self._recorder.note("machine.load_module", name)
        if name not in self.modules:
            raise HostError(f"load kernel module {name}: not found")
        self.loaded.add(name)

    async def load_profile(self, path: Path) -> None:
        self._recorder.note("machine.load_profile", path)
        text = await asyncio.to_thread(path.read_text)
        if self.profile_fault in text:
            raise HostError(f"load AppArmor profile {path}: {self.profile_fault}")
        self.profiles[path.name] = text

    async def unload_profile(self, path: Path) -> None:
        self._recorder.note("machine.unload_profile", path)
        self.profiles.pop(path.name, None)

    async def make_policy_namespace(self, name: str) -> None:
        self._recorder.note("machine.make_policy_namespace", name)
        self.policy_namespaces.add(name)

    async def remove_policy_namespace(self, name: str) -> None:
        self._recorder.note("machine.remove_policy_namespace", name)
        self.policy_namespaces.discard(name)

    async def unknown_syscalls(self, names: Sequence[str]) -> list[str]:
        self._recorder.note_reading("machine.unknown_syscalls")
        return [name for name in names if name in self.syscalls_unknown]

    async def resources(self) -> dict[str, Any]:
        self._recorder.note_reading("machine.resources")
        found = api.Resources(
            cpu=api.ResourcesCPU(architecture="x86_64", sockets=[api.ResourcesCPUSocket()], total=1),
            memory=api.ResourcesMemory(total=1 << 30, used=1 << 28),
            gpu=self.gpu,
        )
        builtins: dict[str, Any] = msgspec.to_builtins(found)
        return builtins

    async def load_average(self) -> tuple[float, float, float]:
        self._recorder.note_reading("machine.load_average")
        return self.load
