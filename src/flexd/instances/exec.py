# SPDX-License-Identifier: Apache-2.0
"""Running commands in an instance: LXD's `exec` in all its forms, on websockets or into files.

A text message of no length on a data channel means "end of input" (LXD's barrier); bytes travel in binary messages.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from flexd.api.errors import BadRequest, FlexdError
from flexd.api.instance_exec import InstanceExecPost
from flexd.host.streams import make_pipe, read_some, write_all
from flexd.host.terminals import Terminals
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.logs import Logs
from flexd.instances.record import Config, InstanceRecord
from flexd.instances.registry import Registry
from flexd.instances.spec import environment
from flexd.operations.contract import Channel
from flexd.operations.events import Events
from flexd.operations.operations import Operation, Operations
from flexd.runtime.contract import ExecProcess, ExecSpec, RunningContainer, Runtime

# A client that asked for channels and does not open them must not keep an operation for ever.
_CONNECT_TIMEOUT_S = 30.0
_SIGHUP, _SIGKILL = 1, 9
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ControlMessage(msgspec.Struct):
    """What arrives on the control channel; `args` holds width and height as text."""

    command: str
    args: dict[str, str] = msgspec.field(default_factory=dict)
    signal: int = 0


def exec_spec(post: InstanceExecPost, configured: Config) -> ExecSpec:
    """Command, ids and environment: LXD's defaults, then `environment.*`, then the request's."""
    variables = {"PATH": _PATH, "LANG": "C.UTF-8"}
    if post.user == 0:
        variables |= {"HOME": "/root", "USER": "root"}
    variables |= configured | post.environment
    cwd = post.cwd or (variables.get("HOME", "/") if post.user == 0 else "/")
    return ExecSpec(tuple(post.command), variables, cwd, post.user, post.group)


class Exec:
    """The service behind `POST /1.0/instances/NAME/exec`."""

    def __init__(
        self,
        *,
        registry: Registry,
        lifecycle: Lifecycle,
        runtime: Runtime,
        terminals: Terminals,
        logs: Logs,
        operations: Operations,
        events: Events,
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._runtime = runtime
        self._terminals = terminals
        self._logs = logs
        self._operations = operations
        self._events = events

    async def exec(self, project: str, name: str, post: InstanceExecPost) -> Operation:
        record = self._registry.instance(project, name)
        container = self._check(record, post)
        spec = exec_spec(post, environment(self._registry.expand(record).config))
        metadata: dict[str, Any] = {"command": post.command, "environment": spec.environment}
        metadata["interactive"] = post.interactive
        operation = self._operations.start(
            kind="websocket" if post.wait_for_websocket else "task",
            description="Executing command",
            project=project,
            resources={"instances": [record.url]},
            run=lambda op: self._run(op, record, container, post, spec),
            metadata=metadata,
        )
        if post.wait_for_websocket:
            names = ("0", "control") if post.interactive else ("0", "1", "2", "control")
            operation.metadata["fds"] = {name: operation.expect_channel(name) for name in names}
        return operation

    def _check(self, record: InstanceRecord, post: InstanceExecPost) -> RunningContainer:
        if not post.command:
            raise BadRequest(f'Failed executing in instance "{record.name}": no command was given')
        if any("\0" in part for part in (*post.command, post.cwd, *post.environment, *post.environment.values())):
            raise BadRequest(f'Failed executing in instance "{record.name}": a NUL byte in command or environment')
        container = self._lifecycle.running(record)
        if container is None:
            raise BadRequest("Instance is not running")
        if self._lifecycle.status(record) == "Frozen":
            raise BadRequest("Instance is frozen")
        return container

    async def _run(
        self,
        operation: Operation,
        record: InstanceRecord,
        container: RunningContainer,
        post: InstanceExecPost,
        spec: ExecSpec,
    ) -> Mapping[str, Any]:
        session = _Session(self._runtime, self._terminals, container, spec)
        self._events.lifecycle("instance-exec", record.url, record.project, {"command": post.command})
        if not post.wait_for_websocket:
            return await self._record_output(operation, record, post, session)
        names = ("0",) if post.interactive else ("0", "1", "2")
        channels = await _connect(operation, names)
        control = asyncio.create_task(session.follow_control(operation))
        try:
            if post.interactive:
                status = await session.interactive(channels["0"], post.width, post.height)
            else:
                status = await session.separate(channels["0"], channels["1"], channels["2"])
        finally:
            control.cancel()
            await asyncio.gather(control, return_exceptions=True)
        return {"return": status}

    async def _record_output(
        self, operation: Operation, record: InstanceRecord, post: InstanceExecPost, session: "_Session"
    ) -> Mapping[str, Any]:
        """Without channels: output goes to files below `/logs` if wanted, else nowhere."""
        if not post.record_output:
            return {"return": await session.into_files(None, None)}
        paths = [await self._logs.exec_output(record, operation.id, stream) for stream in ("stdout", "stderr")]
        status = await session.into_files(*paths)
        urls = {str(n): f"/1.0/instances/{record.name}/logs/{path.name}" for n, path in enumerate(paths, start=1)}
        return {"return": status, "output": urls}


async def _connect(operation: Operation, names: tuple[str, ...]) -> dict[str, Channel]:
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            return {name: await operation.channel(name) for name in names}
    except TimeoutError:
        raise FlexdError(f"Timed out after {_CONNECT_TIMEOUT_S:.0f} s waiting for the websockets to connect") from None


class _Session:
    """One command: its process, its descriptors and the channels around it."""

    def __init__(self, runtime: Runtime, terminals: Terminals, container: RunningContainer, spec: ExecSpec) -> None:
        self._runtime = runtime
        self._terminals = terminals
        self._container = container
        self._spec = spec
        self._started: asyncio.Future[ExecProcess] = asyncio.get_running_loop().create_future()
        self._done = asyncio.Event()
        self._master: int | None = None

    async def _start(self, stdin: int, stdout: int, stderr: int, *, terminal: bool) -> ExecProcess:
        process = await self._runtime.exec(
            self._container, self._spec, stdin=stdin, stdout=stdout, stderr=stderr, terminal=terminal
        )
        self._started.set_result(process)
        return process

    async def _wait(self, process: ExecProcess) -> int:
        """The exit status; a cancelled operation kills the command first."""
        try:
            return await process.wait()
        except asyncio.CancelledError:
            await process.signal(_SIGKILL)
            raise
        finally:
            self._done.set()

    async def interactive(self, channel: Channel, width: int, height: int) -> int:
        with contextlib.ExitStack() as descriptors:
            master, slave = await self._terminals.open_inside(self._container.init.pid)
            descriptors.callback(os.close, master)
            self._terminals.resize(master, width, height)
            os.set_blocking(master, False)
            self._master = master
            try:
                process = await self._start(slave, slave, slave, terminal=True)
            finally:
                os.close(slave)
            typing = asyncio.create_task(self._feed(channel, master, close=False))
            showing = asyncio.create_task(self._show(master, channel))
            try:
                status = await self._wait(process)
                await showing
            finally:
                self._master = None
                await _end(typing, showing)
            return status

    async def separate(self, stdin: Channel, stdout: Channel, stderr: Channel) -> int:
        with contextlib.ExitStack() as descriptors:
            pipes = [make_pipe() for _ in range(3)]
            inner = [pipes[0][0], pipes[1][1], pipes[2][1]]
            outer = [pipes[0][1], pipes[1][0], pipes[2][0]]
            for fd in outer[1:]:
                descriptors.callback(os.close, fd)
            for fd in outer:
                os.set_blocking(fd, False)
            feeding: asyncio.Task[None] | None = None
            try:
                process = await self._start(*inner, terminal=False)
                feeding = asyncio.create_task(self._feed(stdin, outer[0], close=True))
            finally:
                for fd in inner:
                    os.close(fd)
                if feeding is None:
                    os.close(outer[0])
            showing = [
                asyncio.create_task(self._show(outer[1], stdout)),
                asyncio.create_task(self._show(outer[2], stderr)),
            ]
            try:
                status = await self._wait(process)
                await asyncio.gather(*showing)
            finally:
                await _end(feeding, *showing)
                await stdin.close()
            return status

    async def into_files(self, stdout: Path | None, stderr: Path | None) -> int:
        with contextlib.ExitStack() as descriptors:
            stdin, *outputs = await asyncio.to_thread(_open_files, stdout, stderr)
            for fd in (stdin, *outputs):
                descriptors.callback(os.close, fd)
            process = await self._start(stdin, *outputs, terminal=False)
            return await self._wait(process)

    async def _feed(self, channel: Channel, fd: int, *, close: bool) -> None:
        """From the client to the command, until the client says "end" or goes."""
        try:
            while (message := await channel.receive()) is not None:
                if isinstance(message, str):
                    if not message:
                        break
                    message = message.encode()
                if not await write_all(fd, message):
                    break
        finally:
            if close:
                os.close(fd)
        if not close and not self._done.is_set():
            await self._hang_up()

    async def _hang_up(self) -> None:
        """The client of a terminal has gone: what a closed terminal line means to its session."""
        process = await self._started
        await process.signal(_SIGHUP)

    async def _show(self, fd: int, channel: Channel) -> None:
        """From the command to the client, until the end of output."""
        while data := await read_some(fd, self._done):
            await channel.send(data)
        await channel.send("")
        await channel.close()

    async def follow_control(self, operation: Operation) -> None:
        """Window sizes and signals, until the channel or the command ends. A client that vanishes without a proper
        close takes its command with it, as in LXD."""
        channel = await operation.channel("control")
        process = await self._started
        while (message := await channel.receive()) is not None:
            try:
                order = msgspec.json.decode(message, type=ControlMessage, strict=False)
            except msgspec.DecodeError:
                continue  # a client's malformed message is its own loss
            if order.command == "window-resize" and self._master is not None:
                width, height = order.args.get("width", "0"), order.args.get("height", "0")
                if width.isdecimal() and height.isdecimal():
                    self._terminals.resize(self._master, int(width), int(height))
            elif order.command == "signal" and 0 < order.signal < 65:
                await process.signal(order.signal)
        if channel.aborted and not self._done.is_set():
            await process.signal(_SIGKILL)


def _open_files(stdout: Path | None, stderr: Path | None) -> list[int]:
    """Descriptors for a command without a client: no input, output into files or nowhere. In a thread."""
    opened = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
    try:
        for path in (stdout, stderr):
            opened.append(os.open(path or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:
        for fd in opened:
            os.close(fd)
        raise
    return opened


async def _end(*tasks: asyncio.Task[None] | None) -> None:
    living = [task for task in tasks if task is not None]
    for task in living:
        task.cancel()
    await asyncio.gather(*living, return_exceptions=True)
