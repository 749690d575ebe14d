# SPDX-License-Identifier: Apache-2.0
"""A runtime in memory: containers "run", commands are a few harmless programs of the host, files lie in directories.

For tests of everything above. What happens inside a container (power off, console output) are methods for the test."""

import asyncio
import contextlib
import errno
import json
import os
import select
import shutil
import tty
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from flexd.api.errors import BadRequest
from flexd.api.idmap import IdMap
from flexd.host.contract import HostError, ProcessRef
from flexd.host.fake.programs import Program, start_program
from flexd.runtime.contract import (
    CheckpointFailed,
    ConsoleInUse,
    ContainerFiles,
    ContainerSpec,
    Ended,
    ExecSpec,
    MountSpec,
    Obstacle,
    ProxySpec,
    RestoreFailed,
    RunningContainer,
    StartFailed,
    Supervision,
)
from flexd.runtime.exec_process import exec_environment
from flexd.runtime.fake_files import FakeFiles, Owners
from flexd.runtime.logs import Logs
from flexd.runtime.paths import ContainerPaths
from flexd.runtime.render import HostFacts, render

# What a fake container has installed; anything else is "not found".
_PROGRAMS = ("true", "false", "echo", "cat", "env", "pwd", "sleep", "sh", "tty", "stty", "printf", "head", "wc")
_FIRST_PID = 1_000_000  # above pid_max of small machines, so it can't be mistaken for a real process


class _Running:
    def __init__(self, container: RunningContainer) -> None:
        self.container = container
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self.frozen = False
        self.console: int | None = None  # the slave of a terminal whose master was handed out
        self.commands: set[FakeExecProcess] = set()
        self.mounts: dict[str, MountSpec] = {}  # by target
        self.devices: set[str] = set()  # rules that were allowed
        self.said = b""  # what init has printed: the state that survives being saved


class FakeExecProcess:
    def __init__(self, process: Program) -> None:
        self._process = process
        self._waiting = asyncio.create_task(asyncio.to_thread(process.wait))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        code = await asyncio.shield(self._waiting)
        return 128 - code if code < 0 else code

    async def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()


class _NeverRan:
    """A command that is not there, or may not be run."""

    pid = 0

    def __init__(self, status: int) -> None:
        self._status = status

    async def wait(self) -> int:
        return self._status

    async def signal(self, number: int) -> None:
        pass


class FakeDump:
    """`contract.Dump`."""

    def __init__(self, runtime: "FakeRuntime", running: _Running) -> None:
        self._runtime, self._running = runtime, running

    async def finish(self) -> None:
        if not self._running.ended.done():
            self._running.frozen = False
            self._runtime.end(self._running.container.name)

    async def resume(self) -> None:
        self._running.frozen = False


class FakeRestore:
    """`contract.Restore`."""

    def __init__(self, runtime: "FakeRuntime", running: _Running, container: RunningContainer) -> None:
        self._runtime, self._running, self._container = runtime, running, container

    async def resume(self) -> RunningContainer:
        self._running.frozen = False
        return self._container

    async def abort(self) -> None:
        await self._runtime.kill(self._container)


class FakeRuntime:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, _Running] = {}
        self._last: dict[ProcessRef, asyncio.Future[Ended]] = {}
        self._ends: dict[str, Ended] = {}
        self._owners: dict[Path, Owners] = {}
        self._next_pid = _FIRST_PID
        self.supervision: Callable[[str], Supervision | None] = lambda _name: None
        self.specs: dict[str, ContainerSpec] = {}  # what each container was started with last
        self.failing: dict[str, str] = {}  # name -> why its next start fails
        self.failing_calls: dict[str, str] = {}  # method ("add_mount") -> why it fails from now on
        self.announced: list[str] = []
        self.ignoring_shutdown: set[str] = set()
        self.unsavable: dict[str, str] = {}  # name -> why its state cannot be saved
        self.lacks: dict[str, str] = {}  # what `missing` says
        self.proxies: dict[Path, ProxySpec] = {}  # those that run, by their record
        self._proxy_ends: dict[Path, asyncio.Event] = {}

    # --- what happens inside, for tests ------------------------------------------------------------------------------

    def end(self, name: str, target: str = "stop", status: int | None = None) -> None:
        """The container powers off, or reboots (`target="reboot"`), by itself; an application exits with `status`."""
        running = self._running.pop(name)
        if running.console is not None:
            os.close(running.console)
        for command in running.commands:
            command.kill()
        self._ends[name] = Ended("reboot" if target == "reboot" else "stop", status)
        running.ended.set_result(self._ends[name])

    async def write_console(self, name: str, data: bytes) -> None:
        """Init prints something."""
        await asyncio.to_thread(_append, self._paths(name).console_log, data)
        self._running[name].said += data
        console = self._running[name].console
        if console is not None:
            await asyncio.to_thread(os.write, console, data)

    # --- the runtime -------------------------------------------------------------------------------------------------

    async def version(self) -> str:
        return "5.0.2"

    async def features(self) -> Mapping[str, str]:
        return {"cgroup2": "true", "pidfd": "true", "seccomp_notify": "true"}

    async def missing(self) -> Mapping[str, str]:
        return dict(self.lacks)

    async def supervise(self, lookup: Callable[[str], Supervision | None]) -> None:
        self.supervision = lookup

    async def start(self, spec: ContainerSpec) -> RunningContainer:
        paths = self._paths(spec.name)
        config = render(spec, paths, HostFacts())
        await asyncio.to_thread(_write_logs, paths, config)
        reason = self.failing.pop(spec.name, "")
        if not reason and not await asyncio.to_thread(spec.rootfs.is_dir):
            reason = f'no root file system at "{spec.rootfs}"'
        if not reason and spec.name in self._running:
            reason = "it runs already"
        if not reason and spec.init and Path(spec.init[0]).name == "false":
            reason = "init ended at once"
        if reason:
            raise StartFailed(f'Failed to start container "{spec.name}": {reason}')
        init, monitor = self._process(), self._process()
        container = RunningContainer(spec.name, init, monitor, paths.payload_group)
        running = self._running[spec.name] = _Running(container)
        running.mounts = {mount.target: mount for mount in spec.mounts}
        self._last[init] = running.ended
        self.specs[spec.name] = spec
        if spec.application is not None and spec.application.command == ("true",):
            self.end(spec.name, status=0)
        return container

    def _process(self) -> ProcessRef:
        self._next_pid += 1
        return ProcessRef(self._next_pid, self._next_pid)

    async def obstacles(self, container: RunningContainer) -> list[Obstacle]:
        reason = self.unsavable.get(container.name)
        return [Obstacle(reason, "have the test allow it")] if reason else []

    async def checkpoint(self, container: RunningContainer, spec: ContainerSpec, images: Path) -> "FakeDump":
        del spec
        reason = self.unsavable.get(container.name) or self.failing_calls.get("checkpoint")
        if reason or not self._is_live(container):
            words = reason or "it does not run"
            raise CheckpointFailed(f'Failed saving the state of container "{container.name}": {words}')
        running = self._running[container.name]
        state = {"commands": running.said.decode(errors="replace")}
        await asyncio.to_thread(_write_images, images, state)
        running.frozen = True
        return FakeDump(self, running)

    async def restore(self, spec: ContainerSpec, images: Path) -> "FakeRestore":
        reason = self.failing_calls.get("restore", "")
        state = await asyncio.to_thread(_read_images, images)
        if state is None:
            reason = reason or f"there is no saved state in {images}"
        if spec.name in self._running:
            reason = reason or "it runs already"
        if reason:
            raise RestoreFailed(f'Failed restoring the state of container "{spec.name}": {reason}')
        container = await self.start(spec)
        running = self._running[spec.name]
        running.frozen = True
        running.said = (state or {}).get("commands", "").encode()
        return FakeRestore(self, running, container)

    async def announce(self, container: RunningContainer) -> None:
        self.announced.append(container.name)

    async def find(self, name: str) -> RunningContainer | None:
        running = self._running.get(name)
        return None if running is None else running.container

    async def wait_ended(self, container: RunningContainer) -> Ended:
        return await asyncio.shield(self._last[container.init])

    async def how_ended(self, name: str) -> Ended:
        return self._ends.get(name, Ended("stop"))

    async def shutdown(self, container: RunningContainer) -> None:
        if self._is_live(container) and container.name not in self.ignoring_shutdown:
            self.end(container.name)

    @contextlib.asynccontextmanager
    async def network_held(self, container: RunningContainer) -> AsyncIterator[bool]:
        yield self._is_live(container)

    async def kill(self, container: RunningContainer) -> None:
        if self._is_live(container):
            self.end(container.name)

    async def freeze(self, container: RunningContainer) -> None:
        self._running[container.name].frozen = True

    async def unfreeze(self, container: RunningContainer) -> None:
        self._running[container.name].frozen = False

    async def frozen(self, container: RunningContainer) -> bool:
        return self._is_live(container) and self._running[container.name].frozen

    def _is_live(self, container: RunningContainer) -> bool:
        running = self._running.get(container.name)
        return running is not None and running.container == container

    async def exec(
        self, container: RunningContainer, spec: ExecSpec, *, stdin: int, stdout: int, stderr: int, terminal: bool
    ) -> FakeExecProcess | _NeverRan:
        if not spec.command:
            raise BadRequest("The command must not be empty")
        root = self.specs[container.name].rootfs
        program = Path(spec.command[0])
        if program.name not in _PROGRAMS:
            inside = root / str(program).lstrip("/")
            return _NeverRan(126 if await asyncio.to_thread(inside.is_file) else 127)
        process = await asyncio.to_thread(_start_program, spec, (stdin, stdout, stderr), terminal, root)
        command = FakeExecProcess(process)
        self._running[container.name].commands.add(command)
        return command

    def mounts_of(self, name: str) -> dict[str, MountSpec]:
        """For tests: what is mounted in a running container, by target."""
        return self._running[name].mounts

    def devices_of(self, name: str) -> set[str]:
        """For tests: the device rules that a running container was given."""
        return self._running[name].devices

    async def add_mount(self, container: RunningContainer, mount: MountSpec) -> None:
        self._raise_if_failing("add_mount", container)
        if not self._is_live(container):
            raise HostError(f'Failed to mount /{mount.target} in "{container.name}": it does not run', errno.ESRCH)
        if not await asyncio.to_thread(os.path.exists, mount.source):
            raise HostError(f"Failed to mount {mount.source}: No such file or directory", errno.ENOENT)
        self._running[container.name].mounts[mount.target] = mount

    async def remove_mount(self, container: RunningContainer, mount: MountSpec) -> None:
        self._raise_if_failing("remove_mount", container)
        if self._is_live(container):
            self._running[container.name].mounts.pop(mount.target, None)

    async def allow_device(self, container: RunningContainer, rule: str) -> None:
        self._raise_if_failing("allow_device", container)
        self._running[container.name].devices.add(rule)

    async def deny_device(self, container: RunningContainer, rule: str) -> None:
        if self._is_live(container):
            self._running[container.name].devices.discard(rule)

    async def start_proxy(self, container: RunningContainer, spec: ProxySpec, record: Path) -> None:
        self._raise_if_failing("start_proxy", container)
        self.proxies[record] = spec
        self._proxy_ends[record] = asyncio.Event()

    async def proxy_runs(self, record: Path) -> bool:
        return record in self.proxies

    async def wait_proxy(self, record: Path) -> None:
        if record in self.proxies:
            await self._proxy_ends[record].wait()

    def end_proxy(self, record: Path) -> None:
        """For tests: its process dies."""
        del self.proxies[record]
        self._proxy_ends.pop(record).set()

    async def stop_proxy(self, record: Path) -> None:
        if self.proxies.pop(record, None) is not None:
            self._proxy_ends.pop(record).set()

    def _raise_if_failing(self, method: str, container: RunningContainer) -> None:
        error = self.failing_calls.get(method)
        if error is not None:
            raise HostError(f'Failed to {method} of "{container.name}": {error}')

    async def console(self, container: RunningContainer) -> int:
        running = self._running[container.name]
        if running.console is not None:
            if not _hung_up(running.console):
                raise ConsoleInUse(f'Someone is attached to the console of "{container.name}" already')
            os.close(running.console)
        master, running.console = os.openpty()
        tty.setraw(running.console)
        return master

    async def console_log(self, name: str) -> bytes:
        return await asyncio.to_thread(Logs(self._paths(name)).console)

    async def clear_console_log(self, name: str) -> None:
        await asyncio.to_thread(Logs(self._paths(name)).clear_console)

    async def log_files(self, name: str) -> list[Path]:
        return await asyncio.to_thread(Logs(self._paths(name)).files)

    async def remove(self, name: str) -> None:
        await asyncio.to_thread(Logs(self._paths(name)).remove)

    async def rename(self, name: str, new_name: str) -> None:
        await self.remove(new_name)
        await asyncio.to_thread(_move, self._paths(name).logs, self._paths(new_name).logs)

    async def files(
        self,
        container: RunningContainer | None,  # noqa: ARG002 - running or not, they lie in the same directory
        rootfs: Path,
        idmap: IdMap,  # noqa: ARG002 - owners are only remembered
    ) -> ContainerFiles:
        return FakeFiles(rootfs, self._owners.setdefault(rootfs, {}))

    async def close(self) -> None:
        pass

    def _paths(self, name: str) -> ContainerPaths:
        return ContainerPaths(name, self._directory / "containers", self._directory / "logs")


def _write_logs(paths: ContainerPaths, config: str) -> None:
    paths.logs.mkdir(parents=True, exist_ok=True)
    Logs(paths).begin()
    paths.config.write_text(config)
    paths.log.write_text("")
    paths.console_log.write_bytes(b"")


def _write_images(images: Path, state: dict[str, str]) -> None:
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    (images / "state.json").write_text(json.dumps(state))


def _read_images(images: Path) -> dict[str, str] | None:
    try:
        state: dict[str, str] = json.loads((images / "state.json").read_text())
    except FileNotFoundError:
        return None
    return state


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def _move(source: Path, target: Path) -> None:
    if source.is_dir():
        source.rename(target)


def _hung_up(slave: int) -> bool:
    """Whether the master is closed."""
    poll = select.poll()
    poll.register(slave, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _start_program(spec: ExecSpec, stdio: tuple[int, int, int], terminal: bool, root: Path) -> Program:
    directory = root / spec.cwd.lstrip("/")
    where = directory if directory.is_dir() else root
    return start_program(spec.command, stdio=stdio, env=exec_environment(spec), cwd=where, terminal=terminal)
