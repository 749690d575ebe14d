# SPDX-License-Identifier: Apache-2.0
"""Trees of real files without root: owners are recorded, not changed. Quotas in memory."""

import asyncio
import errno
import shutil
from pathlib import Path

from msgspec import Struct

from flexd.api.idmap import IdMap
from flexd.host.contract import FileUsage, HostError
from flexd.host.fake.mounts import FakeMounts
from flexd.host.fake.processes import FakeProcesses
from flexd.host.fake.recorder import Recorder
from flexd.host.files import LinuxFiles
from flexd.host.threads import Threads


class Shifted(Struct, frozen=True):
    path: Path
    old: IdMap
    new: IdMap


class FakeFiles:
    def __init__(self, recorder: Recorder, threads: Threads, processes: FakeProcesses, mounts: FakeMounts) -> None:
        self.shifted: list[Shifted] = []
        self.type = "ext4"
        self._recorder = recorder
        self._mounts = mounts
        self._threads = threads
        self._real = LinuxFiles(threads, processes)

    async def systemd_version(self, root: Path) -> int | None:
        self._recorder.note_reading("files.systemd_version")
        return await self._real.systemd_version(root)

    async def remove_tree(self, path: Path) -> None:
        self._recorder.note("files.remove_tree", path)
        mounts = self._mounts.at_or_below(path)
        if mounts:
            raise HostError(f"remove {path}: {mounts[-1].target} is mounted (unlink(2) EBUSY)", errno.EBUSY)
        await self._real.remove_tree(path)

    async def copy_tree(self, source: Path, target: Path) -> None:
        self._recorder.note("files.copy_tree", source, target)
        # A mount is a link here, and what it leads to is meant.
        mounted = self._mounts.at_or_below(source)
        await self._real.copy_tree(await self._threads.run(source.resolve) if mounted else source, target)

    async def copy_tree_from(self, source: Path, target: Path, *, spare: Path) -> None:
        self._recorder.note("files.copy_tree_from", source, target)
        await self._real.copy_tree(source, target)

    async def copy_attributes(self, source: Path, target: Path) -> None:
        """Not extended ones: some are the fake host's own."""
        self._recorder.note("files.copy_attributes", source, target)
        await self._threads.run(lambda: target.chmod(source.stat().st_mode & 0o7777))

    async def refresh_tree(self, source: Path, target: Path, *, by_content: bool = False) -> None:
        self._recorder.note("files.refresh_tree", source, target)
        await self._threads.run(_replace_content, source, target)

    async def shift_tree(self, path: Path, *, old: IdMap, new: IdMap) -> None:
        self._recorder.note("files.shift_tree", path)
        self.shifted.append(Shifted(path, old, new))

    async def disk_usage(self, path: Path) -> int:
        self._recorder.note_reading("files.disk_usage", path)
        return await self._real.disk_usage(path)

    async def filesystem(self, path: Path) -> FileUsage:
        self._recorder.note_reading("files.filesystem", path)
        return await self._real.filesystem(path)

    async def filesystem_type(self, path: Path) -> str:
        self._recorder.note_reading("files.filesystem_type", path)
        return self.type


def _replace_content(source: Path, target: Path) -> None:
    source, target = source.resolve(), target.resolve()
    for entry in list(target.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


class FakeQuotas:
    def __init__(self, recorder: Recorder, files: FakeFiles) -> None:
        self.fault: str | None = None
        self.projects: dict[int, Path] = {}
        self.limits: dict[int, int] = {}
        self._recorder = recorder
        self._files = files

    async def available(self, path: Path) -> str | None:
        self._recorder.note_reading("quotas.available", path)
        return self.fault

    async def assign(self, path: Path, project: int) -> None:
        self._recorder.note("quotas.assign", path, project)
        self.projects[project] = path

    async def set_limit(self, path: Path, project: int, limit_bytes: int) -> None:
        self._recorder.note("quotas.set_limit", path, project, limit_bytes)
        if limit_bytes:
            self.limits[project] = limit_bytes
        else:
            self.limits.pop(project, None)

    async def usage(self, path: Path, project: int) -> int:
        self._recorder.note_reading("quotas.usage", path, project)
        tree = self.projects.get(project)
        if tree is None:
            return 0
        # A project goes along when its tree is renamed; then `path`, which lies in it, is the new name.
        return await self._files.disk_usage(tree if await asyncio.to_thread(tree.exists) else path)
