# SPDX-License-Identifier: Apache-2.0
"""`ContainerFiles` on a plain directory, without root: paths are kept inside by resolving links by hand, owners are
remembered instead of set. For tests only; nothing here holds against a hostile container."""

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec

from flexd.runtime.contract import FileInfo
from flexd.runtime.helper import files
from flexd.runtime.remote_files import file_error

P = ParamSpec("P")
T = TypeVar("T")
Owners = dict[str, tuple[int, int]]
_MOST_LINKS = 40  # path_resolution(7)


class FakeFiles:
    def __init__(self, root: Path, owners: Owners) -> None:
        self._root = root
        self._owners = owners

    async def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        return await self._do("read", path, self._stat, path, follow)

    def _stat(self, path: str, follow: bool) -> FileInfo:
        real = self._resolve(path, follow=follow)
        info = files.describe(real, os.lstat(real))
        info["uid"], info["gid"] = self._owners.get(real, (0, 0))
        return msgspec.convert(info, FileInfo)

    async def open(self, path: str, flags: int, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> int:
        return await self._do("open", path, self._open, path, flags, mode, (uid, gid))

    def _open(self, path: str, flags: int, mode: int, owner: tuple[int, int]) -> int:
        real = self._resolve(path)
        created = bool(flags & os.O_CREAT) and not os.path.lexists(real)
        fd = files.open_file(real, flags, mode, os.getuid(), os.getgid())
        if created:
            self._owners[real] = owner
        return fd

    async def set_owner(self, path: str, *, uid: int | None, gid: int | None, mode: int | None) -> None:
        await self._do("change owner or mode of", path, self._set_owner, path, uid, gid, mode)

    def _set_owner(self, path: str, uid: int | None, gid: int | None, mode: int | None) -> None:
        real = self._resolve(path, follow=False)
        files.set_owner(real, None, None, mode)
        before = self._owners.get(real, (0, 0))
        self._owners[real] = (before[0] if uid is None else uid, before[1] if gid is None else gid)

    async def make_directory(self, path: str, *, mode: int, uid: int, gid: int) -> None:
        await self._do("make directory", path, self._make_directory, path, mode, (uid, gid))

    def _make_directory(self, path: str, mode: int, owner: tuple[int, int]) -> None:
        real = self._resolve(path)
        if not os.path.isdir(real):
            files.make_directory(real, mode, os.getuid(), os.getgid())
            self._owners[real] = owner

    async def make_symlink(self, path: str, target: str, *, uid: int, gid: int) -> None:
        await self._do("make symlink", path, self._make_symlink, path, target, (uid, gid))

    def _make_symlink(self, path: str, target: str, owner: tuple[int, int]) -> None:
        real = self._resolve(path, follow=False)
        os.symlink(target, real)
        self._owners[real] = owner

    async def remove(self, path: str) -> None:
        await self._do("remove", path, self._remove, path)

    def _remove(self, path: str) -> None:
        real = self._resolve(path, follow=False)
        files.remove(real)
        self._owners.pop(real, None)

    async def sftp(self) -> int:
        return await asyncio.to_thread(self._start_sftp)

    def _start_sftp(self) -> int:
        from flexd.runtime.helper import sftp  # paramiko: only the tests that use it should pay for it

        ours, theirs = socket.socketpair()
        threading.Thread(target=sftp.serve, args=(ours, str(self._root)), daemon=True).start()
        return theirs.detach()

    async def close(self) -> None:
        pass

    async def _do(self, action: str, path: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await asyncio.to_thread(call, *args, **kwargs)
        except OSError as error:
            raise file_error(action, path, error.errno or 0, error.strerror or str(error)) from error

    def _resolve(self, path: str, *, follow: bool = True) -> str:
        """The path on this machine; links are followed as if the root directory were `/`."""
        rest = [part for part in path.split("/") if part]
        done: list[str] = []
        links = 0
        while rest:
            part = rest.pop(0)
            if part in (".", ".."):
                done = done[:-1] if part == ".." else done
                continue
            here = "/".join((str(self._root), *done, part))
            if (rest or follow) and os.path.islink(here) and links < _MOST_LINKS:
                links += 1
                target = os.readlink(here)
                done = [] if target.startswith("/") else done
                rest = [*(word for word in target.split("/") if word), *rest]
                continue
            if rest and os.path.lexists(here) and not stat.S_ISDIR(os.lstat(here).st_mode):
                raise NotADirectoryError(20, "Not a directory")
            done.append(part)
        return "/".join((str(self._root), *done))
