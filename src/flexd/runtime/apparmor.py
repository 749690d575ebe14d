# SPDX-License-Identifier: Apache-2.0
"""The AppArmor profile of a container (apparmor.d(5)); pure.

It holds what user namespaces and seccomp do not: a privileged root, whose ids are the host's, and any root before the
kernel's interfaces that know no namespaces. A container's own files are not its business.
"""

from collections.abc import Iterable, Iterator

from msgspec import Struct

# What each container has of its own below these; all else there is the host's.
_OWN_SYSCTLS = (
    "kernel/domainname",
    "kernel/hostname",
    "kernel/msg*/**",
    "kernel/msg*",
    "kernel/sem*/**",
    "kernel/sem*",
    "kernel/shm*/**",
    "kernel/shm*",
    "net/**",
)
_OWN_SYSFS = ("class/net/**", "devices/virtual/net/**", "fs/cgroup/**", "fs/bpf/**")
_SECURITY = "kernel/security/apparmor/**"

# File systems with state of the whole machine: systemd mounts them and is content, nothing there can be touched.
_CLOSED = {
    "binfmt_misc": "/proc/sys/fs/binfmt_misc/",
    "configfs": "/sys/kernel/config/",
    "debugfs": "/sys/kernel/debug/",
    "efivarfs": "/sys/firmware/efi/efivars/",
    "tracefs": "/sys/kernel/tracing/",
}
_FREE = ("fuse", "fuse.*", "hugetlbfs", "mqueue", "ramfs", "tmpfs")
_PLACED = {
    "cgroup": "/sys/fs/cgroup/{,**}",
    "cgroup2": "/sys/fs/cgroup/{,**}",
    "fusectl": "/sys/fs/fuse/connections/",
    "proc": "/proc/",
    "securityfs": "/sys/kernel/security/",
    "sysfs": "/sys/",
}
_PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable")
# What the kernel lets the root of a user namespace mount where it likes: all that it shows is that root's own, or
# nothing that root may write. systemd's sandboxes mount such below /run/systemd, chroots have their own.
_OWN = ("cgroup", "cgroup2", "devpts", "proc", "sysfs")
# Flags of a remount that only takes rights away, as systemd's sandboxing combines them.
_RESTRICTIONS = ("nosuid", "nodev", "noexec", "silent")  # the last is busybox's mark on every mount
_ACCESS_TIMES = ("", "noatime", "relatime", "strictatime")
# Where a mount may not be put or taken from by a privileged root: other views of the host's kernel.
_KERNEL_VIEWS = ("/proc", "/sys", "/dev/.lxc")


class Confinement(Struct, frozen=True):
    """`namespace`: of AppArmor's policies, for profiles that are loaded inside; empty where there is no stacking."""

    name: str
    namespace: str = ""
    nesting: bool = False
    unprivileged: bool = True
    newer: tuple[str, ...] = ()  # rules that this host's parser knows, of those that not every one does
    raw: str = ""


def render_profile(wanted: Confinement) -> str:
    """The text for apparmor_parser(8)."""
    lines = [
        "#include <tunables/global>",
        f'profile "{wanted.name}" flags=(attach_disconnected,mediate_deleted) {{',
        *(f"  {line}" for line in _rules(wanted)),
        *(f"  {line}".rstrip() for line in wanted.raw.split("\n") if wanted.raw),
        "}",
    ]
    return "".join(f"{line}\n" for line in lines)


def label(wanted: Confinement) -> str:
    """What `lxc.apparmor.profile` is: with a namespace, what is loaded inside is stacked on top of the profile."""
    return f"{wanted.name}//&:{wanted.namespace}:" if wanted.namespace else wanted.name


def _rules(wanted: Confinement) -> Iterator[str]:
    yield from ("capability,", "dbus,", "file,", "network,", "umount,", *wanted.newer)
    yield from ("signal (receive),", "signal peer=@{profile_name},")
    yield from ("ptrace (readby),", "ptrace (tracedby),", "ptrace peer=@{profile_name},")
    yield from ("unix (receive),", "unix peer=(label=@{profile_name}),")
    yield from _files(wanted)
    yield from _mounts(wanted)
    if wanted.nesting:
        yield from ("ptrace,", "signal,")
        yield from ("deny /dev/.lxc/proc/** rw,", "deny /dev/.lxc/sys/** rw,")
    if wanted.namespace:
        yield f'change_profile -> ":{wanted.namespace}:*",'
        yield f'change_profile -> ":{wanted.namespace}://*",'
    elif wanted.nesting:
        yield f'change_profile -> "{wanted.name}",'


def _files(wanted: Confinement) -> Iterator[str]:
    yield from (f"deny {path}{{,**}} rwklx," for path in _CLOSED.values())
    yield from ("deny /proc/kcore rwklx,", "deny /proc/sysrq-trigger rwklx,", "deny /proc/acpi/** rwklx,")
    yield from ("deny /proc/bus/** wklx,", "deny /proc/sys/fs/** wklx,")
    yield from all_but("/proc/sys/", _OWN_SYSCTLS, "wklx")
    own = (*_OWN_SYSFS, _SECURITY) if wanted.namespace else _OWN_SYSFS
    yield from all_but("/sys/", own, "wklx")


def _mounts(wanted: Confinement) -> Iterator[str]:
    yield from ("deny mount options=(ro,remount) -> /,", "deny mount options=(ro,remount,silent) -> /,")
    yield from (f"mount fstype={fstype}," for fstype in _FREE)
    yield from (f"mount fstype={fstype} -> {target}," for fstype, target in (_PLACED | _CLOSED).items())
    if wanted.nesting:
        # A nested container's root is pivoted into, and its /proc and /sys lie below it.
        yield from ("pivot_root,", "mount,")
        return
    for propagation in _PROPAGATIONS:
        yield f"mount options=(rw,{propagation}) -> {'**' if wanted.unprivileged else '/'},"
    if wanted.unprivileged:
        # Its root may mount over what is its own: the kernel itself keeps it from uncovering what is locked, and from
        # taking back a restriction that it did not make.
        yield "pivot_root,"
        yield from (f"mount fstype={fstype}," for fstype in _OWN)
        for kind in ("bind", "rbind", "move"):
            yield f"mount options=(rw,{kind}) /{{,**}} -> /{{,**}},"
        for access in ("ro", "rw"):
            yield from (f"mount options=({flags})," for flags in _remounts(access))
        yield from ("mount options=(ro,remount) /,", "mount options=(ro,remount) /**,")
        return
    yield from (
        "mount options=(rw,nosuid,nodev,noexec,remount) -> /sys/,",
        "mount options=(rw,nosuid,nodev,remount) -> /run/,",
    )
    for kind in ("bind", "rbind", "move"):
        yield from (f"mount options=(rw,{kind}) {path}," for path in elsewhere(_KERNEL_VIEWS))
    for flags in _remounts("ro"):
        yield from (f"mount options=({flags}) {path}," for path in elsewhere(_KERNEL_VIEWS))


def _remounts(access: str) -> Iterator[str]:
    """Every combination of flags of a bind that is changed, since AppArmor compares sets of flags for equality."""
    for times in _ACCESS_TIMES:
        for mask in range(1 << len(_RESTRICTIONS)):
            chosen = [name for number, name in enumerate(_RESTRICTIONS) if mask & 1 << number]
            yield ",".join((access, "remount", "bind", *chosen, *filter(None, [times])))


def all_but(root: str, allowed: Iterable[str], access: str) -> Iterator[str]:
    """Rules that deny all below a directory but these: AppArmor has no exceptions from a denial, so the patterns for
    the rest are spelled out, one character further each. A `*` in a name ends it, `/**` allows all below."""
    for pattern in _others(root, sorted(set(allowed))):
        yield f"deny {pattern} {access},"


def elsewhere(closed: Iterable[str]) -> list[str]:
    """Patterns for every path that is not one of these or below."""
    return list(_others("/", sorted(path.removeprefix("/") for path in closed)))


def _others(prefix: str, names: list[str]) -> Iterator[str]:
    """Patterns for what begins with `prefix` and goes on as none of the names."""
    if "*" in names or "*/**" in names:
        return
    further = [name for name in names if name not in ("", "/**")]
    first = sorted({name[0] for name in further} - {"/"})
    yield f"{prefix}{_none_of(first)}*{{,/**}}"
    below = [name[1:] for name in further if name[0] == "/"]
    if len(further) == len(names) and not below and not prefix.endswith("/"):
        yield f"{prefix}{{,/**}}"  # a name that is too short
    for letter in first:
        yield from _others(prefix + letter, [name[1:] for name in further if name[0] == letter])
    if below and "/**" not in names:
        yield from _others(prefix + "/", below)


def _none_of(letters: list[str]) -> str:
    return f"[^{''.join(letters)}/]" if letters else "[^/]"
