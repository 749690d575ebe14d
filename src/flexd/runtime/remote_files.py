# SPDX-License-Identifier: Apache-2.0
"""`ContainerFiles` by a fork of the helper that has entered the container."""

import asyncio
import errno
from typing import Any

import msgspec

from flexd.api.errors import BadRequest, Conflict, FlexdError, Forbidden, NotFound
from flexd.host.contract import ProcessRef
from flexd.runtime.contract import FileInfo
from flexd.runtime.helper import wire
from flexd.runtime.helper_process import Connection, HelperError, HelperProcess

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY)
_WRONG = (errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ENXIO)


def file_error(action: str, path: str, number: int, text: str) -> FlexdError:
    """The wire's error for a failed system call on a path in a container."""
    message = f'Failed to {action} "{path}": {text}'
    if number in _MISSING:
        return NotFound(message)
    if number in _DENIED:
        return Forbidden(message)
    if number in _IN_THE_WAY:
        return Conflict(message)
    return BadRequest(message) if number in _WRONG else HelperError(message, number)


class RemoteFiles:
    def __init__(self, helper: HelperProcess, name: str, target: wire.Message) -> None:
        self._helper = helper
        self._name = name
        self._target = target
        self._connection: Connection | None = None
        self._forks: list[ProcessRef] = []
        self._lock = asyncio.Lock()

    async def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        answer, _ = await self._ask("read", "stat", path, follow=follow)
        return msgspec.convert(answer, FileInfo)

    async def open(self, path: str, flags: int, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> int:
        _, fds = await self._ask("open", "open", path, flags=flags, mode=mode, uid=uid, gid=gid)
        return fds[0]

    async def set_owner(self, path: str, *, uid: int | None, gid: int | None, mode: int | None) -> None:
        await self._ask("change owner or mode of", "set_owner", path, uid=uid, gid=gid, mode=mode)

    async def make_directory(self, path: str, *, mode: int, uid: int, gid: int) -> None:
        await self._ask("make directory", "make_directory", path, mode=mode, uid=uid, gid=gid)

    async def make_symlink(self, path: str, target: str, *, uid: int, gid: int) -> None:
        await self._ask("make symlink", "make_symlink", path, target=target, uid=uid, gid=gid)

    async def remove(self, path: str) -> None:
        await self._ask("remove", "remove", path)

    async def sftp(self) -> int:
        connection, fds = await self._enter("s")
        connection.close()
        return fds[0]

    async def close(self) -> None:
        """Returns when no fork is left: each has the root mounted in a namespace of its own, and while it has, the
        root cannot be unmounted here (EBUSY)."""
        async with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            for fork in self._forks:
                await self._helper.processes.wait_exit(fork)
            self._forks.clear()

    async def _ask(self, action: str, operation: str, path: str, **arguments: Any) -> tuple[wire.Message, list[int]]:
        request = {"do": operation, "path": path, **arguments}
        async with self._lock:
            if self._connection is None:
                self._connection, _ = await self._enter("f")
            try:
                return await self._exchange(self._connection, request)
            except HelperError as error:
                raise file_error(action, path, error.errno, str(error)) from error

    async def _exchange(self, connection: Connection, request: wire.Message) -> tuple[wire.Message, list[int]]:
        """Once a request is sent its answer must be read, or the next request would get it: a cancelled one ends
        the session."""
        try:
            await connection.send(request)
            return await connection.receive()
        except asyncio.CancelledError:
            connection.close()
            self._connection = None
            raise

    async def _enter(self, kind: str) -> tuple[Connection, list[int]]:
        connection = await self._helper.connect(kind)
        try:
            await connection.send(self._target)
            answer, fds = await connection.receive()
            fork = await self._helper.processes.identify(answer["pid"])
            if fork is not None:
                self._forks.append(fork)
        except HelperError as error:
            connection.close()
            raise HelperError(f'Failed entering the file system of "{self._name}": {error}', error.errno) from error
        except BaseException:
            connection.close()
            raise
        return connection, fds
