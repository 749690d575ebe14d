# SPDX-License-Identifier: Apache-2.0
"""Cgroups in memory, on a v2 host unless a test says otherwise."""

import errno
from collections.abc import Sequence
from pathlib import Path

from flexd.host.contract import CgroupLayout, CgroupStats, HostError
from flexd.host.fake.recorder import Recorder

_ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cgroup", "cpu", "cpuset", "io", "memory", "pids")


class FakeCgroups:
    def __init__(self, recorder: Recorder) -> None:
        self.layout_value = CgroupLayout("v2", dict.fromkeys(_CONTROLLERS, _ROOT), _ROOT)
        self.rows: dict[str, CgroupStats] = {}
        self.members: dict[str, list[int]] = {}
        self.files: dict[tuple[str, str, str], str] = {}
        self._recorder = recorder

    def make(self, group: str, *, stats: CgroupStats | None = None, processes: Sequence[int] = ()) -> None:
        """For tests and the fake runtime: a cgroup comes into being."""
        self.rows[group] = stats or CgroupStats()
        self.members[group] = list(processes)

    def clear(self) -> None:
        for kept in (self.rows, self.members, self.files):
            kept.clear()

    async def layout(self) -> CgroupLayout:
        self._recorder.note_reading("cgroups.layout")
        return self.layout_value

    async def stats(self, groups: Sequence[str]) -> list[CgroupStats]:
        self._recorder.note_reading("cgroups.stats", *groups)
        return [self.rows.get(group, CgroupStats()) for group in groups]

    async def read(self, group: str, controller: str, file: str) -> str:
        self._recorder.note_reading("cgroups.read", group, controller, file)
        self._check(group, controller, file)
        return self.files.get((group, controller, file), "")

    async def write(self, group: str, controller: str, file: str, value: str) -> None:
        self._recorder.note("cgroups.write", group, controller, file, value)
        self._check(group, controller, file)
        self.files[group, controller, file] = value

    async def processes(self, group: str) -> list[int]:
        self._recorder.note_reading("cgroups.processes", group)
        return sorted(self.members.get(group, []))

    async def remove(self, group: str) -> None:
        self._recorder.note("cgroups.remove", group)
        below = [each for each in self.members if each == group or each.startswith(f"{group}/")]
        if any(self.members[each] for each in below):
            raise HostError(f"remove cgroup {_ROOT / group}: Device or resource busy (rmdir(2) EBUSY)", errno.EBUSY)
        for each in below:
            del self.rows[each], self.members[each]

    async def delegate(self, group: str) -> None:
        self._recorder.note("cgroups.delegate", group)

    def _check(self, group: str, controller: str, file: str) -> None:
        if controller not in self.layout_value.controllers:
            raise HostError(f'use {file} of cgroup "{group}": this host has no cgroup controller {controller}')
        if group not in self.rows:
            path = _ROOT / group / file
            raise HostError(f"open {path}: No such file or directory (open(2) ENOENT)", errno.ENOENT)
