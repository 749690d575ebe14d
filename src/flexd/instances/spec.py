# SPDX-License-Identifier: Apache-2.0
"""From an instance's settings to what the runtime starts; pure."""

from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from flexd.api.idmap import IdMap
from flexd.api.units import is_true
from flexd.devices.contract import RunConfig
from flexd.images.applications import IS_APPLICATION, STOP_SIGNAL, application_of
from flexd.instances.fitness import STARTED
from flexd.instances.limits import Setting, rlimits
from flexd.instances.record import Config, Expanded, InstanceRecord
from flexd.runtime.contract import ApplicationSpec, ContainerSpec


class Confined(Struct, frozen=True):
    """What confinement adds to the start of a container."""

    seccomp_profile: str = ""
    apparmor_profile: str = ""
    sysctls: dict[str, str] = {}
    guest_api: str = ""
    supervised: bool = False
    limit_devices: bool = False
    native_only: bool = False


_UNCONFINED = Confined()
# Programs that are not root serve ports such as 80, which is safe in a network of their own.
_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0"}


def environment(config: Config) -> Config:
    """The `environment.*` keys, without that prefix."""
    prefix = "environment."
    return {key[len(prefix) :]: value for key, value in config.items() if key.startswith(prefix)}


def is_application(config: Config) -> bool:
    """Whether it runs one program in place of a system: it was made from an OCI image."""
    return is_true(config.get(IS_APPLICATION))


def application_spec(config: Config) -> ApplicationSpec | None:
    if not is_application(config):
        return None
    wanted = application_of(config)
    return ApplicationSpec(tuple(wanted.command), wanted.cwd, wanted.uid, wanted.gid, tuple(wanted.groups))


def container_spec(
    record: InstanceRecord,
    expanded: Expanded,
    rootfs: Path,
    idmap: IdMap,
    parts: Iterable[RunConfig],
    limits: Iterable[Setting] = (),
    confined: Confined = _UNCONFINED,
) -> ContainerSpec:
    """Everything that the start of an instance needs to know."""
    parts = list(parts)
    limited = not idmap or confined.limit_devices
    return ContainerSpec(
        name=record.storage_name,
        rootfs=rootfs,
        idmap=idmap,
        hostname=record.name,
        architecture=record.architecture,
        nics=tuple(nic for part in parts for nic in part.nics),
        mounts=tuple(mount for part in parts for mount in part.mounts),
        environment=environment(expanded.config),
        cgroup=(*((setting.file, setting.value) for setting in limits), *_rules(limited, parts)),
        application=application_spec(expanded.config),
        stop_signal=expanded.config.get(STOP_SIGNAL) or "SIGTERM" if is_application(expanded.config) else "",
        sysctls=(_SYSCTLS if is_application(expanded.config) else {}) | confined.sysctls,
        rlimits=rlimits(expanded.config),
        nesting=is_true(expanded.config.get("security.nesting")),
        seccomp_profile=confined.seccomp_profile,
        apparmor_profile=confined.apparmor_profile,
        guest_api=confined.guest_api,
        migratable=is_true(record.config.get(STARTED)),
        supervised=confined.supervised,
        limit_devices=confined.limit_devices,
        native_only=confined.native_only,
        raw=expanded.config.get("raw.lxc", ""),
    )


def _rules(limited: bool, parts: Iterable[RunConfig]) -> list[tuple[str, str]]:
    return [] if not limited else [("devices.allow", rule) for part in parts for rule in part.rules]
