# SPDX-License-Identifier: Apache-2.0
"""From a `ContainerSpec` to liblxc's configuration file (lxc.container.conf(5)); pure.

The order matters: liblxc applies mounts in the order given, and later single-valued keys win, so `raw` is last.
"""

import re
import shlex
from collections.abc import Iterator

from msgspec import Struct

from flexd.api.errors import Fault, raise_faults
from flexd.runtime.contract import ContainerSpec, MountSpec
from flexd.runtime.paths import ContainerPaths

Line = tuple[str, str]

# What LXD shows of the host's kernel file systems. A container may not mount these itself; where it finds a mount
# point it is content, and systemd's own mount units for them do not fail.
KERNEL_DIRECTORIES = (
    "/proc/sys/fs/binfmt_misc",
    "/sys/firmware/efi/efivars",
    "/sys/fs/fuse/connections",
    "/sys/fs/pstore",
    "/sys/kernel/config",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
)
# /dev is a tmpfs that liblxc fills with null, zero, full, random, urandom, tty, pts, ptmx and console
# (`lxc.autodev`). These two are safe to share, since opening them needs no capability in the initial namespace.
_DEVICES = ("/dev/fuse", "/dev/net/tun")

# For a container whose state is to be saved. systemd's own pressure triggers do not survive that (PID 1 would spin),
# credentials are kept on a ramfs, which has no image. The variables are PID 1's only: it starts services without them.
UNITS = "dev/.flexd-units"
_MIGRATABLE = (("MEMORY_PRESSURE_WATCH", "/dev/null"), ("SYSTEMD_UNIT_PATH", f"/{UNITS}:"))
_GUEST_API_OPTIONS = ("bind", "ro", "nosuid", "nodev", "noexec", "create=dir")

# Files that tell about the whole machine, and what lxcfs(1) shows instead.
LXCFS_FILES = (
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/slabinfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "sys/devices/system/cpu",
)

# A privileged container's root is the host's: without these it can't set the clock, load modules, reach I/O ports or
# change the LSM's policy. An unprivileged one holds capabilities over its own namespaces only, so it keeps them.
_PRIVILEGED_DROPS = "sys_time sys_module sys_rawio mac_admin mac_override"

# Devices that a privileged container may use (an unprivileged one can't make device nodes at all): make any node, use
# null, zero, full, random, urandom, tty, console, ptmx, pts, fuse, tun. Numbers: admin-guide/devices.txt.
_DEVICE_RULES = (
    "b *:* m",
    "c *:* m",
    "c 136:* rwm",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 10:229 rwm",
    "c 10:200 rwm",
)

# What becomes PID 1 of an application container, from the host; it is static, so any image can run it.
APPLICATION_INIT = "/dev/.flexd/init"
APPLICATION_INITS = ("tini-static", "catatonit")  # the first one here that is installed; both take `-- COMMAND`
# What a system's init would mount, and programs expect.
_APPLICATION_MOUNTS = (
    MountSpec("tmpfs", "dev/shm", "tmpfs", ("rw", "nosuid", "nodev", "noexec", "mode=1777", "create=dir")),
    MountSpec("mqueue", "dev/mqueue", "mqueue", ("rw", "nosuid", "nodev", "noexec", "create=dir", "optional")),
)

# One pts per terminal session; LXD's number.
_PTYS = 1024
# The console log is kept up to this size and once more in console.log.1; LXD's ring buffer is as large.
CONSOLE_LOG_BYTES = 128 * 1024

# A comment, to liblxc.
NATIVE_ONLY: Line = ("# flexd.native_only", "1")

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,200})")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.*-]*")
_SYSCTL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./*-]*")
_ENVIRONMENT_NAME = re.compile(r"[^=\s]+")


class HostFacts(Struct, frozen=True):
    """What rendering must know of the machine. `lxcfs` is where lxcfs is mounted, "" if it is not."""

    unified_cgroup: bool = False  # controllers are on cgroup v2, so limits are `lxc.cgroup2.*`
    apparmor: bool = False
    lxcfs: str = ""
    nested: bool = False  # in a user namespace, where cgroups limit no devices
    seccomp_proxy: str = ""  # the socket for supervised containers
    application_init: str = ""  # the program on this host, "" if there is none
    kernel_directories: tuple[str, ...] = ()  # those of KERNEL_DIRECTORIES that this kernel has


def render(spec: ContainerSpec, paths: ContainerPaths, facts: HostFacts) -> str:
    """The text of the file; `InvalidInput` with every value that cannot stand on one line or names no such thing."""
    raise_faults(_faults(spec))
    lines = [
        *_identity(spec),
        *_logging(paths),
        *_cgroups(spec, paths, facts),
        *_namespaces(spec),
        *_security(spec, facts),
        *_file_systems(spec, paths, facts),
        *_network(spec),
        *_init(spec),
    ]
    text = "".join(f"{key} = {value}\n" for key, value in lines)
    raise_faults(Fault(key, "must not contain a line break or NUL") for key, value in lines if _breaks_line(value))
    return text + _raw(spec)


def _identity(spec: ContainerSpec) -> Iterator[Line]:
    yield "lxc.uts.name", spec.hostname or spec.name
    yield "lxc.arch", spec.architecture
    # "dir:" spares liblxc guessing the kind of storage; the daemon mounted it already.
    yield "lxc.rootfs.path", f"dir:{spec.rootfs}"


def _logging(paths: ContainerPaths) -> Iterator[Line]:
    yield "lxc.log.file", str(paths.log)
    yield "lxc.log.level", "warn"
    # A file instead of LXD's ring buffer: the monitor stays smaller, and the log outlives it.
    yield "lxc.console.logfile", str(paths.console_log)
    yield "lxc.console.size", str(CONSOLE_LOG_BYTES)
    yield "lxc.console.rotate", "1"
    # /dev/console only, as LXD; /dev/ttyN would start a getty each.
    yield "lxc.tty.max", "0"
    yield "lxc.pty.max", str(_PTYS)
    yield "lxc.hook.version", "1"
    yield "lxc.hook.post-stop", _stop_hook(paths)


def _stop_hook(paths: ContainerPaths) -> str:
    """Say why init ended. A failing post-stop hook makes liblxc end instead of rebooting, which the daemon does itself:
    it may have configuration to apply, and a new pid to know. Builtins only: the monitor's PATH may be empty."""
    script = 'printf %s "$LXC_TARGET" >"$0"; test "$LXC_TARGET" != reboot'
    return f"/bin/sh -c {shlex.quote(script)} {shlex.quote(str(paths.target))}"


def _cgroups(spec: ContainerSpec, paths: ContainerPaths, facts: HostFacts) -> Iterator[Line]:
    yield "lxc.cgroup.dir.monitor", paths.monitor_group
    yield "lxc.cgroup.dir.monitor.pivot", paths.pivot_group
    yield "lxc.cgroup.dir.container", paths.payload_group
    prefix = "lxc.cgroup2" if facts.unified_cgroup else "lxc.cgroup"
    if (not spec.idmap or spec.limit_devices) and not facts.nested:
        yield f"{prefix}.devices.deny", "a"
        for rule in _DEVICE_RULES:
            yield f"{prefix}.devices.allow", rule
    for key, value in spec.cgroup:
        yield f"{prefix}.{key}", value


def _namespaces(spec: ContainerSpec) -> Iterator[Line]:
    for entry in spec.idmap.entries:
        for kind in ("u", "g") if entry.kind == "b" else (entry.kind,):
            yield "lxc.idmap", f"{kind} {entry.inside} {entry.outside} {entry.count}"
    for name, value in sorted(spec.sysctls.items()):
        yield f"lxc.sysctl.{name}", value
    for name, value in sorted(spec.rlimits.items()):
        yield f"lxc.prlimit.{name}", value


def _security(spec: ContainerSpec, facts: HostFacts) -> Iterator[Line]:
    if not spec.idmap:
        yield "lxc.cap.drop", _PRIVILEGED_DROPS
    yield "lxc.apparmor.profile", _apparmor_profile(spec, facts)
    if facts.apparmor:
        # Kernels without AppArmor's mount mediation (not upstream) can still enforce the rest.
        yield "lxc.apparmor.allow_incomplete", "1"
    if spec.seccomp_profile:
        yield "lxc.seccomp.profile", spec.seccomp_profile
        # Also where the daemon itself is confined, in a container: filters add up, the kernel asks each.
        yield "lxc.seccomp.allow_nesting", "1"
    if spec.native_only:
        # For `exec`: the filter itself is loaded before liblxc starts, and its files have no word for it.
        yield NATIVE_ONLY
    if spec.supervised:
        yield "lxc.seccomp.notify.proxy", f"unix:{facts.seccomp_proxy}"
        yield "lxc.seccomp.notify.cookie", spec.name


def _apparmor_profile(spec: ContainerSpec, facts: HostFacts) -> str:
    if not facts.apparmor:
        return "unconfined"
    if spec.apparmor_profile:
        return spec.apparmor_profile
    # A privileged root is only held by the LSM; liblxc's package loads this profile. Ids confine the others.
    return "unconfined" if spec.idmap else "lxc-container-default-cgns"


def _file_systems(spec: ContainerSpec, paths: ContainerPaths, facts: HostFacts) -> Iterator[Line]:
    # Unprivileged: what the kernel lets mapped ids write there is theirs to write (LXD does the same), and a full /proc
    # lets containers and systemd's sandboxes be nested. Privileged: sysrq, sysctls and /sys are kept read-only.
    # No cgroup: with a cgroup namespace the container's init mounts the hierarchy that it wants.
    yield "lxc.mount.auto", "proc:rw sys:rw" if spec.idmap else "proc:mixed sys:mixed"
    yield "lxc.autodev", "1"
    for path in _DEVICES:
        yield _mount(MountSpec(path, path[1:], options=("bind", "create=file", "optional")))
    # An unprivileged root may not write there anyway; a privileged one would be the host's.
    binding = ("rbind", "optional") if spec.idmap else ("rbind", "ro", "optional")
    for path in facts.kernel_directories:
        yield _mount(MountSpec(path, path[1:], options=binding))
    if spec.nesting:
        # A full, unmasked proc and sysfs somewhere is the kernel's condition for mounting others in nested containers.
        yield _mount(MountSpec("proc", "dev/.lxc/proc", "proc", ("create=dir", "optional")))
        yield _mount(MountSpec("sys", "dev/.lxc/sys", "sysfs", ("create=dir", "optional")))
    if spec.lxcfs and facts.lxcfs:
        for file in LXCFS_FILES:
            kind = "dir" if file.startswith("sys/") else "file"
            yield _mount(MountSpec(f"{facts.lxcfs}/{file}", file, options=("bind", f"create={kind}", "optional")))
    for mount in guest_api_mounts(spec.guest_api):
        yield _mount(mount)
    if spec.migratable:
        yield _mount(MountSpec(str(paths.units), UNITS, options=_GUEST_API_OPTIONS))
    if spec.application is not None:
        init = MountSpec(facts.application_init, APPLICATION_INIT[1:], options=("bind", "ro", "create=file"))
        for mount in (init, *_APPLICATION_MOUNTS):
            yield _mount(mount)
    for mount in spec.mounts:
        yield _mount(mount)


def guest_api_mounts(directory: str) -> list[MountSpec]:
    """Read-only, also for a privileged root, who could otherwise put a socket of his own before everybody's."""
    targets = ("dev/lxd", "dev/incus") if directory else ()
    return [MountSpec(directory, target, options=_GUEST_API_OPTIONS) for target in targets]


def _mount(mount: MountSpec) -> Line:
    fields = (_escaped(mount.source), _escaped(mount.target), mount.fstype, ",".join(mount.options) or "defaults")
    return "lxc.mount.entry", " ".join((*fields, "0", "0"))


def _escaped(path: str) -> str:
    """A field of fstab(5); liblxc reads entries with getmntent(3), which undoes this."""
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")


def _network(spec: ContainerSpec) -> Iterator[Line]:
    if not spec.nics:
        # Without any, liblxc would leave the container in the host's network namespace.
        yield "lxc.net.0.type", "empty"
    for number, nic in enumerate(spec.nics):
        yield f"lxc.net.{number}.type", "phys"
        yield f"lxc.net.{number}.link", nic.link
        yield f"lxc.net.{number}.name", nic.name
        yield f"lxc.net.{number}.flags", "up"
        if nic.hwaddr:
            yield f"lxc.net.{number}.hwaddr", nic.hwaddr
        if nic.mtu:
            yield f"lxc.net.{number}.mtu", str(nic.mtu)
        for family in nic.on_link:
            yield f"lxc.net.{number}.{family}.gateway", "dev"
        for key, values in (("address", nic.addresses), ("gateway", nic.gateways)):
            for value in values:
                yield f"lxc.net.{number}.{'ipv6' if ':' in value else 'ipv4'}.{key}", value


def _init(spec: ContainerSpec) -> Iterator[Line]:
    variables = (dict(_MIGRATABLE) if spec.migratable else {}) | spec.environment
    for name, value in sorted(variables.items()):
        yield "lxc.environment", f"{name}={value}"
    if spec.init:
        yield "lxc.init.cmd", " ".join(spec.init)
    if spec.application is not None:
        # The command is not here but among lxc-start's arguments: liblxc would split it at white space.
        yield "lxc.init.cwd", spec.application.cwd
        yield "lxc.init.uid", str(spec.application.uid)
        yield "lxc.init.gid", str(spec.application.gid)
        if spec.application.groups:
            yield "lxc.init.groups", ",".join(map(str, spec.application.groups))
    if spec.stop_signal:
        yield "lxc.signal.halt", spec.stop_signal


def _raw(spec: ContainerSpec) -> str:
    """`raw.lxc`, the user's own lines: line breaks are its point, so only NUL is refused."""
    return spec.raw + "\n" if spec.raw and not spec.raw.endswith("\n") else spec.raw


def _breaks_line(value: str) -> bool:
    return any(character in value for character in "\n\r\0")


def _faults(spec: ContainerSpec) -> Iterator[Fault]:
    if not _NAME.fullmatch(spec.name):
        yield Fault("name", f"{spec.name!r} is not a runtime name")
    if "\0" in spec.raw:
        yield Fault("raw.lxc", "must not contain NUL")
    for key, _ in spec.cgroup:
        if not _KEY.fullmatch(key):
            yield Fault("cgroup", f"{key!r} is not the name of a cgroup file")
    for name in spec.sysctls:
        if not _SYSCTL.fullmatch(name):
            yield Fault("linux.sysctl", f"{name!r} is not the name of a sysctl")
    for name in spec.environment:
        if not _ENVIRONMENT_NAME.fullmatch(name):
            yield Fault("environment", f"{name!r} is not the name of a variable")
    for name in spec.rlimits:
        if not _KEY.fullmatch(name):
            yield Fault("limits.kernel", f"{name!r} is not the name of a limit")
    for argument in spec.init:
        # liblxc splits at white space and knows no quoting.
        if not argument or any(character.isspace() for character in argument):
            yield Fault("init", f"{argument!r} is empty or contains white space")
    yield from _application_faults(spec)
    yield from _mount_faults(spec)


def init_argv(spec: ContainerSpec) -> list[str]:
    """What lxc-start is to run in place of `lxc.init.cmd`; nothing for a system's own init."""
    return [APPLICATION_INIT, "--", *spec.application.command] if spec.application is not None else []


def _application_faults(spec: ContainerSpec) -> Iterator[Fault]:
    application = spec.application
    if application is None:
        return
    if not application.command or not application.command[0]:
        yield Fault("oci.entrypoint", "is empty: there is nothing to run")
    if any("\0" in argument for argument in application.command):
        yield Fault("oci.entrypoint", "must not contain NUL")
    if not application.cwd.startswith("/"):
        yield Fault("oci.cwd", f"{application.cwd!r} is not an absolute path")


def _mount_faults(spec: ContainerSpec) -> Iterator[Fault]:
    for number, mount in enumerate(spec.mounts):
        where = f"mounts.{number}"
        if mount.target.startswith("/") or ".." in mount.target.split("/") or not mount.target:
            yield Fault(where, f"target {mount.target!r} is not a path relative to the container's root")
        for word in (mount.fstype, *mount.options):
            if not word or any(character.isspace() for character in word):
                yield Fault(where, f"{word!r} is empty or contains white space")
