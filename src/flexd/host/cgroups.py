# SPDX-License-Identifier: Apache-2.0
"""Cgroups on v1, v2 and hybrid: where each controller is mounted, figures, files, removal."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from flexd.host import mountinfo, syscalls
from flexd.host.contract import CgroupLayout, CgroupStats, MountInfo
from flexd.host.threads import Threads

_MOUNTINFO = Path("/proc/self/mountinfo")
# What a v1 hierarchy's mount options hold beside its controllers (cgroups(7), kernel/cgroup/cgroup-v1.c).
_NOT_CONTROLLERS = frozenset(
    {"rw", "ro", "none", "all", "noprefix", "clone_children", "xattr", "cpuset_v2_mode", "favordynmods", "seclabel",
     "nosuid", "nodev", "noexec", "relatime", "noatime", "memory_recursiveprot", "nsdelegate"}
)  # fmt: skip
# v1 says "no limit" with the largest multiple of a page (9223372036854771712 where pages have 4 KiB).
_NO_LIMIT = 1 << 62
_FILE_BYTES = 4096
# What a cgroup's owner writes to (cgroups(7), "Cgroups delegation").
_OWNERS_FILES = frozenset({"cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"})

# field of CgroupStats -> file; `memory.memsw.*` counts memory and swap together.
_V1_FILES = {
    "memory": {
        "memory_usage_bytes": "memory.usage_in_bytes",
        "memory_peak_bytes": "memory.max_usage_in_bytes",
        "memory_limit_bytes": "memory.limit_in_bytes",
        "swap_usage_bytes": "memory.memsw.usage_in_bytes",
        "swap_peak_bytes": "memory.memsw.max_usage_in_bytes",
    },
    "cpuacct": {"cpu_usage_ns": "cpuacct.usage"},
    "pids": {"processes": "pids.current"},
}
_V2_FILES = {
    "memory": {
        "memory_usage_bytes": "memory.current",
        "memory_peak_bytes": "memory.peak",
        "memory_limit_bytes": "memory.max",
        "swap_usage_bytes": "memory.swap.current",
        "swap_peak_bytes": "memory.swap.peak",
    },
    "pids": {"processes": "pids.current"},
}


class LinuxCgroups:
    def __init__(self, threads: Threads, *, mount_table: Path = _MOUNTINFO) -> None:
        self._threads = threads
        self._mount_table = mount_table
        self._known: CgroupLayout | None = None

    async def layout(self) -> CgroupLayout:
        if self._known is None:
            self._known = await self._threads.run(read_layout, self._mount_table)
        return self._known

    async def stats(self, groups: Sequence[str]) -> list[CgroupStats]:
        layout = await self.layout()
        return await self._threads.run(read_stats, layout, groups)

    async def read(self, group: str, controller: str, file: str) -> str:
        path = self._file(await self.layout(), group, controller, file)
        with syscalls.naming(f"read {path}", "read"):
            return await self._threads.run(path.read_text)

    async def write(self, group: str, controller: str, file: str, value: str) -> None:
        path = self._file(await self.layout(), group, controller, file)
        with syscalls.naming(f"write {value!r} to {path}", "write"):
            await self._threads.run(_write, path, value)

    async def processes(self, group: str) -> list[int]:
        layout = await self.layout()
        return await self._threads.run(_processes, layout, group)

    async def remove(self, group: str) -> None:
        layout = await self.layout()
        for mount in hierarchies(layout):
            await self._threads.run(_remove, mount / group)

    async def delegate(self, group: str) -> None:
        for mount in hierarchies(await self.layout()):
            await self._threads.run(_delegate, mount / group)

    def _file(self, layout: CgroupLayout, group: str, controller: str, file: str) -> Path:
        mount = layout.controllers.get(controller)
        if mount is None:
            what = f'use {file} of cgroup "{group}"'
            raise syscalls.failure(what, "open", errno.ENOENT, f"this host has no cgroup controller {controller}")
        return mount / group.strip("/") / file


def read_layout(mount_table: Path) -> CgroupLayout:
    """Blocking."""
    unified, controllers = parse_mounts(mountinfo.parse(mount_table.read_bytes()))
    if unified is not None:
        try:
            names = (unified / "cgroup.controllers").read_text().split()
        except OSError:
            names = []
        # The files of the core (cgroup.procs, cpu.stat) are reached by the name "cgroup".
        controllers = dict.fromkeys(names, unified) | controllers | {"cgroup": unified}
    v1 = {path for path in controllers.values() if path != unified}
    mode = "v2" if not v1 else "v1" if unified is None else "hybrid"
    return CgroupLayout(mode, controllers, unified)


def parse_mounts(mounts: Sequence[MountInfo]) -> tuple[Path | None, dict[str, Path]]:
    """The v2 mount and the v1 controllers; a named hierarchy (`name=systemd`) goes by its name."""
    unified: Path | None = None
    controllers: dict[str, Path] = {}
    for mount in mounts:
        if mount.fstype == "cgroup2":
            unified = unified or mount.target
        elif mount.fstype == "cgroup":
            for option in mount.options.split(","):
                name = option.removeprefix("name=")
                if name not in _NOT_CONTROLLERS and not option.startswith("release_agent="):
                    controllers.setdefault(name, mount.target)
    return unified, controllers


def hierarchies(layout: CgroupLayout) -> list[Path]:
    """Every distinct mount point."""
    mounts = list(dict.fromkeys(layout.controllers.values()))
    if layout.unified is not None and layout.unified not in mounts:
        mounts.append(layout.unified)
    return mounts


def _number(path: str) -> int | None:
    """A file that holds a number; None where it is absent, says "max", or means no limit."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, _FILE_BYTES)
    except OSError:
        return None
    finally:
        os.close(fd)
    try:
        value = int(text)
    except ValueError:
        return None
    return value if value < _NO_LIMIT else None


def read_stats(layout: CgroupLayout, groups: Sequence[str]) -> list[CgroupStats]:
    """Blocking; plain strings and file descriptors, for it is called for all instances at once."""
    files = [
        (field, f"{mount}/", f"/{name}")
        for controller, fields in _files(layout)
        if (mount := layout.controllers.get(controller)) is not None
        for field, name in fields.items()
    ]
    rows = []
    for group in groups:
        row = CgroupStats(**{field: _number(mount + group + name) for field, mount, name in files})
        if layout.controllers.get("cpuacct") is None and layout.unified is not None:
            row.cpu_usage_ns = _cpu_usage(f"{layout.unified}/{group}/cpu.stat")
        rows.append(_without_memory_in_swap(row) if _is_v1(layout, "memory") else row)
    return rows


def _is_v1(layout: CgroupLayout, controller: str) -> bool:
    return layout.controllers.get(controller, layout.unified) != layout.unified


def _files(layout: CgroupLayout) -> list[tuple[str, dict[str, str]]]:
    return [
        (controller, (_V1_FILES if _is_v1(layout, controller) else _V2_FILES).get(controller, {}))
        for controller in ("memory", "cpuacct", "pids")
    ]


def _cpu_usage(path: str) -> int | None:
    try:
        text = Path(path).read_text()
    except OSError:
        return None
    return parse_cpu_stat(text)


def parse_cpu_stat(text: str) -> int | None:
    """Nanoseconds of `usage_usec` in v2's cpu.stat, which is there without the cpu controller too."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "usage_usec":
            return int(value) * 1000
    return None


def _without_memory_in_swap(row: CgroupStats) -> CgroupStats:
    """v1 counts swap together with memory. The peaks need not be of one moment, so theirs is a lower bound."""
    if row.swap_usage_bytes is not None:
        row.swap_usage_bytes = max(0, row.swap_usage_bytes - (row.memory_usage_bytes or 0))
    if row.swap_peak_bytes is not None:
        row.swap_peak_bytes = max(0, row.swap_peak_bytes - (row.memory_peak_bytes or 0))
    return row


def _write(path: Path, value: str) -> None:
    # No O_CREAT: a file that the controller does not have is ENOENT, as on cgroupfs itself, not EACCES.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _processes(layout: CgroupLayout, group: str) -> list[int]:
    """From the first hierarchy that has the cgroup, sub-cgroups included."""
    for mount in hierarchies(layout):
        top = mount / group
        if not top.is_dir():
            continue
        found: set[int] = set()
        for directory, _, _ in os.walk(top):
            try:
                found.update(int(word) for word in Path(directory, "cgroup.procs").read_text().split())
            except OSError:  # gone meanwhile, or threaded
                continue
        return sorted(found)
    return []


def _remove(top: Path) -> None:
    for directory, _, _ in os.walk(top, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise syscalls.failure(f"remove cgroup {directory}", "rmdir", error.errno or 0) from error


def _delegate(top: Path) -> None:
    for directory, _, files in os.walk(top):
        owner = os.stat(directory)
        for name in _OWNERS_FILES.intersection(files):
            path = os.path.join(directory, name)
            with syscalls.naming(f"give {path} to its owner", "chown"):
                os.chown(path, owner.st_uid, owner.st_gid)
                if directory == os.fspath(top):  # root keeps it; its group, which the container's root is in, may write
                    os.chmod(path, 0o664)
