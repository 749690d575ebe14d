# SPDX-License-Identifier: Apache-2.0
"""A command under way in a container, watched by a fork of the helper."""

import asyncio
from collections.abc import Mapping

from flexd.runtime.contract import ExecSpec
from flexd.runtime.helper_process import Connection, HelperError

# What LXD sets where the client did not.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def exec_environment(spec: ExecSpec) -> dict[str, str]:
    """The whole environment of a command; nothing of the daemon's passes."""
    environment = {"PATH": _PATH, "LANG": "C.UTF-8"}
    if spec.uid == 0:
        environment |= {"HOME": "/root", "USER": "root"}
    return environment | dict(spec.environment)


def exec_directory(spec: ExecSpec, environment: Mapping[str, str]) -> str:
    return spec.cwd or environment.get("HOME") or "/"


class LxcExecProcess:
    def __init__(self, connection: Connection, pid: int) -> None:
        self._connection = connection
        self._pid = pid
        self._status: asyncio.Task[int] = asyncio.create_task(self._receive_status())

    @property
    def pid(self) -> int:
        return self._pid

    async def wait(self) -> int:
        return await asyncio.shield(self._status)

    async def signal(self, number: int) -> None:
        """Reaches the command even if it is just ending: its waiter has not reaped it, or answers no more."""
        if self._status.done():
            return
        try:
            await self._connection.send({"signal": number})
        except HelperError:
            # It ended meanwhile; `wait` tells how.
            return

    async def _receive_status(self) -> int:
        try:
            message, _ = await self._connection.receive()
        finally:
            self._connection.close()
        return int(message["status"])
