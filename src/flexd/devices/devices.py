# SPDX-License-Identifier: Apache-2.0
"""The registry of device kinds: which one an entry means, and validation of a whole `devices` section."""

import importlib
import pkgutil
from collections.abc import Mapping

from flexd.api.errors import Fault
from flexd.devices import kinds
from flexd.devices.contract import Kind, Parts

DeviceConfig = Mapping[str, str]


# Importing a module of `kinds/` registers its classes; at import time, for it reads files.
for _module in pkgutil.iter_modules(kinds.__path__):
    importlib.import_module(f"{kinds.__name__}.{_module.name}")


class Devices:
    """Kinds by type, built once."""

    def __init__(self, parts: Parts) -> None:
        self._networks = parts.networks
        self._kinds = {key: kind(parts) for key, kind in Kind.registered.items()}

    def kinds(self) -> list[Kind]:
        return list(self._kinds.values())

    def kind(self, config: DeviceConfig) -> Kind | None:
        """The kind behind an entry, None if there is no such type (or type of NIC)."""
        kind_type = config.get("type", "")
        return self._kinds.get((kind_type, self._subtype(config)))

    def _subtype(self, config: DeviceConfig) -> str:
        if config.get("type") == "infiniband":
            return config.get("nictype", "")
        if config.get("type") != "nic":
            return ""
        # extension: instance_nic_network - the network's type says which NIC it is
        return "bridged" if config.get("network") else config.get("nictype", "")

    def updates_in_place(self, old: DeviceConfig, new: DeviceConfig) -> bool:
        """Whether a running instance can take the change without the device being unplugged."""
        kind = self.kind(old)
        changed = {key for key in {**old, **new} if old.get(key, "") != new.get(key, "")}
        return kind is not None and kind is self.kind(new) and changed <= kind.UPDATABLE

    def faults(self, devices: Mapping[str, DeviceConfig]) -> list[Fault]:
        """Every fault of a `devices` section."""
        found: list[Fault] = []
        for name, config in devices.items():
            kind = self.kind(config)
            if not name or "/" in name or len(name) > 64:
                found.append(Fault(f"devices.{name}", "invalid device name (1 to 64 characters, no slash)"))
            elif kind is None:
                found.append(Fault(f"devices.{name}", self._unknown(config)))
            else:
                found.extend(kind.faults(name, config))
        return found

    def _unknown(self, config: DeviceConfig) -> str:
        kind_type = config.get("type", "")
        if not kind_type:
            return "missing device type"
        known = sorted({kind for kind, _ in self._kinds})
        if kind_type not in known:
            return f'unsupported device type "{kind_type}" (this host has: {", ".join(known)})'
        if kind_type == "nic" and not config.get("nictype"):
            return 'a NIC needs a "network", or a "nictype" with its "parent"'
        if kind_type == "infiniband" and not config.get("nictype"):
            return 'an InfiniBand device needs a "nictype" (physical or sriov) and its "parent"'
        subtypes = sorted(subtype for kind, subtype in self._kinds if kind == kind_type and subtype)
        return f'unsupported nictype "{config.get("nictype", "")}" (this host has: {", ".join(subtypes)})'
