# SPDX-License-Identifier: Apache-2.0
"""What this machine is and can do: probes by trying, sysctls, subordinate ids."""

import asyncio
import os
import platform
import re
import shutil
import socket
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from flexd.api.idmap import IdMap
from flexd.host import resources, syscalls, system_calls
from flexd.host.contract import (
    Cgroups,
    CommandFailed,
    Completed,
    Features,
    HostError,
    Mounts,
    Processes,
    SubordinateRange,
)
from flexd.host.missing import missing
from flexd.host.mounts import left_behind
from flexd.host.threads import Threads

# How each program tells its version; an empty list: it does not, or takes long to (mmdebstrap is 80 ms of Perl).
_PROGRAMS: dict[str, list[str]] = {
    "lxc-start": ["--version"],
    "dnsmasq": ["--version"],
    "nft": ["--version"],
    "btrfs": ["--version"],
    "tar": ["--version"],
    "unsquashfs": ["-version"],
    "mksquashfs": ["-version"],
    "mmdebstrap": [],
    "rsync": ["--version"],
    "newuidmap": [],
}
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VERSION = re.compile(r"\d+(?:\.\d+)+[^\s,()]*")
# Every id is itself: the initial user namespace (user_namespaces(7)).
_INITIAL_MAP = ["0", "0", "4294967295"]
_PROBE_TIMEOUT_S = 5.0
# A module may wait for hardware and firmware.
_MODPROBE_TIMEOUT_S = 60.0
# A profile compiles in a tenth of a second, in several on slow machines.
_PARSER_TIMEOUT_S = 60.0
# Compile only. AppArmor 4 mediates these where the kernel can, so a profile without the rule denies them all; older
# parsers take them for syntax errors.
_PARSE = ["apparmor_parser", "--skip-kernel-load", "--skip-cache", "--quiet"]
_NEWER_RULES = ("userns,", "mqueue,", "io_uring,")
_POLICY_NAMESPACES = "sys/kernel/security/apparmor/policy/namespaces"

# LXD's "production setup" and what 100 containers with systemd were seen to need.
_WANTED_SYSCTLS: dict[str, int] = {
    "fs.aio-max-nr": 524288,
    "fs.inotify.max_queued_events": 1048576,
    "fs.inotify.max_user_instances": 1048576,
    "fs.inotify.max_user_watches": 1048576,
    "kernel.keys.maxbytes": 2000000,
    "kernel.keys.maxkeys": 2000,
    "net.ipv4.neigh.default.gc_thresh1": 2048,
    "net.ipv4.neigh.default.gc_thresh2": 4096,
    "net.ipv4.neigh.default.gc_thresh3": 8192,
    "net.ipv6.neigh.default.gc_thresh1": 2048,
    "net.ipv6.neigh.default.gc_thresh2": 4096,
    "net.ipv6.neigh.default.gc_thresh3": 8192,
    "vm.max_map_count": 262144,
}

# LXD's name of an architecture, by uname's, and the one that the same CPU also runs.
_ARCHITECTURES: dict[str, list[str]] = {
    "x86_64": ["x86_64", "i686"],
    "aarch64": ["aarch64", "armv7l"],
    "ppc64le": ["ppc64le"],
    "s390x": ["s390x"],
    "riscv64": ["riscv64"],
    "armv7l": ["armv7l"],
    "i686": ["i686"],
}
# What a distribution expects to have: nobody is 65534.
_ONE_SYSTEM = 65536
_DEFAULT_RANGE = SubordinateRange(base=1000000, count=1000000000)
# The id that a probe shifts by; any will do.
_PROBE_PREFIX = "flexd-probe-"
_PROBE_DIRECTORIES = ("lower", "upper", "work", "target")
_PROBE_MAP = IdMap.single(1000000, 65536)


class LinuxMachine:
    def __init__(
        self, threads: Threads, processes: Processes, mounts: Mounts, cgroups: Cgroups, *, root: Path = Path("/")
    ) -> None:
        """`root`: where /proc, /sys and /etc are looked for, another one in tests."""
        self._threads = threads
        self._processes = processes
        self._mounts = mounts
        self._cgroups = cgroups
        self._root = root
        self._known: Features | None = None
        self._probing = asyncio.Lock()

    async def features(self) -> Features:
        """What the kernel can is tried once; programs come and go with packages, only new ones tell their version."""
        async with self._probing:
            known = self._known or await self._probe()
            found = await self._threads.run(_installed)
            new = [name for name in found if name not in known.programs]
            versions = dict(zip(new, await asyncio.gather(*(self._version(name) for name in new)), strict=True))
            programs = {name: (known.programs | versions)[name] for name in found}
            self._known = msgspec.structs.replace(known, programs=programs)
            return self._known

    async def _probe(self) -> Features:
        features, cgroup, (idmapped, overlay) = await asyncio.gather(
            self._threads.run(_kernel_features, self._root), self._cgroups.layout(), self._mount_features()
        )
        features.cgroup = cgroup
        features.idmapped_mounts = idmapped
        features.overlay_idmapped_lower = overlay
        features.apparmor_rules = await self._known_rules() if features.apparmor else []
        return features

    async def missing(self) -> dict[str, str]:
        return missing(await self.features())

    async def subordinate_ids(self) -> SubordinateRange:
        return await self._threads.run(self._subordinate_ids)

    async def boot_id(self) -> str:
        path = self._root / "proc/sys/kernel/random/boot_id"
        return (await self._threads.run(path.read_text)).strip()

    async def memory_bytes(self) -> int:
        text = await self._threads.run((self._root / "proc/meminfo").read_text)
        # The first line: `MemTotal:       24576000 kB`
        return int(text.split()[1]) * 1024

    async def online_cpus(self) -> str:
        return (await self._threads.run((self._root / "sys/devices/system/cpu/online").read_text)).strip()

    async def raise_limits(self) -> dict[str, str]:
        return await self._threads.run(raise_sysctls, self._root / "proc/sys", _WANTED_SYSCTLS)

    async def sysctl(self, name: str, value: str) -> bool:
        return await self._threads.run(_write, sysctl_path(self._root / "proc/sys", name), value)

    async def load_module(self, name: str) -> None:
        # A module's name and its directory differ in the dash (modprobe(8)).
        if await self._threads.run((self._root / "sys/module" / name.replace("-", "_")).is_dir):
            return
        try:
            await self._processes.run(["modprobe", "-b", name], timeout_s=_MODPROBE_TIMEOUT_S)
        except CommandFailed as error:
            raise HostError(f"load kernel module {name}: {error}") from error

    async def load_profile(self, path: Path) -> None:
        await self._apparmor(path, "--replace", "load")

    async def unload_profile(self, path: Path) -> None:
        if await self._threads.run(path.exists):
            await self._apparmor(path, "--remove", "unload")

    async def _apparmor(self, path: Path, how: str, what: str) -> None:
        try:
            await self._processes.run(
                ["apparmor_parser", how, "--skip-cache", os.fspath(path)], timeout_s=_PARSER_TIMEOUT_S
            )
        except CommandFailed as error:
            if how == "--remove" and "doesn't exist" in error.stderr_tail:
                return
            raise HostError(f"{what} AppArmor profile {path}: {error}") from error

    async def _known_rules(self) -> list[str]:
        done = await asyncio.gather(
            *(
                self._processes.run(_PARSE, stdin=f"profile flexd-probe {{ {rule} }}".encode(), check=False)
                for rule in _NEWER_RULES
            ),
            return_exceptions=True,
        )
        return [
            rule
            for rule, result in zip(_NEWER_RULES, done, strict=True)
            if isinstance(result, Completed) and result.returncode == 0
        ]

    async def make_policy_namespace(self, name: str) -> None:
        await self._threads.run(_make_directory, self._root / _POLICY_NAMESPACES / name)

    async def remove_policy_namespace(self, name: str) -> None:
        await self._threads.run(_remove_directory, self._root / _POLICY_NAMESPACES / name)

    async def unknown_syscalls(self, names: Sequence[str]) -> list[str]:
        return await self._threads.run(system_calls.unknown, names)

    async def resources(self) -> dict[str, Any]:
        return await self._threads.run(resources.read, self._root)

    async def load_average(self) -> tuple[float, float, float]:
        return await self._threads.run(os.getloadavg)

    def _subordinate_ids(self) -> SubordinateRange:
        texts = [_text(self._root / "etc" / name) for name in ("subuid", "subgid")]
        wanted = common_range(*(root_ranges(text) for text in texts))
        maps = [_text(self._root / "proc/self" / name) for name in ("uid_map", "gid_map")]
        return within(wanted, *(first_ids(text) for text in maps))

    async def _version(self, program: str) -> str:
        arguments = _PROGRAMS[program]
        if not arguments:
            return ""
        try:
            done = await self._processes.run([program, *arguments], check=False, timeout_s=_PROBE_TIMEOUT_S)
        except CommandFailed:
            return ""
        return parse_version((done.stdout or done.stderr).decode(errors="replace"))

    async def _mount_features(self) -> tuple[bool, bool]:
        """Idmapped mounts, and overlays on them, tried where instances live: on the file system of /var."""
        place = await self._threads.run(_make_probe_directories, self._root / "var/tmp")
        lower, upper, work, target = (place / name for name in _PROBE_DIRECTORIES)
        try:
            idmapped = await self._works(target, self._mounts.idmapped_bind(lower, target, _PROBE_MAP))
            overlay = self._mounts.overlay(target, lower=lower, upper=upper, work=work, lower_idmap=_PROBE_MAP)
            return idmapped, await self._works(target, overlay)
        finally:
            await self._threads.run(shutil.rmtree, place, ignore_errors=True)

    async def _works(self, target: Path, attempt: Coroutine[Any, Any, None]) -> bool:
        try:
            await attempt
            await self._mounts.unmount(target)
        except HostError:
            return False
        return True


def _kernel_features(root: Path) -> Features:
    """Blocking; everything that needs no program and no mount."""
    uname = os.uname()
    release = platform.freedesktop_os_release() if root == Path("/") else {}
    return Features(
        kernel=uname.sysname,
        kernel_version=uname.release,
        kernel_architecture=uname.machine,
        os_name=release.get("NAME", ""),
        os_version=release.get("VERSION_ID", ""),
        architectures=_ARCHITECTURES.get(uname.machine, [uname.machine]),
        pidfd=_pidfd_works(),
        seccomp_listener=syscalls.seccomp_action_available(syscalls.SECCOMP_RET_USER_NOTIF),
        apparmor=_text(root / "sys/module/apparmor/parameters/enabled").strip() == "Y"
        and (root / "sys/kernel/security/apparmor").is_dir(),
        apparmor_stacking=_text(root / "sys/kernel/security/apparmor/features/domain/stack").strip() == "yes",
        unprivileged_user_namespaces=_user_namespaces_allowed(root / "proc/sys"),
        nested=_text(root / "proc/self/uid_map").split() != _INITIAL_MAP,
        network_namespace_id=_namespace_ids_work(),
    )


def _installed() -> list[str]:
    return [name for name in _PROGRAMS if shutil.which(name, path=_SEARCH_PATH)]


def _make_directory(path: Path) -> None:
    with syscalls.naming(f"make {path}", "mkdir"):
        path.mkdir(exist_ok=True)


def _remove_directory(path: Path) -> None:
    if path.exists():
        with syscalls.naming(f"remove {path}", "rmdir"):
            path.rmdir()


def _make_probe_directories(parent: Path) -> Path:
    for old in left_behind(parent, _PROBE_PREFIX):  # its daemon was killed while it probed
        # A bind of `lower` is on the same device, so os.path.ismount would not see it.
        with suppress(HostError):
            syscalls.unmount(old / "target", syscalls.MNT_DETACH)
        shutil.rmtree(old, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=f"{_PROBE_PREFIX}{os.getpid()}-", dir=parent))
    for name in _PROBE_DIRECTORIES:
        (place / name).mkdir()
    return place


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _pidfd_works() -> bool:
    try:
        os.close(syscalls.pidfd_open(os.getpid()))
    except HostError:
        return False
    return True


def _namespace_ids_work() -> bool:
    """Reading links of other network namespaces by id came with strict checking of requests (Linux 4.20)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as probe:
        try:
            probe.setsockopt(syscalls.SOL_NETLINK, syscalls.NETLINK_GET_STRICT_CHK, 1)
        except OSError:
            return False
    return True


def _user_namespaces_allowed(sysctls: Path) -> bool:
    # kernel.unprivileged_userns_clone is Debian's own and may be absent.
    switch = _text(sysctls / "kernel/unprivileged_userns_clone").strip()
    most = _text(sysctls / "user/max_user_namespaces").strip()
    return switch != "0" and most not in ("", "0")


def parse_version(text: str) -> str:
    """The first thing like a version in what a program prints: `5.0.2`, `v1.0.6` without the v."""
    match = _VERSION.search(text)
    return match[0] if match else ""


def root_ranges(text: str) -> list[tuple[int, int]]:
    """(base, count) of root's lines in `/etc/subuid` or `/etc/subgid`."""
    ranges = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in ("root", "0") and fields[1].isdigit() and fields[2].isdigit():
            ranges.append((int(fields[1]), int(fields[2])))
    return ranges


def common_range(users: list[tuple[int, int]], groups: list[tuple[int, int]]) -> SubordinateRange:
    """The largest range that root has both as users and as groups: maps are made for both alike."""
    shared = [
        SubordinateRange(base=max(user, group), count=min(user + users_count, group + groups_count) - max(user, group))
        for user, users_count in users
        for group, groups_count in groups
    ]
    best = max(shared, key=lambda each: each.count, default=_DEFAULT_RANGE)
    return best if best.count > 0 else _DEFAULT_RANGE


def first_ids(text: str) -> int:
    """How many ids from 0 on a `/proc/PID/uid_map` maps without a gap; all, if there is no such file."""
    count = 0
    for first, _, length in sorted(tuple(int(word) for word in line.split()) for line in text.splitlines()):
        if first != count:
            break
        count += length
    return count or 2**32


def within(wanted: SubordinateRange, users: int, groups: int) -> SubordinateRange:
    """The range, as far as this user namespace has these ids. One that is a container's of its own, with few ids, gives
    what is above those that itself needs."""
    last = min(users, groups)
    if wanted.base + wanted.count <= last:
        return wanted
    if wanted.base + _ONE_SYSTEM <= last:
        return SubordinateRange(wanted.base, last - wanted.base)
    return SubordinateRange(_ONE_SYSTEM, last - _ONE_SYSTEM) if last >= 2 * _ONE_SYSTEM else SubordinateRange(0, 0)


def sysctl_path(root: Path, name: str) -> Path:
    """`net.ipv4.conf.eth0/1.rp_filter`: a slash in a name stands for a dot (sysctl(8))."""
    return root / "/".join(part.replace("/", ".") for part in name.split("."))


def _write(path: Path, value: str) -> bool:
    try:
        path.write_text(value)
    except OSError:
        return False
    return True


def raise_sysctls(root: Path, wanted: Mapping[str, int]) -> dict[str, str]:
    """Blocking. What is higher already stays; what is not there or may not be set is left out."""
    changed = {}
    for name, value in wanted.items():
        path = sysctl_path(root, name)
        old = _text(path).strip()
        if old.isdigit() and int(old) < value and _write(path, str(value)):
            changed[name] = f"{old} -> {value}"
    return changed
