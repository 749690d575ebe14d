# SPDX-License-Identifier: Apache-2.0
"""The console of an instance: attach to /dev/console over a websocket, and what was written there."""

import asyncio
import os

import msgspec

from flexd.api.errors import BadRequest, NotSupported
from flexd.api.instance_console import InstanceConsolePost
from flexd.host.streams import read_some, write_all
from flexd.host.terminals import Terminals
from flexd.instances.exec import ControlMessage
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.registry import Registry
from flexd.operations.contract import Channel
from flexd.operations.events import Events
from flexd.operations.operations import Operation, Operations
from flexd.runtime.contract import RunningContainer, Runtime


class Console:
    """The service behind `/1.0/instances/NAME/console`."""

    def __init__(
        self,
        *,
        registry: Registry,
        lifecycle: Lifecycle,
        runtime: Runtime,
        terminals: Terminals,
        operations: Operations,
        events: Events,
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._runtime = runtime
        self._terminals = terminals
        self._operations = operations
        self._events = events

    async def attach(self, project: str, name: str, post: InstanceConsolePost) -> Operation:
        record = self._registry.instance(project, name)
        if post.type not in ("", "console"):
            raise NotSupported(f'Failed attaching to instance "{name}": console type "{post.type}" is not supported')
        container = self._lifecycle.running(record)
        if container is None:
            raise BadRequest("Instance is not running")
        if self._lifecycle.status(record) == "Frozen":
            raise BadRequest("Instance is frozen")
        operation = self._operations.start(
            kind="websocket",
            description="Showing console",
            project=project,
            resources={"instances": [record.url]},
            run=lambda running: self._run(running, container, post, record.url, project),
        )
        operation.metadata["fds"] = {name: operation.expect_channel(name) for name in ("0", "control")}
        return operation

    async def _run(
        self, operation: Operation, container: RunningContainer, post: InstanceConsolePost, url: str, project: str
    ) -> None:
        channel = await operation.channel("0")
        master = await self._runtime.console(container)
        try:
            os.set_blocking(master, False)
            self._terminals.resize(master, post.width, post.height)
            self._events.lifecycle("instance-console", url, project, {"type": "console"})
            control = asyncio.create_task(self._follow_control(operation, master))
            showing = asyncio.create_task(_show(master, channel))
            typing = asyncio.create_task(_type(channel, master))
            try:
                # Ends when the container does, or when the client detaches, which `lxc` says by closing the control
                # channel: the container does not notice.
                await asyncio.wait([showing, typing, control], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (control, showing, typing):
                    task.cancel()
                await asyncio.gather(control, showing, typing, return_exceptions=True)
                await channel.close()
        finally:
            os.close(master)

    async def _follow_control(self, operation: Operation, master: int) -> None:
        channel = await operation.channel("control")
        while (message := await channel.receive()) is not None:
            try:
                order = msgspec.json.decode(message, type=ControlMessage, strict=False)
                width, height = int(order.args.get("width", "0")), int(order.args.get("height", "0"))
            except (msgspec.DecodeError, ValueError):
                continue  # a client's malformed message is its own loss
            if order.command == "window-resize":
                self._terminals.resize(master, width, height)

    async def log(self, project: str, name: str) -> bytes:
        record = self._registry.instance(project, name)
        return await self._runtime.console_log(record.storage_name)

    async def clear_log(self, project: str, name: str) -> None:
        record = self._registry.instance(project, name)
        await self._runtime.clear_console_log(record.storage_name)


async def _show(master: int, channel: Channel) -> None:
    while data := await read_some(master):
        await channel.send(data)


async def _type(channel: Channel, master: int) -> None:
    while (message := await channel.receive()) is not None:
        if not await write_all(master, message if isinstance(message, bytes) else message.encode()):
            return
