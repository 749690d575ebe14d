# SPDX-License-Identifier: Apache-2.0
"""Who attaches a custom volume, for the storage service: in whose devices it is, whether they run, and its new name."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from flexd.instances.record import DeviceEntries, InstanceRecord
from flexd.instances.registry import Registry
from flexd.projects.projects import Projects
from flexd.storage.contract import VolumeRecord


class VolumeUsers:
    def __init__(self, *, registry: Registry, projects: Projects, is_running: Callable[[InstanceRecord], bool]) -> None:
        self._registry = registry
        self._projects = projects
        self._is_running = is_running

    def running(self, volume: VolumeRecord) -> list[str]:
        """URLs of the running instances that have it."""
        sharing = self._projects.sharing(volume.project, "storage.volumes")
        instances = [instance for project in sharing for instance in self._registry.all_instances(project)]
        found = [i for i in instances if self._is_running(i) and _attached(self._registry.expand(i).devices, volume)]
        return [instance.url for instance in found]

    async def rewrite(self, old: VolumeRecord, new: VolumeRecord) -> None:
        """A volume has another name or pool: so have the devices of instances and profiles. One transaction."""
        registry, ops, conditions = self._registry, [], []
        tables: tuple[Any, ...] = (registry.instances, registry.profiles)
        for table in tables:
            sharing = self._projects.sharing(old.project, "storage.volumes")
            for document in (found for project in sharing for found in table.list(project)):
                if _attached(document.value.devices, old):
                    devices = _rewritten(document.value.devices, old, new)
                    ops.append(table.put(document.path, msgspec.structs.replace(document.value, devices=devices)))
                    conditions.append(table.unchanged(document.path, document.revision))
        if ops:
            await registry.instances.txn(ops, conditions)


def _is_it(entry: Mapping[str, str], volume: VolumeRecord) -> bool:
    return entry.get("type") == "disk" and (entry.get("pool"), entry.get("source")) == (volume.pool, volume.name)


def _attached(devices: DeviceEntries, volume: VolumeRecord) -> bool:
    return any(_is_it(entry, volume) for entry in devices.values())


def _rewritten(devices: DeviceEntries, old: VolumeRecord, new: VolumeRecord) -> DeviceEntries:
    return {
        name: {**entry, "pool": new.pool, "source": new.name} if _is_it(entry, old) else entry
        for name, entry in devices.items()
    }
