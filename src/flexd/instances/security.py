# SPDX-License-Identifier: Apache-2.0
"""Keys that confine an instance or loosen that, with LXD's names; what they mean together; pure."""

import re
from collections.abc import Iterator, Mapping

import msgspec

from flexd.api.errors import BadRequest, Fault
from flexd.api.keys import Key
from flexd.api.units import is_true
from flexd.instances.raw_idmap import parse_raw_idmap
from flexd.runtime.contract import Supervision
from flexd.runtime.seccomp import Interception, SeccompRules, rules_fault

_SYSCTL = "linux.sysctl."
# Sysctls of which every container has its own; any other is the host's (namespaces(7), sysctl's own pages).
_NAMESPACED = (
    "fs.mqueue.",
    "kernel.domainname",
    "kernel.hostname",
    "kernel.msg",
    "kernel.sem",
    "kernel.shm",
    "net.",
    "user.",
)
_SYSCTL_NAME = re.compile(r"[a-z0-9_]+(?:\.[A-Za-z0-9_/*@-]+)+")
_FILE_SYSTEM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PROGRAM = re.compile(r"[A-Za-z0-9_/.][A-Za-z0-9_/.+-]*")
_MODULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
# The keys of before LXD 4.21, which 5.0 still takes.
_OLD_NAMES = {
    "security.syscalls.allow": "security.syscalls.whitelist",
    "security.syscalls.deny": "security.syscalls.blacklist",
    "security.syscalls.deny_compat": "security.syscalls.blacklist_compat",
    "security.syscalls.deny_default": "security.syscalls.blacklist_default",
}
# Keys of liblxc that are the daemon's: its log, how it finds what runs, links and root that it has made.
_FORBIDDEN_RAW = (
    "lxc.prlimit.",
    "lxc.log.",
    "lxc.logfile",
    "lxc.syslog",
    "lxc.ephemeral",
    "lxc.cgroup.dir",
    "lxc.rootfs.",
    "lxc.rootfs",
)
# Of networks a container's own addresses may be set; LXD draws the line here, too.
_ALLOWED_NETWORK_RAW = re.compile(r"lxc\.net\.\d+\.ipv[46]\.(address|gateway)|lxc\.net\.\d+\.ipv[46]")


def _idmap_fault(value: str) -> str | None:
    # An id is 32 bits and -1 (4294967295) means "none" to chown(2).
    return None if value.isdecimal() and int(value) < 2**32 - 1 else f'invalid value "{value}" (expected an id)'


def _raw_idmap_fault(value: str) -> str | None:
    try:
        parse_raw_idmap(value)
    except BadRequest as error:
        return str(error)
    return None


def raw_lxc_fault(value: str) -> str | None:
    """What is wrong with lines for liblxc's configuration."""
    if "\0" in value:
        return "must not contain NUL"
    for line in value.split("\n"):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, _ = (part.strip() for part in line.partition("="))
        key = key.lower()
        if not equals or not key:
            return f'invalid line "{line}" (expected KEY = VALUE)'
        network = key.startswith(("lxc.net.", "lxc.network")) and _ALLOWED_NETWORK_RAW.fullmatch(key) is None
        if key.startswith(_FORBIDDEN_RAW) or network:
            return f"{key} is not allowed here: the daemon sets it"
    return None


def _modules_fault(value: str) -> str | None:
    for name in modules({"linux.kernel_modules": value}):
        if _MODULE.fullmatch(name) is None:
            return f'"{name}" is not the name of a kernel module'
    return None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _file_systems_fault(value: str) -> str | None:
    wrong = [name for name in _names(value) if _FILE_SYSTEM.fullmatch(name) is None]
    return f'"{wrong[0]}" is not the name of a file system' if wrong else None


def _fuse_fault(value: str) -> str | None:
    for entry in _names(value):
        fstype, equals, program = (part.strip() for part in entry.partition("="))
        if not equals or _FILE_SYSTEM.fullmatch(fstype) is None or _PROGRAM.fullmatch(program) is None:
            return f'"{entry}" is not of the form filesystem=fuse-binary'
    return None


_RULES_HELP = "one a line, as liblxc reads them: `mkdir errno 1`"

_INTERCEPT = "security.syscalls.intercept."
# The keys that switch interception on, by the call that they are about.
_INTERCEPTIONS: dict[str, Interception] = {
    _INTERCEPT + name: name for name in ("bpf", "mknod", "mount", "sched_setscheduler", "setxattr", "sysinfo")
}

LIVE = ("linux.kernel_modules", "raw.apparmor", "security.devlxd", "security.nesting")
"""What an edit brings to a container that runs, as in LXD. The mounts of nesting come with its next start."""

KEYS = (
    Key("linux.kernel_modules", check=_modules_fault, description="Modules that the host loads first"),
    Key(_SYSCTL + "*", live=False, description="Sysctls of its namespaces: linux.sysctl.net.ipv4.ip_forward"),
    Key("raw.apparmor", kind="blob", description="Rules added to the generated AppArmor profile"),
    Key("raw.idmap", kind="blob", check=_raw_idmap_fault, live=False, description="`both HOST OWN`, ids or ranges"),
    Key("raw.lxc", kind="blob", check=raw_lxc_fault, live=False, description="Lines added to liblxc's configuration"),
    Key("raw.seccomp", kind="blob", live=False, description="A whole seccomp policy, in place of the generated one"),
    Key("security.devlxd", kind="bool", default="true", description="The guest API, /dev/lxd/sock"),
    Key("security.devlxd.images", kind="bool", default="false", description="Public images through the guest API"),
    Key("security.idmap.base", check=_idmap_fault, live=False, description="First host id of an isolated map"),
    Key("security.idmap.isolated", kind="bool", default="false", live=False, description="A map shared with nobody"),
    Key("security.idmap.size", check=_idmap_fault, live=False, description="Number of ids in an isolated map"),
    Key("security.nesting", kind="bool", default="false", description="Containers inside the container"),
    Key("security.privileged", kind="bool", default="false", live=False, description="Run without an id map"),
    Key("security.protection.delete", kind="bool", default="false", description="Refuse deletion"),
    Key(
        "security.protection.shift",
        kind="bool",
        default="false",
        description="Refuse starts that would change owners on disk",
    ),
    Key("security.syscalls.allow", check=rules_fault, live=False, description=f"Only these calls, {_RULES_HELP}"),
    Key("security.syscalls.blacklist", check=rules_fault, live=False, description="Old name of deny"),
    Key(
        "security.syscalls.blacklist_compat",
        kind="bool",
        default="false",
        live=False,
        description="Old name of deny_compat",
    ),
    Key(
        "security.syscalls.blacklist_default",
        kind="bool",
        default="true",
        live=False,
        description="Old name of deny_default",
    ),
    Key("security.syscalls.deny", check=rules_fault, live=False, description=f"Calls denied, too, {_RULES_HELP}"),
    Key(
        "security.syscalls.deny_compat",
        kind="bool",
        default="false",
        live=False,
        description="Deny the system calls of 32-bit programs (x86_64 only)",
    ),
    Key(
        "security.syscalls.deny_default",
        kind="bool",
        default="true",
        live=False,
        description="Deny what reaches the host's kernel (module loading, kexec, file handles)",
    ),
    Key(
        "security.syscalls.intercept.bpf",
        kind="bool",
        default="false",
        live=False,
        description="Act on bpf(2) as bpf.devices says",
    ),
    Key(
        "security.syscalls.intercept.bpf.devices",
        kind="bool",
        default="false",
        description="Its root may load programs that limit the devices of its own cgroups (cgroup v2)",
    ),
    Key(
        "security.syscalls.intercept.mknod",
        kind="bool",
        default="false",
        live=False,
        description="Its root may make the nodes of null, zero, full, random, urandom, tty and console",
    ),
    Key(
        "security.syscalls.intercept.mount",
        kind="bool",
        default="false",
        live=False,
        description="Its root may mount the file systems of mount.allowed and mount.fuse",
    ),
    Key(
        "security.syscalls.intercept.mount.allowed",
        check=_file_systems_fault,
        description="File systems that the host mounts for it, comma-separated: the kernel then reads its data",
    ),
    Key(
        "security.syscalls.intercept.mount.fuse",
        check=_fuse_fault,
        description="File systems that a FUSE program of its own mounts: `ext4=fuse2fs`",
    ),
    Key(
        "security.syscalls.intercept.mount.shift",
        kind="bool",
        default="false",
        description="Ids on what the host mounts for it are its own",
    ),
    Key(
        "security.syscalls.intercept.sched_setscheduler",
        kind="bool",
        default="false",
        live=False,
        description="Its root may give its processes real-time priority",
    ),
    Key(
        "security.syscalls.intercept.setxattr",
        kind="bool",
        default="false",
        live=False,
        description="Its root may mark directories as opaque (trusted.overlay.opaque)",
    ),
    Key(
        "security.syscalls.intercept.sysinfo",
        kind="bool",
        default="false",
        live=False,
        description="sysinfo(2) tells its own memory, processes and uptime",
    ),
    Key("security.syscalls.whitelist", check=rules_fault, live=False, description="Old name of allow"),
)


def security_faults(config: Mapping[str, str]) -> list[Fault]:
    """Keys that contradict each other, and sysctls that are the host's."""
    return [*_syscall_faults(config), *_sysctl_faults(config), *_mount_faults(config)]


def _mount_faults(config: Mapping[str, str]) -> Iterator[Fault]:
    supervision = _mount_supervision(config)
    for fstype in sorted(supervision.mount_allowed & supervision.mount_fuse.keys()):
        yield Fault(
            f"config.{_INTERCEPT}mount.fuse",
            f"Filesystem {fstype} cannot appear in mount.allowed, too: it is one or other",
        )


def _syscall_faults(config: Mapping[str, str]) -> Iterator[Fault]:
    for new, old in _OLD_NAMES.items():
        if config.get(new) and config.get(old):
            yield Fault(f"config.{old}", f"is the old name of {new}: only one of them can be set")
    allow = [key for key in _named("security.syscalls.allow") if config.get(key)]
    deny = [key for key in _named("security.syscalls.deny") if config.get(key)]
    for key in ("security.syscalls.deny_default", "security.syscalls.deny_compat"):
        deny += [name for name in _named(key) if is_true(config.get(name))]
    if config.get("raw.seccomp"):
        for key in (*allow, *deny):
            yield Fault(f"config.{key}", "contradicts raw.seccomp, which is the whole policy")
    elif allow:
        for key in deny:
            yield Fault(f"config.{key}", f"contradicts {allow[0]}: what is not allowed is denied")


def _named(key: str) -> tuple[str, str]:
    return key, _OLD_NAMES[key]


def _sysctl_faults(config: Mapping[str, str]) -> Iterator[Fault]:
    for key, value in config.items():
        if not key.startswith(_SYSCTL):
            continue
        name = key.removeprefix(_SYSCTL)
        if _SYSCTL_NAME.fullmatch(name) is None:
            yield Fault(f"config.{key}", f'"{name}" is not the name of a sysctl')
        elif not name.startswith(_NAMESPACED):
            yield Fault(f"config.{key}", "is the host's, not the container's: no namespace has one of its own")
        elif "\n" in value or "\0" in value:
            yield Fault(f"config.{key}", "must not contain a line break")


def _either(config: Mapping[str, str], key: str) -> str:
    return config.get(key) or config.get(_OLD_NAMES[key], "")


def seccomp_rules(config: Mapping[str, str], *, migratable: bool = False) -> SeccompRules:
    """What the keys of an expanded configuration ask for."""
    default = _either(config, "security.syscalls.deny_default")
    return SeccompRules(
        allow=_either(config, "security.syscalls.allow"),
        deny=_either(config, "security.syscalls.deny"),
        deny_default=not default or is_true(default),
        raw=config.get("raw.seccomp", ""),
        intercept=interceptions(config),
        migratable=migratable,
    )


def interceptions(config: Mapping[str, str]) -> frozenset[Interception]:
    """The calls to act on; none for a privileged instance, whose root may do all that they do."""
    if is_true(config.get("security.privileged")) or config.get("raw.seccomp"):
        return frozenset()
    return frozenset(name for key, name in _INTERCEPTIONS.items() if is_true(config.get(key)))


def supervision(config: Mapping[str, str]) -> Supervision:
    """How to act on them, as it is now."""
    return msgspec.structs.replace(_mount_supervision(config), calls=interceptions(config))


def _mount_supervision(config: Mapping[str, str]) -> Supervision:
    entries = (entry.partition("=") for entry in _names(config.get(_INTERCEPT + "mount.fuse", "")))
    return Supervision(
        mount_allowed=frozenset(_names(config.get(_INTERCEPT + "mount.allowed", ""))),
        mount_fuse={fstype.strip(): program.strip() for fstype, _, program in entries},
        mount_shift=is_true(config.get(_INTERCEPT + "mount.shift")),
        bpf_devices=is_true(config.get(_INTERCEPT + "bpf.devices")),
    )


def denies_compat(config: Mapping[str, str]) -> bool:
    """`security.syscalls.deny_compat`."""
    return is_true(_either(config, "security.syscalls.deny_compat"))


def has_guest_api(config: Mapping[str, str]) -> bool:
    """`security.devlxd`, which is on by default."""
    return is_true(config.get("security.devlxd") or "true")


def sysctls(config: Mapping[str, str]) -> dict[str, str]:
    """The `linux.sysctl.*` keys, without that prefix."""
    return {key.removeprefix(_SYSCTL): value for key, value in config.items() if key.startswith(_SYSCTL) and value}


def modules(config: Mapping[str, str]) -> list[str]:
    """The names in `linux.kernel_modules`."""
    return [name.strip() for name in config.get("linux.kernel_modules", "").split(",") if name.strip()]
