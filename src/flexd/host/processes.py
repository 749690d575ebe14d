# SPDX-License-Identifier: Apache-2.0
"""Programs and processes. Children are made in a thread and watched by pidfd in every version of Python alike.

asyncio's own transports are not used: they kill the child when they are garbage collected, and what the daemon
starts (dnsmasq, monitors of containers) must outlive it.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from flexd.host import peers, syscalls
from flexd.host.contract import CommandFailed, Completed, HostError, Peer, ProcessRef
from flexd.host.process_table import identify
from flexd.host.threads import Threads

_BASE_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_STDERR_TAIL_BYTES = 4096
_READ_BYTES = 256 * 1024
# How a shell reports a program that is not there or may not be run (POSIX sh, "Exit Status for Commands").
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


class _Popen(subprocess.Popen[bytes]):
    def __del__(self) -> None:
        """No warning and no late wait: a child may outlive us, and `Child` reaps it."""


class Child:
    """A process we started. Its exit is noticed even if nobody waits, so no zombies stay."""

    def __init__(self, popen: _Popen, pidfd: int, loop: asyncio.AbstractEventLoop) -> None:
        self._popen = popen
        self._pidfd = pidfd
        self._loop = loop
        self._exited: asyncio.Future[int] = loop.create_future()
        loop.add_reader(pidfd, self._reap)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        return self._popen.returncode

    async def wait(self) -> int:
        return await asyncio.shield(self._exited)

    def send_signal(self, signal: int) -> None:
        if self._popen.returncode is None:
            self._popen.send_signal(signal)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """Kill it and what it started (each child leads a session of its own)."""
        if self._popen.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def _reap(self) -> None:
        # The pidfd is readable, so waitpid(2) does not block.
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._popen.wait()
        if not self._exited.done():
            self._exited.set_result(status)


class LinuxProcesses:
    def __init__(self, threads: Threads) -> None:
        self._threads = threads

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
        source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        child, popen = await self._start(
            argv, source, subprocess.PIPE, subprocess.PIPE, env=env, cwd=cwd, pass_fds=pass_fds
        )
        try:
            async with asyncio.timeout(timeout_s):
                output, errors, _ = await asyncio.gather(
                    _read_all(popen.stdout), _read_all(popen.stderr), _feed(popen.stdin, stdin)
                )
                status = await child.wait()
        except TimeoutError as error:
            raise CommandFailed(argv, -signal.SIGKILL, f"not finished after {timeout_s} s, killed") from error
        finally:
            child.kill_group()
            _close_pipes(popen)  # a cancellation may have come before anything read from them
            if child.returncode is None:
                await child.wait()
        if check and status != 0:
            raise CommandFailed(argv, status, errors[-_STDERR_TAIL_BYTES:].decode(errors="replace"))
        return Completed(status, output, errors)

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
    ) -> Child:
        wired = [subprocess.DEVNULL if fd is None else fd for fd in (stdin, stdout, stderr)]
        child, _ = await self._start(argv, *wired, env=env, cwd=cwd, pass_fds=pass_fds)
        return child

    async def identify(self, pid: int) -> ProcessRef | None:
        return await self._threads.run(identify, pid)

    async def is_alive(self, process: ProcessRef) -> bool:
        return await self.identify(process.pid) == process

    async def wait_exit(self, process: ProcessRef) -> None:
        pidfd = await self._threads.open(_open_pidfd, process)
        if pidfd is None:
            return
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()
        loop.add_reader(pidfd, _resolve, gone)
        try:
            await gone
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)

    @contextlib.asynccontextmanager
    async def network_held(self, process: ProcessRef) -> AsyncIterator[bool]:
        namespace = await self._threads.open(_open_network, process)
        try:
            yield namespace is not None
        finally:
            if namespace is not None:
                os.close(namespace)

    async def signal(self, process: ProcessRef, number: int) -> bool:
        return await self._threads.run(_signal, process, number)

    async def command_line(self, pid: int) -> list[str]:
        return await self._threads.run(_command_line, pid)

    async def peer(self, connection: socket.socket) -> Peer | None:
        return await self._threads.run(peers.peer, connection)

    async def pid_namespaces(self, process: ProcessRef) -> tuple[int, ...]:
        return await self._threads.run(peers.pid_namespaces, process)

    async def children(self, pid: int) -> list[int]:
        return await self._threads.run(_children, pid)

    async def _start(
        self,
        argv: Sequence[str],
        stdin: int,
        stdout: int,
        stderr: int,
        *,
        env: Mapping[str, str] | None,
        cwd: Path | None,
        pass_fds: Sequence[int],
    ) -> tuple[Child, _Popen]:
        def start() -> tuple[_Popen, int]:
            popen = _Popen(
                list(argv), stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, pass_fds=tuple(pass_fds),
                env={**_BASE_ENVIRONMENT, **(env or {})}, start_new_session=True, bufsize=0,
            )  # fmt: skip
            try:
                return popen, os.pidfd_open(popen.pid)
            except OSError:  # no fd left: nobody would notice its end
                popen.kill()
                popen.wait()
                raise

        loop = asyncio.get_running_loop()
        starting = asyncio.ensure_future(self._threads.run(start))
        try:
            popen, pidfd = await asyncio.shield(starting)
        except OSError as error:
            raise _not_started(argv, cwd, error) from error
        except asyncio.CancelledError:
            starting.add_done_callback(_abandon)
            raise
        return Child(popen, pidfd, loop), popen


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _abandon(starting: "asyncio.Future[tuple[_Popen, int]]") -> None:
    """Kill what came up after nobody wanted it any more."""
    if not starting.cancelled() and starting.exception() is None:
        Child(*starting.result(), starting.get_loop()).kill_group()
        _close_pipes(starting.result()[0])


def _close_pipes(popen: _Popen) -> None:
    for pipe in (popen.stdin, popen.stdout, popen.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what a dead reader left in stdin's buffer
                pipe.close()


def _not_started(argv: Sequence[str], cwd: Path | None, error: OSError) -> CommandFailed:
    if cwd is not None and error.filename == str(cwd):
        return CommandFailed(argv, _NOT_EXECUTABLE, f"enter {cwd}: {error.strerror}")
    status = _NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE
    return CommandFailed(argv, status, error.strerror or str(error))


async def _read_all(pipe: IO[bytes] | None) -> bytes:
    reader = asyncio.StreamReader(limit=_READ_BYTES)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        return await reader.read()
    finally:
        transport.close()


async def _feed(pipe: IO[bytes] | None, data: bytes | None) -> None:
    """Write all to a program's stdin; one that ends without reading it is no error."""
    if pipe is None:
        return
    transport, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.BaseProtocol, pipe)
    transport.write(data or b"")
    transport.close()  # what is buffered is still written


def _open_pidfd(process: ProcessRef) -> int | None:
    try:
        pidfd = syscalls.pidfd_open(process.pid)
    except HostError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            return None
        raise
    # Asked after the pidfd was opened: from here on the two are the same process.
    if identify(process.pid) != process:
        os.close(pidfd)
        return None
    return pidfd


def _open_network(process: ProcessRef) -> int | None:
    try:
        namespace = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Asked after it was opened: until then the pid may have become somebody else's.
    if identify(process.pid) != process:
        os.close(namespace)
        return None
    return namespace


def _signal(process: ProcessRef, number: int) -> bool:
    pidfd = _open_pidfd(process)
    if pidfd is None:
        return False
    try:
        syscalls.pidfd_send_signal(pidfd, process.pid, number)
    except HostError as error:
        if error.errno == errno.ESRCH:
            return False
        raise
    finally:
        os.close(pidfd)
    return True


def _command_line(pid: int) -> list[str]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # Each word ends with a NUL; a program that rewrote its title may have left none, or several.
    return [os.fsdecode(word) for word in raw.rstrip(b"\0").split(b"\0")] if raw.strip(b"\0") else []


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in listing.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
