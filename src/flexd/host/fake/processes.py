# SPDX-License-Identifier: Apache-2.0
"""Processes in memory. Harmless programs that only transform data are run for real; others are answered by a script."""

import asyncio
import contextlib
import inspect
import itertools
import os
import signal as signals
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from flexd.host.contract import CommandFailed, Completed, Peer, ProcessRef, Spawned
from flexd.host.fake.recorder import Recorder
from flexd.host.processes import LinuxProcesses
from flexd.host.threads import Threads

# Above every pid of a real process (kernel: PID_MAX_LIMIT is 4 Mi).
_FIRST_PID = 1 << 23
_HARMLESS = frozenset(
    {
        "bzip2",
        "cat",
        "cp",
        "du",
        "false",
        "gzip",
        "lz4",
        "lzma",
        "mksquashfs",
        "rm",
        "sh",
        "sync",
        "tar",
        "true",
        "unsquashfs",
        "xz",
        "zstd",
    }
)
Answer = Callable[[Sequence[str], bytes | None], Completed | Awaitable[Completed]]


class FakeChild:
    """A process that lives until it is signalled or a test ends it."""

    def __init__(self, pid: int, argv: Sequence[str]) -> None:
        self.pid = pid
        self.argv = list(argv)
        self.signals: list[int] = []
        self._exited = asyncio.Event()
        self._returncode: int | None = None

    @property
    def returncode(self) -> int | None:
        return self._returncode

    async def wait(self) -> int:
        await self._exited.wait()
        assert self._returncode is not None
        return self._returncode

    def send_signal(self, signal: int) -> None:
        """Any signal that a program does not catch ends it; SIGHUP is taken as "read your files again"."""
        self.signals.append(signal)
        if signal not in (0, signals.SIGHUP, signals.SIGCHLD, signals.SIGWINCH, signals.SIGCONT, signals.SIGSTOP):
            self.exit(-signal)

    def kill(self) -> None:
        self.send_signal(signals.SIGKILL)

    def kill_group(self) -> None:
        self.kill()

    def exit(self, status: int) -> None:
        if self._returncode is None:
            self._returncode = status
            self._exited.set()


class FakeProcesses:
    def __init__(self, recorder: Recorder, threads: Threads) -> None:
        self.running: dict[int, FakeChild] = {}
        self.harmless = set(_HARMLESS)
        self.outputs: dict[str, bytes] = {}  # what a spawned program writes to its stdout at once
        self._answers: dict[str, Answer] = {}
        self._recorder = recorder
        self._real = LinuxProcesses(threads)
        self._pids = itertools.count(_FIRST_PID)

        self.peers: dict[int, Peer] = {}  # by the pid that the kernel names; others are who they are

    # --- for tests -----------------------------------------------------------------------------------------------

    def answer(self, program: str, answer: Answer | Completed) -> None:
        """What `run` gives for a program: `Completed`, or a function of (argv, stdin)."""
        self._answers[program] = (lambda _argv, _stdin: answer) if isinstance(answer, Completed) else answer

    def start(self, argv: Sequence[str]) -> ProcessRef:
        """A process that is there without having been spawned (one that left its parent)."""
        child = FakeChild(next(self._pids), argv)
        self.running[child.pid] = child
        return ProcessRef(child.pid, child.pid)

    def exit(self, pid: int, status: int = 0) -> None:
        self.running[pid].exit(status)

    def end_all(self) -> None:
        for child in self.running.values():
            child.exit(-signals.SIGKILL)

    # --- the contract --------------------------------------------------------------------------------------------

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
        self._recorder.note("processes.run", *argv)
        answer = self._answers.get(argv[0])
        if answer is None and argv[0] in self.harmless:
            return await self._real.run(
                argv, stdin=stdin, env=env, cwd=cwd, timeout_s=timeout_s, check=check, pass_fds=pass_fds
            )
        if answer is None:
            raise CommandFailed(argv, 127, "No such file or directory")
        given = answer(argv, stdin)
        done = await given if inspect.isawaitable(given) else given
        if check and done.returncode != 0:
            raise CommandFailed(argv, done.returncode, done.stderr.decode(errors="replace"))
        return done

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
        self._recorder.note("processes.spawn", *argv)
        if argv[0] in self.harmless:
            return await self._real.spawn(
                argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd, pass_fds=pass_fds
            )
        written = self.outputs.get(argv[0])
        if written and stdout is not None:
            await asyncio.to_thread(os.write, stdout, written)
        return self.running[self.start(argv).pid]

    async def identify(self, pid: int) -> ProcessRef | None:
        self._recorder.note_reading("processes.identify", pid)
        return await self._identify(pid)

    async def is_alive(self, process: ProcessRef) -> bool:
        self._recorder.note_reading("processes.is_alive", process.pid)
        return await self._identify(process.pid) == process

    async def wait_exit(self, process: ProcessRef) -> None:
        self._recorder.note_reading("processes.wait_exit", process.pid)
        child = self.running.get(process.pid)
        if child is not None:
            await child.wait()
        else:
            await self._real.wait_exit(process)

    @contextlib.asynccontextmanager
    async def network_held(self, process: ProcessRef) -> AsyncIterator[bool]:
        self._recorder.note_reading("processes.network_held", process.pid)
        yield await self._identify(process.pid) == process

    async def signal(self, process: ProcessRef, number: int) -> bool:
        self._recorder.note("processes.signal", process.pid, number)
        child = self.running.get(process.pid)
        if child is None:
            return await self._real.signal(process, number)
        if child.returncode is not None:
            return False
        child.send_signal(number)
        return True

    async def command_line(self, pid: int) -> list[str]:
        self._recorder.note_reading("processes.command_line", pid)
        child = self.running.get(pid)
        if child is None:
            return await self._real.command_line(pid)
        return child.argv if child.returncode is None else []

    async def peer(self, connection: socket.socket) -> Peer | None:
        self._recorder.note_reading("processes.peer")
        found = await self._real.peer(connection)
        return None if found is None else self.peers.get(found.process.pid, found)

    async def pid_namespaces(self, process: ProcessRef) -> tuple[int, ...]:
        """Of a process that is only pretended: one of its own."""
        self._recorder.note_reading("processes.pid_namespaces", process.pid)
        return await self._real.pid_namespaces(process) or (process.pid, 1)

    async def children(self, pid: int) -> list[int]:
        self._recorder.note_reading("processes.children", pid)
        return [] if pid in self.running else await self._real.children(pid)

    async def _identify(self, pid: int) -> ProcessRef | None:
        child = self.running.get(pid)
        if child is None:
            return await self._real.identify(pid)
        return ProcessRef(pid, pid) if child.returncode is None else None
