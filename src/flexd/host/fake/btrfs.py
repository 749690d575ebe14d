# SPDX-License-Identifier: Apache-2.0
"""Btrfs in plain directories: a subvolume is one with a mark, a snapshot a copy of it."""

import asyncio
import os
import shutil
from pathlib import Path

from flexd.host.contract import BtrfsUsage
from flexd.host.fake.files import FakeFiles
from flexd.host.fake.recorder import Recorder

# An extended attribute, so that it goes along when the directory is renamed, copied or put back from a copy; its value
# is the limit.
_MARK = "user.flexd.subvolume"


class FakeBtrfs:
    def __init__(self, recorder: Recorder, files: FakeFiles) -> None:
        self.quotas = False
        self.fault: str | None = None
        self._recorder = recorder
        self._files = files

    async def available(self) -> str | None:
        self._recorder.note_reading("btrfs.available")
        return self.fault

    async def format(self, path: Path, *, label: str, force: bool = False) -> None:
        self._recorder.note("btrfs.format", path)
        await asyncio.to_thread(_make_directory_of, path)

    async def is_subvolume(self, path: Path) -> bool:
        self._recorder.note_reading("btrfs.is_subvolume", path)
        return await asyncio.to_thread(_is_subvolume, path)

    async def create_subvolume(self, path: Path) -> None:
        self._recorder.note("btrfs.create_subvolume", path)
        await asyncio.to_thread(_create, path)

    async def snapshot(self, source: Path, target: Path, *, readonly: bool = False) -> None:
        self._recorder.note("btrfs.snapshot", source, target)
        await asyncio.to_thread(_snapshot, source, target)

    async def set_readonly(self, path: Path, readonly: bool) -> None:
        self._recorder.note("btrfs.set_readonly", path, readonly)

    async def delete_subvolumes(self, path: Path) -> None:
        self._recorder.note("btrfs.delete_subvolumes", path)
        await asyncio.to_thread(_delete, path)

    async def enable_quotas(self, path: Path) -> None:
        self._recorder.note("btrfs.enable_quotas", path)
        self.quotas = True

    async def set_limit(self, path: Path, limit_bytes: int) -> None:
        self._recorder.note("btrfs.set_limit", path, limit_bytes)
        await asyncio.to_thread(_note_limit, path, limit_bytes)

    async def usage(self, path: Path) -> BtrfsUsage | None:
        self._recorder.note_reading("btrfs.usage", path)
        if not self.quotas:
            return None
        used = await self._files.disk_usage(path)
        return BtrfsUsage(referenced_bytes=used, exclusive_bytes=used)

    async def sync(self, path: Path) -> None:
        self._recorder.note("btrfs.sync", path)

    def limit(self, path: Path) -> int:
        """For tests: what the subvolume at a path is limited to."""
        return int(os.getxattr(path, _MARK))


def _is_subvolume(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and _MARK in os.listxattr(path)


def _note_limit(path: Path, limit_bytes: int) -> None:
    os.setxattr(path, _MARK, b"%d" % limit_bytes)


def _make_directory_of(path: Path) -> None:
    """A formatted file is a directory here, which `FakeMounts.mount_file` shows."""
    if path.is_file():
        path.unlink()
    path.mkdir(exist_ok=True)


def _create(path: Path) -> None:
    if not _is_subvolume(path):
        path.mkdir()
        _note_limit(path, 0)


def _snapshot(source: Path, target: Path) -> None:
    if not _is_subvolume(source):
        raise NotADirectoryError(f"{source} is no subvolume")
    shutil.copytree(source, target, symlinks=True)
    _note_limit(target, 0)


def _delete(path: Path) -> None:
    if _is_subvolume(path):
        shutil.rmtree(path)
        return
    for top, names, _ in os.walk(path, topdown=False):
        for name in names:
            if _is_subvolume(Path(top) / name):
                shutil.rmtree(Path(top) / name)
