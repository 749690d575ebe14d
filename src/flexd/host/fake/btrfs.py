# SPDX-License-Identifier: Apache-2.0
"""Btrfs in plain directories: a subvolume is one with a mark, a snapshot a copy of it."""

import asyncio
import errno
import os
import shutil
import tarfile
import tempfile
import uuid
from pathlib import Path

from flexd.host.contract import BtrfsUsage, CommandFailed, HostError
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

    async def subvolumes(self, path: Path) -> list[str]:
        self._recorder.note_reading("btrfs.subvolumes", path)
        return await asyncio.to_thread(_subvolumes, path)

    async def uuid(self, path: Path) -> str:
        self._recorder.note_reading("btrfs.uuid", path)
        inode = (await asyncio.to_thread(path.stat)).st_ino
        return str(uuid.UUID(int=inode))

    async def graft(self, source: Path, tree: Path, path: str) -> None:
        self._recorder.note("btrfs.graft", source, tree, path)
        await asyncio.to_thread(_graft, source, tree, path)

    async def send(self, path: Path, *, parent: Path | None = None, output: int) -> None:
        """Always whole: a stream is a tar archive here."""
        self._recorder.note("btrfs.send", path, parent)
        await asyncio.to_thread(_send, path, output)

    async def receive(self, directory: Path, *, input: int) -> Path:
        self._recorder.note("btrfs.receive", directory)
        return await asyncio.to_thread(_receive, directory, input)

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


def _subvolumes(path: Path) -> list[str]:
    found = [Path(top) / name for top, names, _ in os.walk(path) for name in names]
    return sorted(str(each.relative_to(path)) for each in found if _is_subvolume(each))


def _graft(source: Path, tree: Path, path: str) -> None:
    target = tree / path.strip("/")
    if tree.resolve() not in target.parent.resolve().parents and target.parent.resolve() != tree.resolve():
        raise HostError(f"open {path} in {tree}: Invalid cross-device link (openat2(2) EXDEV)", errno.EXDEV)
    if target.is_dir():
        target.rmdir()
    _snapshot(source, target)


def _send(path: Path, output: int) -> None:
    inner = [str(path / child) for child in _subvolumes(path)]

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if any(f"{path.parent}/{member.name}" == name for name in inner) else member

    with open(output, "wb", closefd=False) as file, tarfile.open(fileobj=file, mode="w|") as tar:
        tar.add(path, path.name, filter=plain)


def _receive(directory: Path, source: int) -> Path:
    with tempfile.TemporaryDirectory(dir=directory, prefix=".receiving-") as place:
        try:
            with open(source, "rb", closefd=False) as file, tarfile.open(fileobj=file, mode="r|") as tar:
                tar.extraction_filter = lambda member, _path: member  # newer Pythons ask; the stream is our own
                tar.extractall(place)
            (name,) = os.listdir(place)
        except (tarfile.TarError, ValueError) as error:
            raise CommandFailed(["btrfs", "receive"], 1, f"ERROR: not a whole stream: {error}") from error
        (Path(place) / name).rename(directory / name)
    _note_limit(directory / name, 0)
    return directory / name


def _delete(path: Path) -> None:
    if _is_subvolume(path):
        shutil.rmtree(path)
        return
    for top, names, _ in os.walk(path, topdown=False):
        for name in names:
            if _is_subvolume(Path(top) / name):
                shutil.rmtree(Path(top) / name)
