# SPDX-License-Identifier: Apache-2.0
"""Chains of programs: a file through a decompressor into tar or into a function of ours, watched while it runs."""

import asyncio
import contextlib
import fcntl
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from typing import IO, BinaryIO, Generic, TypeVar

from msgspec import Struct

from flexd.host.contract import Processes, Spawned

T = TypeVar("T")

# What is kept of a program's messages; more is a program gone mad.
_MESSAGES_BYTES = 1 << 20
# How often progress is looked at while programs run.
_TICK_S = 0.25
# A program that was told to end does so in milliseconds; one that hangs in the kernel is killed and waited for.
_END_S = 10.0

_PIPE_BYTES = 1 << 20

LEASH = "FLEXD_LEASH"
"""Environment variable with the number of a descriptor that reads end of file when this daemon is gone or has given
up: confine.py's scripts end all they started then."""


class Finished(Struct, frozen=True):
    """One program of a chain that has ended, and the end of what it wrote to stderr (and to stdout, if last)."""

    returncode: int
    messages: str


class Outcome(Struct, Generic[T], frozen=True):
    """What a chain left: its programs in order, and either what the function returned or why it failed."""

    programs: tuple[Finished, ...]
    result: T | None = None
    failure: BaseException | None = None


def read_messages(file: IO[bytes]) -> str:
    """The end of a file that programs write messages to, wherever its offset stands."""
    size = os.fstat(file.fileno()).st_size
    start = max(0, size - _MESSAGES_BYTES)
    return os.pread(file.fileno(), _MESSAGES_BYTES, start).decode(errors="replace")


def wide_pipe() -> tuple[int, int]:
    """A pipe that holds a MiB where it may: with the usual 64 KiB its ends wake each other sixteen times as often."""
    reading, writing = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return reading, writing


async def run_chain(
    processes: Processes,
    commands: Sequence[Sequence[str]],
    *,
    stdin: int | None,
    tick: Callable[[str], None] | None = None,
) -> Outcome[None]:
    """Run `a | b` with `stdin` as the first one's input; the last one's output goes with the messages. `tick` gets the
    last one's messages so far, four times a second. Cancelled: all are killed and waited for."""
    return await _Chain[None](processes, commands, stdin, None, tick).run()


async def read_chain(
    processes: Processes, commands: Sequence[Sequence[str]], *, stdin: int | None, consume: Callable[[BinaryIO], T]
) -> Outcome[T]:
    """Run `a | b | consume(stream)`, the function in a thread. Its exception is returned as `failure`, beside how the
    programs ended, since a decompressor often knows better what is wrong."""
    return await _Chain[T](processes, commands, stdin, consume, None).run()


class _Chain(Generic[T]):
    def __init__(
        self,
        processes: Processes,
        commands: Sequence[Sequence[str]],
        stdin: int | None,
        consume: Callable[[BinaryIO], T] | None,
        tick: Callable[[str], None] | None,
    ) -> None:
        self._processes, self._commands, self._stdin = processes, commands, stdin
        self._consume, self._tick = consume, tick
        self._messages: list[IO[bytes]] = []
        self._children: list[Spawned] = []
        self._reader: asyncio.Task[T] | None = None
        self._leash, self._hand = os.pipe()

    async def run(self) -> Outcome[T]:
        try:
            output = await self._start()
            if output is not None and self._consume is not None:
                self._reader = asyncio.create_task(asyncio.to_thread(_consume_and_close, output, self._consume))
            return await self._finish()
        finally:
            await asyncio.shield(self._stop())

    async def _start(self) -> int | None:
        """Start all programs; returns the descriptor to read the last one's output from, if it is read."""
        previous, last = self._stdin, len(self._commands) - 1
        for number, argv in enumerate(self._commands):
            messages = await asyncio.to_thread(tempfile.TemporaryFile)
            self._messages.append(messages)
            piped = number < last or self._consume is not None
            reading, writing = wide_pipe() if piped else (None, messages.fileno())
            try:
                child = await self._spawn(argv, previous, writing, messages.fileno())
            except BaseException:
                if reading is not None:
                    os.close(reading)
                raise
            finally:
                if piped:
                    os.close(writing)
                if previous is not None and previous != self._stdin:
                    os.close(previous)
            self._children.append(child)
            previous = reading
        return previous if self._consume is not None else None

    async def _spawn(self, argv: Sequence[str], stdin: int | None, stdout: int | None, stderr: int) -> Spawned:
        return await self._processes.spawn(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={LEASH: str(self._leash)},
            pass_fds=(self._leash,),
        )

    async def _finish(self) -> Outcome[T]:
        failure: BaseException | None = None
        result: T | None = None
        if self._reader is not None:
            await asyncio.wait([self._reader])  # unlike awaiting it, this does not cancel the task with us
            failure = self._reader.exception()
            result = None if failure is not None else self._reader.result()
        waiting = [asyncio.ensure_future(child.wait()) for child in self._children]
        while (await asyncio.wait(waiting, timeout=_TICK_S))[1]:
            if self._tick is not None:
                self._tick(await asyncio.to_thread(read_messages, self._messages[-1]))
        finished = [
            Finished(future.result(), await asyncio.to_thread(read_messages, messages))
            for future, messages in zip(waiting, self._messages, strict=True)
        ]
        return Outcome(tuple(finished), result, failure)

    async def _stop(self) -> None:
        """Nothing survives: programs and all they started, thread, files. Scripts end with the leash, filters with the
        signal, which unshare(1) ignores while it waits for a script."""
        os.close(self._hand)
        os.close(self._leash)
        for child in self._children:
            if child.returncode is None:
                await _end(child)
        if self._reader is not None:
            await asyncio.wait([self._reader])
        for file in self._messages:
            await asyncio.to_thread(file.close)


async def _end(child: Spawned) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_END_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


def _consume_and_close(descriptor: int, consume: Callable[[BinaryIO], T]) -> T:
    with os.fdopen(descriptor, "rb", buffering=1 << 20) as stream:
        return consume(stream)
