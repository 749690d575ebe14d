# SPDX-License-Identifier: Apache-2.0
"""The part of `flexd.host.contract` that is about programs and processes, and the errors of all parts."""

import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from flexd.api.errors import FlexdError


class HostError(FlexdError):
    """A system call failed: `mount /a on /b: Invalid argument (mount(2) EINVAL)`; `errno` keeps the number."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class CommandFailed(FlexdError):
    """A program ended with an error; the message holds its name, exit status and the end of what it wrote to stderr."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr_tail: str) -> None:
        self.argv = list(argv)
        self.returncode = returncode
        self.stderr_tail = stderr_tail
        super().__init__(f"{argv[0]} exited with status {returncode}: {stderr_tail.strip() or 'no message'}")


class Completed(Struct, frozen=True):
    returncode: int
    stdout: bytes
    stderr: bytes


class ProcessRef(Struct, frozen=True):
    """A process that can be told from a later one with the same pid: `start_time` is field 22 of `/proc/PID/stat`."""

    pid: int
    start_time: int


class Peer(Struct, frozen=True):
    """The process that connected a unix socket, with the ids it had then. `pid_namespaces`: inode numbers, its own
    first, outwards as far as ours."""

    process: ProcessRef
    uid: int
    gid: int
    pid_namespaces: tuple[int, ...]


class Spawned(Protocol):
    """A running child; the fields of `asyncio.subprocess.Process` that flexd uses."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    async def wait(self) -> int: ...
    def send_signal(self, signal: int) -> None: ...
    def kill(self) -> None: ...
    def kill_group(self) -> None:
        """Kill it and what it started and did not put into a session of its own."""
        ...


class Processes(Protocol):
    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float | None = None,
        check: bool = True,
        pass_fds: Sequence[int] = (),
    ) -> Completed:
        """Run a program to its end. `check`: a status other than 0 raises `CommandFailed`. On timeout or
        cancellation its process group is killed. `env` adds to a minimal environment (PATH, LC_ALL=C.UTF-8)."""
        ...

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Spawned:
        """Start a program with the given file descriptors (None: /dev/null), in a session of its own."""
        ...

    async def identify(self, pid: int) -> ProcessRef | None:
        """The process now at this pid; None if there is none (or a zombie)."""
        ...

    async def is_alive(self, process: ProcessRef) -> bool: ...

    async def wait_exit(self, process: ProcessRef) -> None:
        """Return when the process is gone (pidfd_open(2), readable at exit), at once if it is; need not be a child."""
        ...

    def network_held(self, process: ProcessRef) -> AbstractAsyncContextManager[bool]:
        """Within, its network namespace stays, whatever becomes of it (network_namespaces(7): an open file holds one);
        False if the process is gone."""
        ...

    async def signal(self, process: ProcessRef, number: int) -> bool:
        """Send a signal through a pidfd, so never to a stranger; False if the process is gone."""
        ...

    async def command_line(self, pid: int) -> list[str]:
        """`/proc/PID/cmdline` as words; empty for a kernel thread, a zombie, and a pid that is gone."""
        ...

    async def peer(self, connection: socket.socket) -> Peer | None:
        """Who connected this unix socket; None if that process is gone."""
        ...

    async def pid_namespaces(self, process: ProcessRef) -> tuple[int, ...]:
        """As in `Peer`, of any process; empty if it is gone."""
        ...

    async def children(self, pid: int) -> list[int]:
        """Pids of the direct children (`/proc/PID/task/*/children`)."""
        ...
