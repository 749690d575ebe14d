# SPDX-License-Identifier: Apache-2.0
"""What a restricted project keeps from its instances and profiles: a rule for each key and kind of device; pure.

Messages are LXD's, with the key of the project that forbids it."""

from collections.abc import Callable, Iterator, Mapping

from flexd.api.errors import BadRequest
from flexd.api.idmap import IdMapEntry
from flexd.api.units import is_true
from flexd.devices.kinds.disk import is_root
from flexd.instances.raw_idmap import parse_raw_idmap
from flexd.instances.record import DeviceEntries
from flexd.projects.keys import Rules, parse_ranges

# Whoever sets these reaches beyond the instance; LXD's list, with rlimits, which are the host's to give.
_LOW_LEVEL = (
    "boot.host_shutdown_timeout",
    "linux.kernel_modules",
    "security.devlxd.images",
    "security.idmap.base",
    "security.idmap.size",
)
_LOW_LEVEL_PREFIXES = ("limits.kernel.", "raw.", "security.syscalls.")
_INTERCEPT = "security.syscalls.intercept."
# With `restricted.containers.interception=allow`, LXD's list: what the host then does reaches no further than the
# instance itself; file systems that its own kernel code reads (mount.allowed) are not among them.
_SAFE_INTERCEPTIONS = tuple(
    f"{_INTERCEPT}{name}" for name in ("bpf", "bpf.devices", "mknod", "mount", "mount.fuse", "setxattr", "sysinfo")
)
# Clients send these back with what they copy.
_HARMLESS_VOLATILE = ("volatile.apply_template", "volatile.base_image", "volatile.last_state.power")

_FORBIDDEN_DEVICES = {
    "gpu": "GPU devices are forbidden",
    "infiniband": "Infiniband devices are forbidden",
    "pci": "PCI devices are forbidden",
    "proxy": "Proxy devices are forbidden",
    "unix-block": "Unix block devices are forbidden",
    "unix-char": "Unix character devices are forbidden",
    "unix-hotplug": "Unix hotplug devices are forbidden",
    "usb": "USB devices are forbidden",
}
# A device that is nothing, and one that is a program's own: LXD has no rule for them.
_ALLOWED_DEVICES = ("none", "tpm")
_NIC_ROUTES = ("ipv4.routes", "ipv6.routes", "ipv4.routes.external", "ipv6.routes.external")

Entry = Mapping[str, str]


def faults(rules: Rules, subject: str, config: Entry, devices: DeviceEntries, *, whole: bool) -> list[str]:
    """Why these settings are not allowed. `subject`: `container "c1"`. `whole`: they are all that an instance has, so
    that what is missing counts too; a profile is a part."""
    if not rules.restricted:
        return []
    found = [
        f'{message[0]} on {subject} of project "{rules.project}"{message[1]}'
        for message in _config_faults(rules, config, whole=whole)
    ]
    for name, entry in devices.items():
        wrong = device_fault(rules, entry)
        if wrong is not None:
            found.append(f'Invalid device "{name}" on {subject} of project "{rules.project}": {wrong}')
    return found


# --- configuration keys ----------------------------------------------------------------------------------------------


def _config_faults(rules: Rules, config: Entry, *, whole: bool) -> Iterator[tuple[str, str]]:
    """What stands before and after the subject."""
    for key, value in sorted(config.items()):
        if not value:
            continue
        wrong = _value_fault(rules, key, value)
        if wrong is not None:
            yield f'Invalid value "{value}" for config "{key}"', f": {wrong}"
        elif _is_low_level(rules, key) and rules.value("containers.lowlevel") != "allow":
            yield f'Use of low-level config "{key}"', " is forbidden (restricted.containers.lowlevel)"
    isolated = is_true(config.get("security.idmap.isolated"))
    if whole and rules.value("containers.privilege") == "isolated" and not isolated:
        wrong = "Non-isolated containers are forbidden (restricted.containers.privilege)"
        yield 'Invalid value "false" for config "security.idmap.isolated"', f": {wrong}"


def _value_fault(rules: Rules, key: str, value: str) -> str | None:
    if key.startswith(_INTERCEPT):
        return _interception_fault(rules, key, value)
    if key == "raw.idmap":
        return _idmap_fault(rules, value)
    if key == "security.nesting" and is_true(value) and rules.value("containers.nesting") != "allow":
        return "Container nesting is forbidden (restricted.containers.nesting)"
    if key == "security.privileged" and is_true(value) and rules.value("containers.privilege") != "allow":
        return "Privileged containers are forbidden (restricted.containers.privilege)"
    return None


def _is_low_level(rules: Rules, key: str) -> bool:
    if key.startswith(_INTERCEPT):
        return False
    if key == "raw.idmap":
        return not (rules.value("idmap.uid") or rules.value("idmap.gid"))
    return key in _LOW_LEVEL or key.startswith(_LOW_LEVEL_PREFIXES)


def _interception_fault(rules: Rules, key: str, value: str) -> str | None:
    allowed = rules.value("containers.interception")
    if allowed == "full" or value.lower() in ("false", "0", "no", "off"):
        return None
    if allowed == "allow" and key in _SAFE_INTERCEPTIONS:
        return None
    return "Container syscall interception is forbidden (restricted.containers.interception)"


def _idmap_fault(rules: Rules, value: str) -> str | None:
    """Host ids outside the ranges, where the project has any."""
    ranges = {"u": parse_ranges(rules.value("idmap.uid")), "g": parse_ranges(rules.value("idmap.gid"))}
    if not any(ranges.values()):
        return None
    try:
        entries = parse_raw_idmap(value)
    except BadRequest as error:
        return str(error)
    for entry in entries:
        for kind in ("u", "g") if entry.kind == "b" else (entry.kind,):
            if not _is_within(entry, ranges[kind]):
                name = "uid" if kind == "u" else "gid"
                return f"the host's {name} {_ids(entry)} may not be mapped (restricted.idmap.{name})"
    return None


def _is_within(entry: IdMapEntry, ranges: list[tuple[int, int]]) -> bool:
    return any(first <= entry.outside and entry.outside + entry.count - 1 <= last for first, last in ranges)


def _ids(entry: IdMapEntry) -> str:
    return str(entry.outside) if entry.count == 1 else f"{entry.outside}-{entry.outside + entry.count - 1}"


def volatile_faults(rules: Rules, subject: str, sent: Entry, known: Entry) -> list[str]:
    """A client may send back the `volatile.*` that it read, and set none; `known`: as they are."""
    if not rules.restricted or rules.value("containers.lowlevel") == "allow":
        return []
    return [
        f'Setting "{key}" on {subject} in project "{rules.project}" is forbidden (restricted.containers.lowlevel)'
        for key, value in sorted(sent.items())
        if key.startswith("volatile.") and key not in _HARMLESS_VOLATILE and known.get(key, "") != value
    ]


# --- devices ---------------------------------------------------------------------------------------------------------


def device_fault(rules: Rules, entry: Entry) -> str | None:
    """Why a restricted project may not have this device."""
    kind = entry.get("type", "")
    if kind in _ALLOWED_DEVICES:
        return None
    if kind in _FORBIDDEN_DEVICES:
        key = f"devices.{kind}"
        return None if rules.value(key) == "allow" else f"{_FORBIDDEN_DEVICES[kind]} (restricted.{key})"
    check = _CHECKS.get(kind)
    return f'devices of type "{kind}" are forbidden in restricted projects' if check is None else check(rules, entry)


def _disk_fault(rules: Rules, entry: Entry) -> str | None:
    pools = rules.listed("storage-pools.access")
    if entry.get("pool") and pools is not None and entry["pool"] not in pools:
        return f'Storage pool "{entry["pool"]}" is not allowed (restricted.storage-pools.access)'
    value = rules.value("devices.disk")
    if is_root(entry):
        return None
    if value == "block":
        return "Disk devices are forbidden (restricted.devices.disk)"
    if entry.get("pool"):
        return None
    if value == "managed":
        return "Attaching disks not backed by a pool is forbidden (restricted.devices.disk)"
    source = entry.get("source", "")
    if source.startswith("/") and disk_parent(rules, source) is None:
        return f'Disk source path "{source}" not allowed (restricted.devices.disk.paths)'
    return None


def disk_parent(rules: Rules, source: str) -> str | None:
    """The allowed directory that a path is below or is ("/" where every path is allowed); None: it may not be used."""
    listed = rules.listed("devices.disk.paths")
    if listed is None:
        return "/"
    if ".." in source.split("/"):
        return None
    plain = "/" + "/".join(part for part in source.split("/") if part not in ("", "."))
    fitting = [path.rstrip("/") for path in listed]
    return next((path or "/" for path in fitting if plain == path or plain.startswith(path + "/")), None)


def _nic_fault(rules: Rules, entry: Entry) -> str | None:
    value = rules.value("devices.nic")
    if value == "block":
        return "Network devices are forbidden (restricted.devices.nic)"
    network, parent = entry.get("network", ""), entry.get("parent", "")
    if value == "managed":
        if not network:
            return "Only managed network devices can be used (restricted.devices.nic)"
        routes = next((key for key in _NIC_ROUTES if entry.get(key)), None)
        if routes is not None:  # the host would send others' traffic there
            return f'"{routes}" is forbidden (restricted.devices.nic)'
    listed = rules.listed("networks.access")
    if listed is not None and (network or parent) and (network or parent) not in listed:
        return f'Network "{network or parent}" not allowed in project (restricted.networks.access)'
    return None


_CHECKS: dict[str, Callable[[Rules, Entry], str | None]] = {"disk": _disk_fault, "nic": _nic_fault}
