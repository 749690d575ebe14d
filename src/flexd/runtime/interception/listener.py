# SPDX-License-Identifier: Apache-2.0
"""The socket that monitors of supervised containers connect to. Each call is acted on by a fork of the helper.

A monitor waits for the answer and serves nothing else meanwhile, so an answer must come, whatever happens."""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from flexd.host.contract import CgroupStats, HostError
from flexd.runtime.contract import Supervision
from flexd.runtime.helper import wire
from flexd.runtime.helper_process import HelperProcess
from flexd.runtime.interception import messages
from flexd.runtime.interception.messages import PROCEED, BadMessage, Notification, Verdict
from flexd.runtime.sockets import receive_with_ancillary, wait_writable

log = logging.getLogger(__name__)

Lookup = Callable[[str], Supervision | None]
# Figures of a container's cgroup, by its name.
Figures = Callable[[str], Awaitable[CgroupStats]]
# The directory of its cgroup, by its name.
PlaceOf = Callable[[str], Awaitable[str]]

_UCRED = struct.Struct("iII")  # unix(7)
_FDS = 3  # /proc/PID, /proc/PID/mem, the listener
_BACKLOG = 128
# liblxc waits for 30 s and then gives ENOSYS; a mount may take some seconds.
_ACT_S = 25.0


class Listener:
    def __init__(self, helper: HelperProcess, path: Path, figures: Figures, cgroup_directory: PlaceOf) -> None:
        self.path = path
        self._helper = helper
        self._figures = figures
        self._cgroup_directory = cgroup_directory
        self._lookup: Lookup = lambda _name: None
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, lookup: Lookup) -> None:
        """Monitors of a daemon before reconnect with their next call."""
        self._lookup = lookup
        self._socket = await asyncio.to_thread(_listen, self.path)
        self._spawn(self._accept(self._socket))

    async def stop(self) -> None:
        """Calls under way are answered by liblxc (ENOSYS), as all until the next daemon listens."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception:  # border of a background task: other containers' calls go on
                log.exception("a connection of the seccomp proxy failed")

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if uid != os.geteuid():
                connection.close()  # a monitor is ours
                continue
            self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        """One monitor; it asks one thing at a time."""
        with connection:
            connection.setblocking(False)
            while True:
                try:
                    data, ancillary = await receive_with_ancillary(
                        connection, messages.LONGEST, socket.CMSG_SPACE(4 * _FDS)
                    )
                except ConnectionError:
                    return
                fds = wire.rights(ancillary)
                try:
                    if not data:
                        return
                    await _send(connection, await self._answer(data, fds))
                finally:
                    for fd in fds:
                        os.close(fd)

    async def _answer(self, data: bytes, fds: list[int]) -> bytes:
        """Empty for what is no message: a short answer makes liblxc give ENOSYS at once."""
        try:
            notification = messages.parse(data)
        except BadMessage as error:
            log.warning("the seccomp proxy got a message that it does not understand: %s", error)
            return b""
        if len(fds) != _FDS:
            log.warning("the seccomp proxy got %d file descriptors of %s", len(fds), notification.cookie)
            return b""
        return messages.answer(notification, await self._decide(notification, fds))

    async def _decide(self, notification: Notification, fds: list[int]) -> Verdict:
        supervision = self._lookup(notification.cookie)
        if supervision is None:
            return PROCEED
        try:
            async with asyncio.timeout(_ACT_S):
                return await self._act(notification, supervision, fds)
        except (HostError, TimeoutError) as error:
            # The kernel's own answer is the safe one: what needed help is refused there.
            log.warning('a system call of "%s" could not be acted on: %s', notification.cookie, error)
            return PROCEED

    async def _act(self, notification: Notification, supervision: Supervision, fds: list[int]) -> Verdict:
        request = {
            "id": notification.id,
            "pid": notification.pid,
            "init": notification.init,
            "number": notification.number,
            "architecture": notification.architecture,
            "arguments": list(notification.arguments),
            **msgspec.to_builtins(supervision),
        }
        if "sysinfo" in supervision.calls:
            request["cgroup"] = msgspec.to_builtins(await self._figures(notification.cookie))
        if "bpf" in supervision.calls:
            request["cgroup_directory"] = await self._cgroup_directory(notification.cookie)
        connection = await self._helper.connect("n", fds)
        try:
            await connection.send(request)
            message, _ = await connection.receive()
        finally:
            connection.close()
        return msgspec.convert(message, Verdict)


async def _send(connection: socket.socket, data: bytes) -> None:
    while True:
        try:
            connection.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            await wait_writable(connection)
        except ConnectionError:
            return  # the next receive sees it, too
        else:
            return


def _listen(path: Path) -> socket.socket:
    """Blocking. Only root may reach the directory."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        listener.bind(os.fspath(path))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
