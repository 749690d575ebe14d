# SPDX-License-Identifier: Apache-2.0
"""Mounts without root: a bind is a symbolic link in the target's place, an overlay one to a merged copy of its layers.

Unmounting an overlay writes the differences back into `upper`, deletions as `.wh.NAME`, so that layers behave like
the real ones. Ids are not shifted; `table` tells by which map they would be.
"""

import atexit
import errno
import filecmp
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct

from flexd.api.idmap import IdMap
from flexd.host.contract import HostError, Layer, MountInfo
from flexd.host.fake.recorder import Recorder
from flexd.host.threads import Threads

_WHITEOUT = ".wh."


class FakeMount(Struct):
    info: MountInfo
    idmap: IdMap | None = None
    lower: Path | None = None  # what lies below the upper layer, all of it
    upper: Path | None = None
    merged: Path | None = None
    aside: Path | None = None  # what lies below the mount


class FakeMounts:
    def __init__(self, recorder: Recorder, threads: Threads) -> None:
        self.table: list[FakeMount] = []
        self._recorder = recorder
        self._threads = threads
        self._aside: Path | None = None
        self._count = 0

    async def mount(self, source: str, target: Path, fstype: str, options: str = "") -> None:
        self._recorder.note("mounts.mount", source, target, fstype, options)
        place = await self._threads.run(self._new_place)
        mount = FakeMount(MountInfo(self._absolute(target), source, fstype, options))
        await self._threads.run(self._attach, mount, place)

    async def mount_file(self, file: Path, target: Path, fstype: str, options: str = "") -> None:
        """A file that was formatted is a directory here."""
        self._recorder.note("mounts.mount_file", file, target)
        await self._threads.run(self._mount_file, file, target, fstype, options)

    async def bind(self, source: Path, target: Path, *, recursive: bool = False, readonly: bool = False) -> None:
        self._recorder.note("mounts.bind", source, target)
        await self._threads.run(self._bind, source, target, None, readonly)

    async def idmapped_bind(
        self, source: Path, target: Path, idmap: IdMap, *, recursive: bool = False, readonly: bool = False
    ) -> None:
        self._recorder.note("mounts.idmapped_bind", source, target, idmap)
        await self._threads.run(self._bind, source, target, idmap, readonly)

    @asynccontextmanager
    async def beneath(self, parent: Path, path: Path) -> AsyncIterator[Path]:
        self._recorder.note("mounts.beneath", parent, path)
        resolved = await self._threads.run(path.resolve)
        if not resolved.is_relative_to(await self._threads.run(parent.resolve)):
            raise HostError(f"open {path}", errno.EXDEV)
        if not await self._threads.run(resolved.exists):
            raise HostError(f"open {path}", errno.ENOENT)
        yield resolved

    async def overlay(
        self, target: Path, *, lower: Path, upper: Path, work: Path, lower_idmap: IdMap | None = None
    ) -> None:
        self._recorder.note("mounts.overlay", target)
        await self._threads.run(self._overlay, target, [Layer(lower, lower_idmap)], upper, work)

    async def overlay_layers(
        self, target: Path, layers: Sequence[Layer], *, upper: Path | None = None, work: Path | None = None
    ) -> None:
        self._recorder.note("mounts.overlay_layers", target)
        await self._threads.run(self._overlay, target, layers, upper, work)

    async def unmount(self, target: Path, *, detach: bool = False) -> None:
        self._recorder.note("mounts.unmount", target)
        await self._threads.run(self._unmount, target)

    async def mounted(self, target: Path) -> bool:
        self._recorder.note_reading("mounts.mounted", target)
        return self._find(target) is not None

    async def below(self, path: Path) -> list[MountInfo]:
        self._recorder.note_reading("mounts.below", path)
        return self.at_or_below(path)

    def at_or_below(self, path: Path) -> list[MountInfo]:
        top = self._absolute(path)
        return [each.info for each in self.table if top in (each.info.target, *each.info.target.parents)]

    async def unmount_all(self) -> None:
        for mount in reversed(list(self.table)):
            await self._threads.run(self._unmount, mount.info.target)

    async def close(self) -> None:
        await self.unmount_all()
        if self._aside is not None:
            await self._threads.run(shutil.rmtree, self._aside)

    def _absolute(self, path: Path) -> Path:
        # Not resolved: the last part is the link that stands for the mount.
        return Path(os.path.normpath(path))

    def _find(self, target: Path) -> FakeMount | None:
        wanted = self._absolute(target)
        return next((each for each in reversed(self.table) if each.info.target == wanted), None)

    def _new_place(self) -> Path:
        if self._aside is None:
            self._aside = Path(tempfile.mkdtemp(prefix="flexd-fake-host-"))
            atexit.register(shutil.rmtree, self._aside, ignore_errors=True)  # for a test that does not close its host
        self._count += 1
        place = self._aside / str(self._count)
        place.mkdir()
        return place

    def _mount_file(self, file: Path, target: Path, fstype: str, options: str) -> None:
        if not file.is_dir():
            raise HostError(f"mount {file} on {target}: no {fstype} file system (mount(2) EINVAL)", errno.EINVAL)
        self._attach(FakeMount(MountInfo(self._absolute(target), str(file), fstype, options)), file.resolve())

    def _bind(self, source: Path, target: Path, idmap: IdMap | None, readonly: bool) -> None:
        if not source.exists() and source.parent.name != "ns":  # a fake process has namespaces too
            raise _absent(f"clone the mount of {source}")
        options = "ro" if readonly else "rw"
        info = MountInfo(self._absolute(target), str(source), "none", options, root=str(source))
        self._attach(FakeMount(info, idmap=idmap or None), source.resolve())

    def _overlay(self, target: Path, layers: Sequence[Layer], upper: Path | None, work: Path | None) -> None:
        for place in (*(layer.path for layer in layers), upper, work):
            if place is not None and not place.is_dir():
                raise _absent(f"overlay {upper} at {target}: {place}")
        lower, merged = self._new_place(), self._new_place()
        for layer in reversed(layers):
            _apply(layer.path, lower)
        _apply(lower, merged)
        if upper is not None:
            _apply(upper, merged)
        options = f"{'rw' if upper else 'ro'},lowerdir={layers[0].path},upperdir={upper},workdir={work}"
        info = MountInfo(self._absolute(target), "flexd", "overlay", options)
        # The bottom layer is the image, whose map tells most.
        mount = FakeMount(info, idmap=layers[-1].idmap or None, lower=lower, merged=merged)
        mount.upper = None if upper is None else upper.resolve()
        self._attach(mount, merged)

    def _attach(self, mount: FakeMount, content: Path) -> None:
        target = mount.info.target
        if not target.exists():
            raise _absent(f"attach a mount at {target}")
        mount.aside = self._new_place() / "below"
        shutil.move(target, mount.aside)  # a link too, also where /tmp is a file system of its own
        target.symlink_to(content)
        self.table.append(mount)

    def _unmount(self, target: Path) -> None:
        mount = self._find(target)
        if mount is None or mount.aside is None:
            return
        self.table.remove(mount)
        if mount.info.target.is_symlink():
            mount.info.target.unlink()
            if mount.aside.is_symlink():
                mount.info.target.symlink_to(os.readlink(mount.aside))
            else:
                shutil.move(mount.aside, mount.info.target)
        if mount.merged is None or mount.lower is None:
            return
        if mount.upper is not None and mount.upper.exists():
            _write_back(mount.lower, mount.upper, mount.merged)
        shutil.rmtree(mount.merged)
        shutil.rmtree(mount.lower)


def _absent(what: str) -> HostError:
    return HostError(f"{what}: No such file or directory (mount(2) ENOENT)", errno.ENOENT)


def _walk(top: Path) -> Iterator[Path]:
    """Everything below, parents first, relative; links are not followed."""
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            yield Path(directory, name).relative_to(top)


def _apply(upper: Path, merged: Path) -> None:
    """Put a layer over what is there."""
    for path in list(_walk(upper)):
        if path.name.startswith(_WHITEOUT):
            _remove(merged / path.parent / path.name.removeprefix(_WHITEOUT))
            continue
        source, target = upper / path, merged / path
        if not (_is_directory(source) and _is_directory(target)):
            _remove(target)
            _copy(source, target)
        else:
            shutil.copystat(source, target)
    shutil.copystat(upper, merged)


def _write_back(lower: Path, upper: Path, merged: Path) -> None:
    for entry in list(upper.iterdir()):
        _remove(entry)
    for path in _walk(merged):
        if not _same(lower / path, merged / path):
            _copy_parents(merged, upper, path.parent)
            _copy(merged / path, upper / path)
    for path in _walk(lower):
        if not os.path.lexists(merged / path) and _is_directory(merged / path.parent):
            _copy_parents(merged, upper, path.parent)
            (upper / path.parent / f"{_WHITEOUT}{path.name}").touch()
    shutil.copystat(merged, upper)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _same(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and os.readlink(one) == os.readlink(other)
    if not one.exists() or one.stat().st_mode != other.stat().st_mode:
        return False
    return not one.is_file() or filecmp.cmp(one, other, shallow=False)


def _remove(path: Path) -> None:
    if _is_directory(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _copy(source: Path, target: Path) -> None:
    """One entry; a directory without what is in it."""
    if _is_directory(source):
        target.mkdir(exist_ok=True)
        shutil.copystat(source, target)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _copy_parents(source: Path, target: Path, path: Path) -> None:
    for parent in reversed((path, *path.parents)):
        if not (target / parent).exists():
            _copy(source / parent, target / parent)
