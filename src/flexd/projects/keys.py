# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of projects: what is their own (`features.*`), how much they may use (`limits.*`), and what is
kept from them (`restricted.*`, which counts while `restricted` is true)."""

import re
from collections.abc import Callable, Mapping

from flexd.api.errors import BadRequest, Fault
from flexd.api.keys import Key, check_config
from flexd.api.units import is_true, parse_size

FEATURES = ("features.images", "features.networks", "features.profiles", "features.storage.volumes")
# What a new project has unless it says otherwise, as in LXD: all but networks, which bridges cannot be in.
NEW_FEATURES = ("features.images", "features.profiles", "features.storage.volumes")
POOL_LIMIT = "limits.disk.pool."
# Counted by sums over instances (and volumes and images), in the order in which LXD checks them.
SUMS = ("limits.cpu", "limits.memory", "limits.processes", "limits.disk")

_RANGE = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")
_MAX_ID = 2**32 - 1
_ALLOW = ("allow", "block")
_SUBNET = re.compile(r"[^:\s]+:[0-9A-Fa-f.:]+/[0-9]{1,3}")


def _count_fault(value: str) -> str | None:
    return None if value.isascii() and value.isdecimal() else f'invalid value "{value}" (expected 0 or more)'


def _size_fault(value: str) -> str | None:
    try:
        size_bytes = parse_size(value)
    except BadRequest as error:
        return str(error)
    return None if size_bytes >= 0 else f'invalid value "{value}" (expected 0 or more)'


def words(value: str) -> list[str]:
    """A list with commas."""
    return [word for word in (part.strip() for part in value.split(",")) if word]


def _each(fault: Callable[[str], str | None]) -> Callable[[str], str | None]:
    return lambda value: next((wrong for word in words(value) if (wrong := fault(word)) is not None), None)


def _path_fault(path: str) -> str | None:
    if not path.startswith("/") or ".." in path.split("/"):
        return f'invalid path "{path}" (expected an absolute path without "..")'
    return None


def _range_fault(text: str) -> str | None:
    match = _RANGE.fullmatch(text)
    if match is None or not int(match[1]) <= int(match[2] or match[1]) <= _MAX_ID:
        return f'invalid range "{text}" (an id, or the first and the last one: 1000-1999)'
    return None


def parse_ranges(value: str) -> list[tuple[int, int]]:
    """`restricted.idmap.*`: first and last ids, both allowed."""
    matches = (_RANGE.fullmatch(word) for word in words(value))
    return [(int(match[1]), int(match[2] or match[1])) for match in matches if match is not None]


def _subnet_fault(text: str) -> str | None:
    return None if _SUBNET.fullmatch(text) else f'Subnet "{text}" invalid, must be in the format <uplink>:<subnet>'


def _allow(name: str, description: str, choices: tuple[str, ...] = _ALLOW, default: str = "block") -> Key:
    return Key(f"restricted.{name}", choices=choices, default=default, description=description)


def _list(name: str, description: str, check: Callable[[str], str | None] | None = None) -> Key:
    return Key(f"restricted.{name}", check=None if check is None else _each(check), description=description)


_FEATURE_KEYS = (
    Key("features.images", kind="bool", default="false", description="Whether it has images and aliases of its own"),
    Key(
        "features.networks",
        kind="bool",
        default="false",
        description="Whether it has networks of its own, none of those of `default`; bridges can be in `default` only",
    ),
    Key("features.profiles", kind="bool", default="false", description="Whether it has profiles of its own"),
    Key(
        "features.storage.volumes", kind="bool", default="false", description="Whether it has custom volumes of its own"
    ),
)
_LIMIT_KEYS = (
    Key("limits.containers", check=_count_fault, description="Number of containers"),
    Key("limits.cpu", check=_count_fault, description="Sum of the instances' `limits.cpu`, which each must then have"),
    Key(
        "limits.disk",
        kind="size",
        check=_size_fault,
        description="Sum of the sizes of root disks and custom volumes, which each must then have, and of images",
    ),
    Key(f"{POOL_LIMIT}*", kind="size", check=_size_fault, description="The same for one pool (without images)"),
    Key("limits.instances", check=_count_fault, description="Number of instances"),
    Key(
        "limits.memory",
        kind="size",
        check=_size_fault,
        description="Sum of the instances' `limits.memory`, which each must then have",
    ),
    Key("limits.networks", check=_count_fault, description="Number of networks of its own"),
    Key(
        "limits.processes",
        check=_count_fault,
        description="Sum of the instances' `limits.processes`, which each must then have",
    ),
    Key("limits.virtual-machines", check=_count_fault, description="Number of virtual machines"),
)
_RESTRICTED_KEYS = (
    Key("restricted", kind="bool", default="false", description="Whether the keys `restricted.*` count"),
    _allow("backups", "Backups of instances and volumes"),
    _list("cluster.groups", "Groups of cluster members that may be targets; unset: all"),
    _allow("cluster.target", "Choosing a cluster member"),
    _allow(
        "containers.interception",
        "`security.syscalls.intercept.*`; allow: the safe ones, full: all",
        ("allow", "block", "full"),
    ),
    _allow("containers.lowlevel", "`raw.*`, `volatile.*`, `limits.kernel.*` and others that reach the host"),
    _allow("containers.nesting", "`security.nesting`"),
    _allow(
        "containers.privilege",
        "unprivileged: no `security.privileged`; isolated: and `security.idmap.isolated`",
        ("unprivileged", "isolated", "allow"),
        "unprivileged",
    ),
    _allow(
        "devices.disk", "Disks besides the root; managed: volumes of pools", ("allow", "block", "managed"), "managed"
    ),
    _list("devices.disk.paths", "Directories below which a disk's `source` must be; unset: any path", _path_fault),
    _allow("devices.gpu", "Devices of type `gpu`"),
    _allow("devices.infiniband", "Devices of type `infiniband`"),
    _allow("devices.nic", "NICs; managed: those with a `network`", ("allow", "block", "managed"), "managed"),
    _allow("devices.pci", "Devices of type `pci`"),
    _allow("devices.proxy", "Devices of type `proxy`"),
    _allow("devices.unix-block", "Devices of type `unix-block`"),
    _allow("devices.unix-char", "Devices of type `unix-char`"),
    _allow("devices.unix-hotplug", "Devices of type `unix-hotplug`"),
    _allow("devices.usb", "Devices of type `usb`"),
    _list("idmap.gid", "Groups of the host that `raw.idmap` may name (`1000-1999`)", _range_fault),
    _list("idmap.uid", "Users of the host that `raw.idmap` may name (`1000-1999`)", _range_fault),
    _list("images.servers", "Hosts that images may come from; unset: any"),
    _list("networks.access", "Networks, and bridges of the host, that may be used; unset: all"),
    _list("networks.subnets", "Subnets of uplinks (`uplink:subnet`), for networks of its own", _subnet_fault),
    _list("networks.uplinks", "Uplinks for networks of its own"),
    _list("networks.zones", "DNS zones for networks of its own"),
    _allow("snapshots", "Snapshots of instances and volumes"),
    _list("storage-pools.access", "Pools that may be used; unset: all"),
    _allow("virtual-machines.lowlevel", "Low-level options of virtual machines"),
    _allow("virtual-machines.nesting", "Virtual machines inside virtual machines", default="allow"),
)

KEYS = (*_FEATURE_KEYS, *_LIMIT_KEYS, *_RESTRICTED_KEYS, Key("user.*", description="Free for users"))

_DEFAULTS = {key.name: key.default for key in KEYS}


def config_faults(config: Mapping[str, str], keys: tuple[Key, ...], pools: list[str]) -> list[Fault]:
    """`keys`: these rows and those of other packages. `pools`: names, for the limits of single ones."""
    faults = check_config(config, keys)
    for key in config:
        if key.startswith(POOL_LIMIT) and key.removeprefix(POOL_LIMIT) not in pools:
            faults.append(Fault(f"config.{key}", f'Storage pool "{key.removeprefix(POOL_LIMIT)}" not found'))
    return faults


class Rules:
    """What a project's configuration keeps from it."""

    def __init__(self, project: str, config: Mapping[str, str]) -> None:
        self.project, self.config = project, config
        self.restricted = is_true(config.get("restricted"))

    def value(self, key: str) -> str:
        """Of `restricted.KEY`, or its default."""
        return self.config.get(f"restricted.{key}") or _DEFAULTS[f"restricted.{key}"]

    def blocks(self, key: str) -> bool:
        return self.restricted and self.value(key) == "block"

    def listed(self, key: str) -> list[str] | None:
        """What alone is allowed; None: anything."""
        return words(self.value(key)) or None if self.restricted else None
