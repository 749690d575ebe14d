# SPDX-License-Identifier: Apache-2.0
"""Brings onto the host what confines an instance before it starts, and takes it away with the instance."""

import asyncio
import os
from pathlib import Path

from flexd.api.errors import BadRequest, Fault
from flexd.api.units import is_true
from flexd.host.contract import Features, Host, HostError
from flexd.instances.allocator import current_idmap
from flexd.instances.fitness import STARTED
from flexd.instances.record import Config, Expanded, InstanceRecord
from flexd.instances.registry import Registry
from flexd.instances.security import (
    denies_compat,
    has_guest_api,
    interceptions,
    modules,
    seccomp_rules,
    supervision,
    sysctls,
)
from flexd.instances.spec import Confined
from flexd.runtime.apparmor import Confinement as Profile
from flexd.runtime.apparmor import label, render_profile
from flexd.runtime.contract import MountSpec, Supervision
from flexd.runtime.render import guest_api_mounts
from flexd.runtime.seccomp import named_calls, render_policy

# The v1 hierarchy without controllers that systemd counts its processes in.
_SYSTEMD_HIERARCHY = "systemd"
# Before 232 systemd runs on v2 only when the kernel's command line says so (its NEWS file).
_FIRST_ON_V2 = 232


class Confinement:
    """One per daemon; keeps files below one directory, one a running name."""

    def __init__(
        self,
        *,
        host: Host,
        registry: Registry,
        directory: Path,
        guest_directory: Path,
        features: Features,
        daemon_id: str,
    ) -> None:
        self._host = host
        self._registry = registry
        self._directory = directory
        self._guest_directory = guest_directory
        self._features = features
        self._daemon_id = daemon_id

    async def host_faults(self, expanded: Expanded) -> list[Fault]:
        """Keys that this host cannot hold: a rule about a system call that nobody knows would confine nothing."""
        faults = self._apparmor_faults(expanded)
        for key in ("allow", "deny", "whitelist", "blacklist"):
            path = f"security.syscalls.{key}"
            calls = named_calls(expanded.config.get(path, ""))
            unknown = await self._host.machine.unknown_syscalls(calls) if calls else []
            faults += [Fault(f"config.{path}", f'"{name}" is not the name of a system call here') for name in unknown]
        return faults + await self._interception_faults(expanded)

    def _apparmor_faults(self, expanded: Expanded) -> list[Fault]:
        if not expanded.config.get("raw.apparmor") or self._features.apparmor:
            return []
        return [Fault("config.raw.apparmor", "cannot work: this host's kernel has no AppArmor")]

    async def _interception_faults(self, expanded: Expanded) -> list[Fault]:
        wanted = interceptions(expanded.config)
        if not wanted:
            return []
        reason = ""
        if not self._features.seccomp_listener:
            reason = "this kernel tells nobody of system calls (seccomp user notification, Linux 5.0)"
        elif self._features.nested:
            reason = "flexd itself runs in a container here, and has no more rights than its root has"
        reasons = dict.fromkeys(wanted, reason) if reason else {}
        if not reason and "sched_setscheduler" in wanted and await self._hands_out_real_time():
            reasons["sched_setscheduler"] = (
                "this kernel gives real-time to cgroups (CONFIG_RT_GROUP_SCHED), and containers' have none"
            )
        return [
            Fault(f"config.security.syscalls.intercept.{name}", f"cannot work: {why}")
            for name, why in sorted(reasons.items())
        ]

    async def _hands_out_real_time(self) -> bool:
        try:
            await self._host.cgroups.read(".", "cpu", "cpu.rt_runtime_us")
        except HostError:
            return False
        return True

    def supervision(self, runtime_name: str) -> Supervision | None:
        """How system calls of a container are acted on; asked at each, so edits of the instance count at once."""
        for record in self._registry.all_instances():
            if record.storage_name == runtime_name:
                return supervision(self._registry.expand(record).config)
        return None

    async def check_guest(self, record: InstanceRecord, rootfs: Path) -> None:
        """Before a start: on a host without cgroup v1, an init that knows no v2 says so on its console and hangs."""
        layout = await self._host.cgroups.layout()
        if _SYSTEMD_HIERARCHY in layout.controllers:
            return
        version = await self._host.files.systemd_version(rootfs)
        old = f"it has systemd {version}" if version is not None and version < _FIRST_ON_V2 else ""
        if record.config.get("image.requirements.cgroup") == "v1":
            old = old or "its image says so"
        if old:
            raise BadRequest(
                f'Failed starting instance "{record.name}": it needs a host with cgroup v1 ({old}), and this one has '
                "cgroup v2 only. Upgrade its system, or boot the host with systemd.unified_cgroup_hierarchy=0"
            )

    async def prepare(self, record: InstanceRecord, expanded: Expanded) -> Confined:
        """Before a start: modules loaded, policies written."""
        for name in modules(expanded.config):
            await self._load_module(record, name)
        rules = seccomp_rules(expanded.config, migratable=is_true(record.config.get(STARTED)))
        policy = render_policy(rules, self._features.kernel_architecture)
        path = self._seccomp_path(record.storage_name)
        await asyncio.to_thread(_write, path, policy)
        return Confined(
            seccomp_profile=str(path) if policy else "",
            sysctls=sysctls(expanded.config),
            apparmor_profile=await self._load_profile(record, expanded),
            supervised=bool(interceptions(expanded.config)),
            limit_devices="mount" in interceptions(expanded.config),
            native_only=denies_compat(expanded.config),
            guest_api=str(self._guest_directory) if has_guest_api(expanded.config) else "",
        )

    async def _load_module(self, record: InstanceRecord, name: str) -> None:
        try:
            await self._host.machine.load_module(name)
        except HostError as error:
            raise BadRequest(f'Failed loading kernel module "{name}" for instance "{record.name}": {error}') from error

    async def _load_profile(self, record: InstanceRecord, expanded: Expanded) -> str:
        """The label of its own AppArmor profile, loaded. In a container the outer profile holds all that is inside."""
        if not self._features.apparmor:
            return ""
        if self._features.nested:
            return "unchanged"
        wanted = self._apparmor(record.storage_name, expanded.config)
        path = self._apparmor_path(record.storage_name)
        await asyncio.to_thread(_write, path, render_profile(wanted))
        if wanted.namespace:
            await self._host.machine.make_policy_namespace(wanted.namespace)
        await self._host.machine.load_profile(path)
        return label(wanted)

    async def reload(self, record: InstanceRecord, before: Config, after: Config) -> None:
        """Of a container that runs: what its keys of `security.LIVE` load into the kernel. What was loaded stays."""
        for name in modules(after):
            if name not in modules(before):
                await self._load_module(record, name)
        if not self._features.apparmor or self._features.nested:
            return
        # It runs with the ids that it was started with, whatever its key says by now.
        runs = {"security.privileged": "false" if current_idmap(record.config) else "true"}
        wanted = render_profile(self._apparmor(record.storage_name, {**after, **runs}))
        if wanted != render_profile(self._apparmor(record.storage_name, {**before, **runs})):
            await self._replace_profile(record, wanted)

    async def _replace_profile(self, record: InstanceRecord, text: str) -> None:
        path = self._apparmor_path(record.storage_name)
        await asyncio.to_thread(_write, path, text)
        try:
            await self._host.machine.load_profile(path)
        except HostError as error:
            raise BadRequest(f'Failed replacing the AppArmor profile of instance "{record.name}": {error}') from error

    def guest_mounts(self) -> list[MountSpec]:
        """The guest API, for a container that it is given to or taken from."""
        return guest_api_mounts(str(self._guest_directory))

    def _apparmor(self, runtime_name: str, config: Config) -> Profile:
        # Debian confines lxc-start itself, to profiles and namespaces whose names begin so.
        name = f"lxc-flexd-{self._daemon_id}_{runtime_name}"
        unprivileged = not is_true(config.get("security.privileged"))
        return Profile(
            name=name,
            namespace=name if self._features.apparmor_stacking and unprivileged else "",
            nesting=is_true(config.get("security.nesting")),
            unprivileged=unprivileged,
            newer=tuple(self._features.apparmor_rules),
            raw=config.get("raw.apparmor", ""),
        )

    async def release(self, runtime_name: str) -> None:
        """After its end: what the kernel keeps of it."""
        if self._features.apparmor and not self._features.nested:
            await self._host.machine.remove_policy_namespace(self._apparmor(runtime_name, {}).name)
            await self._host.machine.unload_profile(self._apparmor_path(runtime_name))

    async def remove(self, runtime_name: str) -> None:
        """The instance is deleted; without files of it this does nothing."""
        await asyncio.to_thread(self._apparmor_path(runtime_name).unlink, missing_ok=True)
        await asyncio.to_thread(self._seccomp_path(runtime_name).unlink, missing_ok=True)

    def _apparmor_path(self, runtime_name: str) -> Path:
        return self._directory / "apparmor" / runtime_name

    def _seccomp_path(self, runtime_name: str) -> Path:
        return self._directory / "seccomp" / runtime_name


def _write(path: Path, text: str) -> None:
    """Whole or not at all; an empty text is no file. Only root may read what a container is denied."""
    if not text:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(path.name + "~")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
    new.replace(path)
