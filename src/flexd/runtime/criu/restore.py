# SPDX-License-Identifier: Apache-2.0
"""Restoring a container: `lxc-checkpoint -r` becomes its monitor, and runs CRIU, which takes its orders from us.

liblxc finds CRIU by its name in PATH. What it finds there is a script that starts the real one as a server on a socket
of ours, so all that is restored, and when, is our decision; liblxc's own arguments are not used."""

import asyncio
import os
import re
import shlex
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from flexd.api.idmap import IdMap
from flexd.host.contract import Host, HostError, ProcessRef, Spawned
from flexd.runtime.contract import ContainerSpec, RestoreFailed, RunningContainer
from flexd.runtime.criu import images as image_files
from flexd.runtime.criu import options, outside
from flexd.runtime.criu.obstacles import explain
from flexd.runtime.criu.talk import Silent, Talk
from flexd.runtime.paths import ContainerPaths

_TIMEOUT_S = 900.0
_END_TIMEOUT_S = 60.0
_PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SOCKET = "FLEXD_CRIU_SOCKET"
_NETWORK = re.compile(r"^lxc\.net\..*\n", re.MULTILINE)
# The container's tty group, as liblxc mounts /dev/pts (gid=5).
_TTY_GROUP = 5


class ConsoleRecord(Struct, frozen=True):
    """Where the console of a restored container is: its monitor holds the terminal's master, without using it."""

    monitor: ProcessRef
    fd: int


class Started:
    """A restore under way; owns the processes and what they were given."""

    def __init__(self, host: Host, criu: Path, spec: ContainerSpec, paths: ContainerPaths, images: Path) -> None:
        self._host, self._criu, self.spec, self.paths, self.images = host, criu, spec, paths, images
        self._files = images / image_files.FILES
        self._talk = Talk()
        self._process: Spawned | None = None
        self._notes = image_files.Notes()
        self.console_fd = -1

    async def begin(self, config: str) -> None:
        """Up to where everything is there and stands still, and nobody can reach it over the network yet."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                self._notes = await asyncio.to_thread(self._read_notes)
                layout = await self._host.cgroups.layout()
                if self._notes.cgroup_mode != layout.mode:
                    words = f"it ran under cgroups {self._notes.cgroup_mode}, this host has {layout.mode}"
                    raise self._failed(words)
                delegated = await asyncio.to_thread(image_files.keep_delegation, self.images, self._notes)
                request, fds = await asyncio.to_thread(self._prepare, config)
                try:
                    await self._spawn(fds)
                finally:
                    self._close(fds)
                await self._talk.send(request)
                await self._expect("post-setup-namespaces")
                await self._delegate(delegated)
                await self._talk.send(options.go_on(True))
                await self._expect("post-restore")
        except TimeoutError as error:
            raise await self._criu_failed(f"not finished after {_TIMEOUT_S:g} s") from error
        except Silent as error:
            raise await self._criu_failed("CRIU did not start, or ended without an answer") from error

    async def resume(self) -> None:
        """Let it run. It has a monitor when this returns."""
        try:
            async with asyncio.timeout(_END_TIMEOUT_S):
                await self._talk.send(options.go_on(True))
                await self._expect("pre-resume")
                await self._host.cgroups.delegate(self.paths.payload_group)
                answer = await self._talk.result(decide=True)
                if not answer.success:
                    raise await self._criu_failed(answer.message)
                if self._process is not None and await self._process.wait() != 0:
                    raise self._failed("liblxc could not become its monitor")
        except TimeoutError as error:
            raise await self._criu_failed(f"not finished after {_END_TIMEOUT_S:g} s") from error
        except Silent as error:
            raise await self._criu_failed("CRIU ended before the processes went on") from error
        finally:
            self._talk.close()

    async def abort(self) -> None:
        """End what was made; CRIU does it when nobody listens any more."""
        self._talk.close()
        if self._process is None:
            return
        try:
            await asyncio.wait_for(self._process.wait(), _END_TIMEOUT_S)
        except TimeoutError:
            self._process.kill_group()
            await self._process.wait()

    async def _expect(self, stage: str) -> None:
        answer = await self._talk.until(stage)
        if not answer.stage:
            raise await self._criu_failed(answer.message)

    def _read_notes(self) -> image_files.Notes:
        try:
            notes = image_files.read_notes(self.images)
            image_files.open_directory(self.images)
        except (OSError, msgspec.DecodeError) as error:
            raise self._failed(f"there is no saved state in {self.images}: {error}") from error
        return notes

    def _prepare(self, config: str) -> tuple[bytes, list[int]]:
        """In a thread: files, the console's terminal, and what CRIU is asked for; with the descriptors to pass on."""
        root = self.paths.state / "root"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.paths.restore_config.write_text(_restore_config(config, root), errors="surrogateescape")
        self.paths.restore_config.chmod(0o600)
        shim = self.paths.state / "bin"
        shim.mkdir(mode=0o700, exist_ok=True)
        _write_shim(shim / "criu", self._criu)
        sources, missing = outside.sources(self._notes.mounts, outside.binds_of(config))
        if missing:
            raise self._failed(f"this host has nothing to put on {', '.join(missing)}")
        external = [f"mnt[{point}]:{source}" for point, source in sources.items()]
        external += [f"netdev[{nic.name}]:{nic.link}" for nic in self.spec.nics]
        fds: list[int] = []
        inherited: Mapping[str, int] = {}
        if self._notes.console:
            master, slave, path = _open_terminal(self.spec.idmap)
            fds = [master, slave]
            self.console_fd = master
            inherited = {self._notes.console: slave}
            external.append(f"mnt[{outside.CONSOLE}]:{path}")
        controllers = [line.split(":", 2)[1] for line in Path("/proc/self/cgroup").read_text().splitlines()]
        groups = options.Cgroups(controllers, self.paths.payload_group)
        return options.restore(root, self._files, groups, external, inherited), fds

    async def _spawn(self, fds: list[int]) -> None:
        socket = self._talk.theirs.fileno()
        argv = ["lxc-checkpoint", "-r", "-n", self.spec.name, "-P", str(self.paths.directory)]
        argv += [f"--rcfile={self.paths.restore_config}", "-D", str(self._files)]
        environment = {"PATH": f"{self.paths.state / 'bin'}:{_PROGRAMS}", _SOCKET: str(socket)}
        self._process = await self._host.processes.spawn(
            argv, env=environment, cwd=self._files, pass_fds=[socket, *fds]
        )
        self._talk.theirs.close()

    def _close(self, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)

    async def _delegate(self, groups: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
        """Once init has left the topmost group, which may hand down controllers only while it is empty."""
        for path, controllers in groups:
            if ".." in path.split("/"):
                raise self._failed("the saved state names a cgroup outside of the container's")
            group = f"{self.paths.payload_group}/{path}".rstrip("/")
            for controller in controllers:
                try:
                    await self._host.cgroups.write(group, "cgroup", "cgroup.subtree_control", f"+{controller}")
                except HostError as error:
                    raise self._failed(f"its cgroups cannot be made: {error}") from error

    def _failed(self, reason: str) -> RestoreFailed:
        return RestoreFailed(f'Failed restoring the state of container "{self.spec.name}": {reason}')

    async def _criu_failed(self, message: str) -> RestoreFailed:
        errors = await asyncio.to_thread(image_files.errors_of, self._files / "restore.log")
        return self._failed(explain(errors) or (errors[0] if errors else message.strip() or "CRIU does not say why"))


class HeldRestore:
    """`contract.Restore`."""

    def __init__(
        self,
        started: Started,
        settle: Callable[[Started], Coroutine[Any, Any, RunningContainer]],
        give_up: Callable[[Started], Coroutine[Any, Any, None]],
    ) -> None:
        self._started, self._settle, self._give_up = started, settle, give_up

    async def resume(self) -> RunningContainer:
        """To the end, also if whoever asks is cancelled meanwhile: it must be one or the other."""
        return await asyncio.shield(asyncio.create_task(self._resume()))

    async def _resume(self) -> RunningContainer:
        try:
            await self._started.resume()
            return await self._settle(self._started)
        except BaseException:
            await self._give_up(self._started)
            raise

    async def abort(self) -> None:
        await asyncio.shield(asyncio.create_task(self._give_up(self._started)))


def _restore_config(config: str, root: Path) -> str:
    """That of the start, but with networks that CRIU makes, and a place for the root which is the container's own."""
    return _NETWORK.sub("", config) + f"lxc.net.0.type = empty\nlxc.rootfs.mount = {root}\n"


def _write_shim(path: Path, criu: Path) -> None:
    program = shlex.quote(str(criu))
    text = f'#!/bin/sh\n[ "$1" = --version ] && exec {program} --version\nexec {program} swrk "${_SOCKET}"\n'
    path.write_text(text)
    path.chmod(0o700)


def _open_terminal(idmap: IdMap) -> tuple[int, int, str]:
    """(master, slave, its path): a terminal of the host that the container's root and tty group own."""
    master, slave = os.openpty()
    path = os.ttyname(slave)
    os.chown(path, idmap.host_uid(0) or 0, idmap.host_gid(_TTY_GROUP) or 0)
    os.chmod(path, 0o620)
    return master, slave, path
