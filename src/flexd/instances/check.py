# SPDX-License-Identifier: Apache-2.0
"""Checks of what a client wants an instance to be; every fault is collected before anything is made."""

from collections.abc import Mapping, Sequence

from flexd.api.errors import Fault
from flexd.api.units import parse_size
from flexd.devices.devices import Devices
from flexd.instances.keys import config_faults
from flexd.instances.record import Config, DeviceEntries, Expanded, device_volatile
from flexd.instances.registry import Registry


def settings_faults(
    registry: Registry,
    devices: Devices,
    project: str,
    config: Mapping[str, str],
    entries: DeviceEntries,
    profiles: Sequence[str],
) -> list[Fault]:
    """Faults of the parts that a client writes, by themselves."""
    faults = config_faults(config) + devices.faults(entries)
    for index, name in enumerate(profiles):
        if not registry.has_profile(project, name):
            faults.append(Fault(f"profiles.{index}", f'Requested profile "{name}" doesn\'t exist'))
        elif name in profiles[:index]:
            faults.append(Fault(f"profiles.{index}", f'profile "{name}" is listed twice'))
    return faults


def root_fault(expanded: Expanded) -> Fault | None:
    """An instance has one root disk with a pool."""
    if expanded.root() is None:
        return Fault("devices", "No root device could be found: add a disk with path=/ and pool=NAME, or a profile")
    return None


def new_volatile(devices: Devices, expanded: Expanded, known: Mapping[str, str]) -> Config:
    """The `volatile.DEVICE.*` keys that the devices need and do not have yet."""
    new: Config = {}
    names_taken = {
        entry.get("name") or known.get(f"volatile.{device}.name", "") for device, entry in expanded.devices.items()
    }
    for device, entry in expanded.devices.items():
        kind = devices.kind(entry)
        if kind is None:
            continue
        for key, value in kind.new_volatile(device, entry, device_volatile(known, device)).items():
            if key == "name" and value in names_taken:
                value = next(f"eth{n}" for n in range(1000) if f"eth{n}" not in names_taken)
            if key == "name":
                names_taken.add(value)
            new[f"volatile.{device}.{key}"] = value
    return new


def without_stale_volatile(config: Config, expanded: Expanded) -> Config:
    """Drop `volatile.DEVICE.*` of devices that the instance no longer has."""
    fixed = tuple(f"volatile.{name}." for name in ("idmap", "last_state", "cloud-init", "container", "evacuate"))
    kept: Config = {}
    for key, value in config.items():
        parts = key.split(".", 2)
        of_device = parts[0] == "volatile" and len(parts) == 3 and not key.startswith(fixed)
        if not of_device or parts[1] in expanded.devices:
            kept[key] = value
    return kept


def root_size_bytes(expanded: Expanded) -> int:
    """The root disk's size; 0: no limit."""
    root = expanded.root()
    return parse_size(root[1].get("size", "")) if root is not None else 0
