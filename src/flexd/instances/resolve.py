# SPDX-License-Identifier: Apache-2.0
"""From what a client wants to the record of a new instance; every fault is told before anything is made."""

import uuid
from collections.abc import Sequence

from msgspec import Struct

from flexd.api.errors import BadRequest, Conflict, Fault, raise_faults
from flexd.api.times import now
from flexd.devices.devices import Devices
from flexd.instances.actions import Actions
from flexd.instances.allocator import IdmapAllocator
from flexd.instances.check import new_volatile, root_fault, root_size_bytes, settings_faults
from flexd.instances.confinement import Confinement
from flexd.instances.firstboot import Trigger, made
from flexd.instances.limiter import Limiter
from flexd.instances.names import check_instance_name, make_name
from flexd.instances.project_rules import ProjectRules
from flexd.instances.record import Config, DeviceEntries, Expanded, InstanceRecord
from flexd.instances.registry import Registry
from flexd.instances.security import security_faults
from flexd.storage.pools import Pools


class Wanted(Struct, frozen=True):
    """A new instance in a client's words. `kept` are keys that come from the source, not from the client (image.*,
    volatile.base_image); they are not checked. `trigger`: which templates of its `metadata` are due at first."""

    profiles: Sequence[str]
    config: Config
    devices: DeviceEntries
    architecture: str = ""
    description: str = ""
    ephemeral: bool = False
    kept: Config = {}
    metadata: str = ""
    trigger: Trigger = "create"


class Resolver:
    """Knows what this host has."""

    def __init__(
        self,
        *,
        registry: Registry,
        devices: Devices,
        pools: Pools,
        actions: Actions,
        allocator: IdmapAllocator,
        limiter: Limiter,
        confinement: Confinement,
        rules: ProjectRules,
        architectures: Sequence[str],
    ) -> None:
        self._registry = registry
        self._devices = devices
        self._pools = pools
        self._actions = actions
        self._allocator = allocator
        self._limiter = limiter
        self._confinement = confinement
        self._rules = rules
        self._architectures = architectures

    def free_name(self, project: str, wanted: str) -> str:
        """The name, checked and free; one made up where none is wanted."""
        name = wanted or make_name({record.name for record in self._registry.all_instances(project)})
        check_instance_name(name)
        if self._registry.instances.get(project, name) is not None:
            raise Conflict(f'Failed creating instance "{name}": an instance of this name already exists')
        return name

    async def record(self, project: str, name: str, wanted: Wanted) -> tuple[InstanceRecord, Expanded]:
        """The record to write, and its expansion."""
        profiles = list(wanted.profiles)
        faults = settings_faults(self._registry, self._devices, project, wanted.config, wanted.devices, profiles)
        architecture = wanted.architecture or self._architectures[0]
        if architecture not in self._architectures:
            faults.append(Fault("architecture", f'"{architecture}" does not run here ({self._architectures[0]})'))
        raise_faults(faults)
        config = {key: value for key, value in wanted.config.items() if not key.startswith("volatile.")} | wanted.kept
        expanded = self._registry.expand_with(project, profiles, config, wanted.devices)
        missing = root_fault(expanded)
        raise_faults([missing] if missing else [])
        config |= new_volatile(self._devices, expanded, config)
        config |= {"volatile.uuid": str(uuid.uuid4()), "volatile.last_state.idmap": "[]"} | made(wanted.trigger)
        root = expanded.root()
        record = InstanceRecord(
            name=name,
            project=project,
            architecture=architecture,
            description=wanted.description,
            ephemeral=wanted.ephemeral,
            profiles=profiles,
            config=config,
            devices=wanted.devices,
            pool=root[1]["pool"] if root else "",
            created_at=now(),
            metadata=wanted.metadata,
        )
        config |= await self._allocator.choose(expanded.config, record.storage_name)
        expanded = self._registry.expand_with(project, profiles, config, wanted.devices)
        self._rules.check([record])
        await self.check_host(record, expanded)
        return record, expanded

    async def check_host(self, record: InstanceRecord, expanded: Expanded) -> None:
        """What devices and limits need must be there: pools, networks, paths, controllers, quotas."""
        faults = security_faults(expanded.config) + await self._confinement.host_faults(expanded)
        for device, entry in expanded.devices.items():
            kind = self._devices.kind(entry)
            if kind is not None:
                faults += await kind.host_faults(self._actions.context(record, expanded, device))
        raise_faults(faults)
        await self._limiter.settings(expanded.config)
        if root_size_bytes(expanded):
            reason = await self._pools.has_quota(record.pool)
            if reason is not None:
                raise BadRequest(f'Failed setting a size for instance "{record.name}": it cannot be enforced: {reason}')
