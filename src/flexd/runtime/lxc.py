# SPDX-License-Identifier: Apache-2.0
"""Containers run by liblxc: started through the small C program, entered through the helper process.

Nothing about what runs is remembered here: `find` asks the container's monitor, so a restarted daemon knows as much."""

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from flexd.api.errors import BadRequest, FlexdError, NotFound
from flexd.api.idmap import IdMap
from flexd.host.contract import CgroupStats, Completed, Host, HostError, ProcessRef
from flexd.runtime import freezer
from flexd.runtime.command_socket import ask_processes
from flexd.runtime.contract import (
    CheckpointFailed,
    ConsoleInUse,
    ContainerFiles,
    ContainerSpec,
    Dump,
    Ended,
    ExecSpec,
    MountSpec,
    Obstacle,
    ProxySpec,
    Restore,
    RestoreFailed,
    RunningContainer,
    StartFailed,
    Supervision,
)
from flexd.runtime.criu import dump
from flexd.runtime.criu.console import Console as RestoredConsole
from flexd.runtime.criu.console import read_record, write_record
from flexd.runtime.criu.images import keep_log
from flexd.runtime.criu.obstacles import find as find_obstacles
from flexd.runtime.criu.outside import binds_of
from flexd.runtime.criu.restore import ConsoleRecord, HeldRestore, Started
from flexd.runtime.exec_process import LxcExecProcess, exec_directory, exec_environment
from flexd.runtime.exit_statuses import ExitStatuses
from flexd.runtime.helper import native_calls, wire
from flexd.runtime.helper_process import Connection, HelperError, HelperProcess
from flexd.runtime.init_signals import choose_signal
from flexd.runtime.interception.listener import Listener
from flexd.runtime.logs import Logs
from flexd.runtime.paths import ContainerPaths, group_prefix
from flexd.runtime.remote_files import RemoteFiles
from flexd.runtime.render import (
    APPLICATION_INITS,
    KERNEL_DIRECTORIES,
    NATIVE_ONLY,
    HostFacts,
    init_argv,
    render,
)
from flexd.runtime.settling import survives
from flexd.runtime.state_files import read_pid, read_target, remove_state, rename_state, write_state

# Without newuidmap(1) in its PATH liblxc writes the id maps itself, as root may: 9 ms less, and no need for lines in
# /etc/subuid. Hooks of `raw.lxc` need programs, so they get the usual PATH.
_NO_PROGRAMS = {"PATH": "/nonexistent"}
# Starting takes 10-60 ms. A start on a machine that swaps may take long; one that hangs must end some time.
_START_TIMEOUT_S = 60.0
_GONE = ProcessRef(0, 0)
_WITHOUT_LXCFS = "containers see the host's memory, CPUs and uptime in /proc, as {why}"


class LxcRuntime:
    def __init__(
        self, *, host: Host, directory: Path, log_directory: Path, lxcfs: Path = Path("/var/lib/lxcfs")
    ) -> None:
        """`lxcfs` is where lxcfs(1) is mounted, if it is."""
        self._host = host
        self._lxcfs = lxcfs
        self._directory = directory
        self._log_directory = log_directory
        self._helper = HelperProcess(host.processes)
        self._listener = Listener(self._helper, directory / ".seccomp" / "sock", self._figures, self._cgroup_directory)
        self._statuses = ExitStatuses(directory)
        self._facts: HostFacts | None = None
        self._library: tuple[str, dict[str, str]] | None = None
        self._consoles: dict[str, RestoredConsole] = {}  # of restored containers
        self._holders: set[asyncio.Task[None]] = set()  # each sees somebody leave such a console

    async def prepare(self) -> None:
        """Start the helper and look at the host, so that the first start and exec are as fast as the others."""
        await self._statuses.open()
        await self._helper.start()
        await self._host_facts()

    @property
    def helper_pid(self) -> int | None:
        return self._helper.pid

    async def version(self) -> str:
        return (await self._ask_library())[0]

    async def features(self) -> Mapping[str, str]:
        return (await self._ask_library())[1]

    async def missing(self) -> Mapping[str, str]:
        facts = await self._host_facts()
        if facts.lxcfs:
            return {}
        return {"lxcfs": _WITHOUT_LXCFS.format(why=await asyncio.to_thread(_why_no_lxcfs, self._lxcfs))}

    async def supervise(self, lookup: Callable[[str], Supervision | None]) -> None:
        await self._listener.start(lookup)

    async def _figures(self, name: str) -> CgroupStats:
        """Its monitor must not be asked: it waits for the answer that these are for."""
        return (await self._host.cgroups.stats([self._paths(name).payload_group]))[0]

    async def _cgroup_directory(self, name: str) -> str:
        """Of the unified hierarchy, which programs are attached to; "" where there is none."""
        unified = (await self._host.cgroups.layout()).unified
        return "" if unified is None else str(unified / self._paths(name).payload_group)

    # --- running -----------------------------------------------------------------------------------------------------

    async def start(self, spec: ContainerSpec) -> RunningContainer:
        paths = self._paths(spec.name)
        facts = await self._host_facts()
        config = render(spec, paths, facts)
        if spec.application is not None and not facts.application_init:
            missing = "missing on this host: tini-static (package tini) or catatonit"
            raise StartFailed(f'Failed to start container "{spec.name}": {missing}')
        if await self.find(spec.name) is not None:
            raise StartFailed(f'Failed to start container "{spec.name}": it is running already')
        self._statuses.forget(spec.name)
        if not await asyncio.to_thread(write_state, paths, config):
            await self._remove_groups(paths)
        starting = asyncio.create_task(self._start(paths, spec))
        try:
            return await asyncio.shield(starting)
        except BaseException:
            # Whoever cancels must not find a container half started: let liblxc come to its end, then undo it.
            await asyncio.wait({starting})
            await self._clean_up(paths)
            raise

    async def _start(self, paths: ContainerPaths, spec: ContainerSpec) -> RunningContainer:
        program = await asyncio.to_thread(shutil.which, "lxc-start")
        if program is None:
            raise StartFailed(f'Failed to start container "{spec.name}": the program lxc-start is not installed')
        argv = [program, "-n", spec.name, "-P", str(self._directory), "-f", str(paths.config), "-d"]
        argv += ["-p", str(paths.monitor_pid), *(["--", *init_argv(spec)] if spec.application else [])]
        if spec.native_only:
            argv = [sys.executable, "-I", "-S", native_calls.__file__, *argv]
        environment = None if "hook" in spec.raw else _NO_PROGRAMS
        result = await self._host.processes.run(argv, env=environment, timeout_s=_START_TIMEOUT_S, check=False)
        container = await self.find(spec.name) if result.returncode == 0 else None
        if container is not None and await survives(self._host.processes, self._host.cgroups, container):
            return container
        if spec.application is not None and result.returncode == 0:
            return await self._ended_application(paths, result, container)
        raise await self._start_failed(paths, result)

    async def _ended_application(
        self, paths: ContainerPaths, result: Completed, container: RunningContainer | None
    ) -> RunningContainer:
        """A program may have little to do; how it ended tells whether it could."""
        monitor = await self._host.processes.identify(await asyncio.to_thread(read_pid, paths.monitor_pid))
        if monitor is not None:
            await self._host.processes.wait_exit(monitor)
        status = (await self.how_ended(paths.name)).status
        if status == 0:
            return container or RunningContainer(paths.name, _GONE, _GONE, paths.payload_group)
        raise await self._start_failed(paths, result, "" if status is None else f" with status {status}")

    async def _start_failed(self, paths: ContainerPaths, result: Completed, status: str = "") -> StartFailed:
        reason = f"init ended at once{status}" if result.returncode == 0 else "liblxc could not start it"
        said = result.stderr.decode(errors="replace").strip()
        tail = await asyncio.to_thread(Logs(paths).last_words, said)
        return StartFailed(f'Failed to start container "{paths.name}": {reason}{tail}')

    async def _clean_up(self, paths: ContainerPaths) -> None:
        container = await self.find(paths.name)
        if container is not None:
            await self.kill(container)
        monitor = await self._host.processes.identify(await asyncio.to_thread(read_pid, paths.monitor_pid))
        if monitor is not None:
            await self._host.processes.wait_exit(monitor)
        await self._remove_groups(paths)

    async def _remove_groups(self, paths: ContainerPaths) -> None:
        """What a monitor that was killed could not remove; with it there, liblxc would refuse to start."""
        for group in (paths.payload_group, paths.monitor_group):
            try:
                await self._host.cgroups.remove(group)
            except HostError as error:
                # Not what the caller must hear about; if it matters, the next start says so.
                await asyncio.to_thread(Logs(paths).note, f"Failed removing cgroup {group}: {error}")

    async def find(self, name: str) -> RunningContainer | None:
        pids = await ask_processes(self._directory, name)
        if pids is None:
            return None
        monitor = await self._host.processes.identify(pids[0])
        init = await self._host.processes.identify(pids[1]) if pids[1] else None
        if monitor is None or init is None or init.pid not in await self._host.processes.children(monitor.pid):
            # Ending, or what answered is no monitor: nobody may send signals on its word alone.
            return None
        container = RunningContainer(name, init, monitor, self._paths(name).payload_group)
        if name not in self._consoles:
            await self._adopt_console(container)
        return container

    async def wait_ended(self, container: RunningContainer) -> Ended:
        await self._host.processes.wait_exit(container.init)
        await self._host.processes.wait_exit(container.monitor)
        console = self._consoles.pop(container.name, None)
        if console is not None:
            console.close()
        return await self.how_ended(container.name)

    async def how_ended(self, name: str) -> Ended:
        paths = self._paths(name)
        target = await asyncio.to_thread(read_target, paths)
        if not target:
            await self._remove_groups(paths)
        return Ended("reboot" if target == "reboot" else "stop", self._statuses.of(name))

    async def shutdown(self, container: RunningContainer) -> None:
        number = await asyncio.to_thread(choose_signal, self._paths(container.name).config, container.init.pid)
        await self._host.processes.signal(container.init, number)

    def network_held(self, container: RunningContainer) -> contextlib.AbstractAsyncContextManager[bool]:
        return self._host.processes.network_held(container.init)

    async def kill(self, container: RunningContainer) -> None:
        await self._host.processes.signal(container.init, signal.SIGKILL)
        if await self.frozen(container):
            # In a frozen v1 cgroup the signal waits for the thaw.
            await self.unfreeze(container)
        await self._host.processes.wait_exit(container.init)
        await self._host.processes.wait_exit(container.monitor)

    async def freeze(self, container: RunningContainer) -> None:
        await freezer.freeze(self._host.cgroups, container.name, container.cgroup)

    async def unfreeze(self, container: RunningContainer) -> None:
        await freezer.unfreeze(self._host.cgroups, container.cgroup)

    async def frozen(self, container: RunningContainer) -> bool:
        return await freezer.frozen(self._host.cgroups, container.cgroup)

    # --- saving and restoring state ----------------------------------------------------------------------------------

    async def obstacles(self, container: RunningContainer) -> list[Obstacle]:
        facts = await self._host.criu.facts()
        own = [] if facts.usable else [Obstacle("no usable CRIU on this host", facts.reason)]
        config = await asyncio.to_thread(_read_config, self._paths(container.name))
        return own + await asyncio.to_thread(find_obstacles, container.init.pid, config)

    async def checkpoint(self, container: RunningContainer, spec: ContainerSpec, images: Path) -> Dump:
        config = await asyncio.to_thread(_read_config, self._paths(container.name))
        criu = await self._criu(f'save the state of container "{container.name}"', CheckpointFailed)
        try:
            return await dump.take(self._host, criu, container, binds_of(config, spec.mounts), images)
        finally:
            await asyncio.to_thread(keep_log, images, "dump.log", self._paths(container.name).logs)

    async def restore(self, spec: ContainerSpec, images: Path) -> Restore:
        paths = self._paths(spec.name)
        what = f'restore the state of container "{spec.name}"'
        criu = await self._criu(what, RestoreFailed)
        config = render(spec, paths, await self._host_facts())
        if await self.find(spec.name) is not None:
            raise RestoreFailed(f"Failed to {what}: it is running already")
        if not await asyncio.to_thread(write_state, paths, config):
            await self._remove_groups(paths)
        started = Started(self._host, criu, spec, paths, images)
        beginning = asyncio.create_task(started.begin(config))
        try:
            await asyncio.shield(beginning)
        except BaseException:
            await asyncio.wait({beginning})
            await self._give_up(started)
            raise
        return HeldRestore(started, self._settle_restored, self._give_up)

    async def announce(self, container: RunningContainer) -> None:
        await self._ask("a", _init(container), f'announce the addresses of "{container.name}"')

    async def _settle_restored(self, started: Started) -> RunningContainer:
        container = await self.find(started.paths.name)
        if container is None:
            raise RestoreFailed(f'Failed to restore container "{started.paths.name}": its init ended at once')
        if started.console_fd >= 0:
            await asyncio.to_thread(write_record, started.paths, ConsoleRecord(container.monitor, started.console_fd))
        await self._adopt_console(container)
        return container

    async def _give_up(self, started: Started) -> None:
        await started.abort()
        await asyncio.to_thread(keep_log, started.images, "restore.log", started.paths.logs)
        await self._clean_up(started.paths)

    async def _criu(self, what: str, error: type[FlexdError]) -> Path:
        facts = await self._host.criu.facts()
        if facts.path is None or not facts.usable:
            raise error(f"Failed to {what}: {facts.reason}")
        return facts.path

    async def _adopt_console(self, container: RunningContainer) -> RestoredConsole | None:
        """Take up reading the console of a restored container; None of one that was started."""
        paths = self._paths(container.name)
        record = await asyncio.to_thread(read_record, paths)
        if record is None or record.monitor != container.monitor:
            return None
        known = self._consoles.get(container.name)
        if known is not None and known.record == record:
            return known
        console = await asyncio.to_thread(RestoredConsole.open, record, paths)
        if console is not None:
            self._consoles[container.name] = console
            console.listen()
        return console

    # --- inside ------------------------------------------------------------------------------------------------------

    async def exec(
        self,
        container: RunningContainer,
        spec: ExecSpec,
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        terminal: bool,  # noqa: ARG002 - liblxc looks for itself: a terminal as stdin becomes the controlling one
    ) -> LxcExecProcess:
        if not spec.command:
            raise BadRequest("The command must not be empty")
        environment = exec_environment(spec)
        request = {
            **self._address(container.name),
            "command": list(spec.command),
            "environment": environment,
            "cwd": exec_directory(spec, environment),
            "uid": spec.uid,
            "gid": spec.gid,
            **await self._entry(container.name),
        }
        connection = await self._helper.connect("x", (stdin, stdout, stderr))
        message, _ = await self._first_answer(connection, request, f'run a command in "{container.name}"')
        return LxcExecProcess(connection, int(message["pid"]))

    async def _entry(self, name: str) -> wire.Message:
        """What liblxc's attach leaves to us: `native_only` of the start, and, where no LSM puts it in order, the policy
        for `helper.supervised`."""
        facts = await self._host_facts()
        native_only, policy = await asyncio.to_thread(_entry_of, self._paths(name).config)
        return {"native_only": native_only, "policy": "" if facts.apparmor else policy}

    async def add_mount(self, container: RunningContainer, mount: MountSpec) -> None:
        request = {**_init(container), "source": mount.source, "target": mount.target, "options": list(mount.options)}
        await self._ask("m", request, f'mount {mount.source} on /{mount.target} in "{container.name}"')

    async def remove_mount(self, container: RunningContainer, mount: MountSpec) -> None:
        request = {**_init(container), "source": mount.source, "target": mount.target, "options": list(mount.options)}
        try:
            await self._ask("u", request, f'unmount /{mount.target} in "{container.name}"')
        except HelperError as error:
            if error.errno not in (errno.ESRCH, errno.ENOENT):  # it ended, and its mounts with it
                raise

    async def allow_device(self, container: RunningContainer, rule: str) -> None:
        await self._set_device(container, "devices.allow", rule)

    async def deny_device(self, container: RunningContainer, rule: str) -> None:
        await self._set_device(container, "devices.deny", rule)

    async def _set_device(self, container: RunningContainer, file: str, rule: str) -> None:
        request = {**self._address(container.name), "file": file, "value": rule}
        await self._ask("g", request, f'set {file} "{rule}" of "{container.name}"')

    async def start_proxy(self, container: RunningContainer, spec: ProxySpec, record: Path) -> None:
        action = f'start a proxy of "{container.name}"'
        connection = await self._helper.connect("p")
        request = {**_init(container), **msgspec.to_builtins(spec)}
        answer, _ = await self._first_answer(connection, request, action)
        process = await self._host.processes.identify(answer["pid"])
        if process is not None:
            await asyncio.to_thread(_write_record, record, process)
        # It waits for this, and ends if it does not come.
        await self._first_answer(connection, {}, action)
        connection.close()

    async def proxy_runs(self, record: Path) -> bool:
        process = await asyncio.to_thread(_read_record, record)
        return process is not None and await self._host.processes.is_alive(process)

    async def wait_proxy(self, record: Path) -> None:
        process = await asyncio.to_thread(_read_record, record)
        if process is not None:
            await self._host.processes.wait_exit(process)

    async def stop_proxy(self, record: Path) -> None:
        process = await asyncio.to_thread(_read_record, record)
        if process is not None:
            await self._host.processes.signal(process, signal.SIGKILL)
            await self._host.processes.wait_exit(process)
        await asyncio.to_thread(record.unlink, missing_ok=True)

    async def _ask(self, kind: str, request: wire.Message, action: str) -> None:
        connection = await self._helper.connect(kind)
        await self._first_answer(connection, request, action)
        connection.close()

    async def console(self, container: RunningContainer) -> int:
        restored = await self._adopt_console(container)
        if restored is not None:
            return await self._restored_console(container, restored)
        request = {**self._address(container.name), "init": container.init.pid}
        connection = await self._helper.connect("c")
        try:
            _, fds = await self._first_answer(connection, request, f'attach to the console of "{container.name}"')
        except HelperError as error:
            if error.errno != errno.EBUSY:
                raise
            raise ConsoleInUse(f'Someone is attached to the console of "{container.name}" already') from error
        connection.close()
        return fds[0]

    async def _restored_console(self, container: RunningContainer, console: RestoredConsole) -> int:
        if console.held:
            raise ConsoleInUse(f'Someone is attached to the console of "{container.name}" already')
        log = str(self._paths(container.name).console_log)
        master = console.hold()
        try:
            connection = await self._helper.connect("c", (master,))
            request = {"init": container.init.pid, "log": log}
            _, fds = await self._first_answer(connection, request, f'attach to the console of "{container.name}"')
        except BaseException:
            console.release()
            raise
        self._holders.add(holder := asyncio.create_task(_release_after(connection, console)))
        holder.add_done_callback(self._holders.discard)
        return fds[0]

    async def files(self, container: RunningContainer | None, rootfs: Path, idmap: IdMap) -> ContainerFiles:
        if container is not None:
            return RemoteFiles(self._helper, container.name, _init(container))
        maps = {"uid_map": idmap.proc_lines(users=True), "gid_map": idmap.proc_lines(users=False)}
        return RemoteFiles(self._helper, str(rootfs), {"init": 0, "rootfs": str(rootfs), **maps})

    def _address(self, name: str) -> wire.Message:
        return {"name": name, "directory": str(self._directory)}

    async def _first_answer(
        self, connection: Connection, request: wire.Message, action: str
    ) -> tuple[wire.Message, list[int]]:
        try:
            await connection.send(request)
            return await connection.receive()
        except HelperError as error:
            connection.close()
            raise HelperError(f"Failed to {action}: {error}", error.errno) from error
        except BaseException:
            connection.close()
            raise

    # --- logs --------------------------------------------------------------------------------------------------------

    async def console_log(self, name: str) -> bytes:
        return await asyncio.to_thread(Logs(self._paths(name)).console)

    async def clear_console_log(self, name: str) -> None:
        await asyncio.to_thread(Logs(self._paths(name)).clear_console)

    async def log_files(self, name: str) -> list[Path]:
        return await asyncio.to_thread(Logs(self._paths(name)).files)

    async def remove(self, name: str) -> None:
        await asyncio.to_thread(remove_state, self._paths(name))

    async def rename(self, name: str, new_name: str) -> None:
        await asyncio.to_thread(rename_state, self._paths(name), self._paths(new_name))

    async def close(self) -> None:
        for holder in self._holders:
            holder.cancel()
        for console in self._consoles.values():
            console.close()
        await self._listener.stop()
        await self._helper.close()
        await self._statuses.close()
        try:
            await self._host.cgroups.remove(group_prefix(self._directory))
        except HostError:
            # Containers run on below it.
            return

    # --- facts -------------------------------------------------------------------------------------------------------

    def _paths(self, name: str) -> ContainerPaths:
        if not name or "/" in name or name.startswith("."):
            raise NotFound(f"{name!r} is not a runtime name")
        return ContainerPaths(name, self._directory, self._log_directory)

    async def _host_facts(self) -> HostFacts:
        """Cgroups and LSM stay as they are; mounts come and go."""
        if self._facts is None:
            layout = await self._host.cgroups.layout()
            features = await self._host.machine.features()
            self._facts = HostFacts(
                unified_cgroup=layout.mode == "v2",
                apparmor=features.apparmor,
                nested=features.nested,
                seccomp_proxy=str(self._listener.path),
            )
        lxcfs, directories, init = await asyncio.to_thread(_look_around, self._lxcfs)
        return msgspec.structs.replace(self._facts, lxcfs=lxcfs, kernel_directories=directories, application_init=init)

    async def _ask_library(self) -> tuple[str, dict[str, str]]:
        if self._library is None:
            connection = await self._helper.connect("i")
            try:
                message, _ = await connection.receive()
            finally:
                connection.close()
            features = {name: "true" if known else "false" for name, known in message["features"].items()}
            self._library = (message["version"], features)
        return self._library


async def _release_after(connection: Connection, console: RestoredConsole) -> None:
    try:
        await connection.receive()  # nothing comes: it ends
    except HelperError:
        console.release()
    finally:
        connection.close()


def _init(container: RunningContainer) -> wire.Message:
    return {"init": container.init.pid, "start_time": container.init.start_time}


def _write_record(path: Path, process: ProcessRef) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    path.write_bytes(msgspec.json.encode(process))


def _read_record(path: Path) -> ProcessRef | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProcessRef)
    except (FileNotFoundError, msgspec.DecodeError):  # cut short: then the process never forwarded
        return None


def _look_around(mounted: Path) -> tuple[str, tuple[str, ...], str]:
    # A killed lxcfs leaves a mount that answers ENOTCONN (access(2) says no, stat(2) would raise).
    lxcfs = str(mounted) if os.access(mounted / "proc/meminfo", os.R_OK) else ""
    init = next(filter(None, map(shutil.which, APPLICATION_INITS)), "")
    return lxcfs, tuple(path for path in KERNEL_DIRECTORIES if os.path.isdir(path)), init


def _why_no_lxcfs(mounted: Path) -> str:
    try:
        mounted.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"it died and left its mount behind: {mounted}: {error.strerror}"
    return f"nothing is mounted on {mounted} (package lxcfs)"


def _read_config(paths: ContainerPaths) -> str:
    """What a running container was started with."""
    return paths.config.read_text(errors="surrogateescape")


def _entry_of(config: Path) -> tuple[bool, str]:
    """(native only, the policy if supervised) of a container as it was started; its keys may be others by now."""
    try:
        lines = dict(line.partition(" = ")[::2] for line in config.read_text(errors="replace").splitlines())
        supervised = "lxc.seccomp.notify.proxy" in lines
        return NATIVE_ONLY[0] in lines, Path(lines["lxc.seccomp.profile"]).read_text() if supervised else ""
    except FileNotFoundError:
        return False, ""
