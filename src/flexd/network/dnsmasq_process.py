# SPDX-License-Identifier: Apache-2.0
"""One network's dnsmasq: started once, found again by a restarted daemon, replaced only when dead or told otherwise."""

import asyncio
import grp
import hashlib
import logging
import pwd
import signal
import stat
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from flexd.api.errors import FlexdError
from flexd.host.contract import CommandFailed, Host, ProcessRef
from flexd.network.dnsmasq import DnsmasqFiles, LeaseRow, parse_leases
from flexd.network.textfiles import read_text, read_value, write_text, write_value

log = logging.getLogger(__name__)

# dnsmasq binds its sockets and answers within milliseconds; a loaded machine may take seconds.
_START_TIMEOUT_S = 20.0
# It ends at once on SIGTERM unless it is stuck in the kernel; then SIGKILL.
_STOP_TIMEOUT_S = 5.0
# As a shell says it: not found, not executable.
_NOT_RUN = (127, 126)
_USERS = ("dnsmasq", "nobody")


class DnsmasqFailed(FlexdError):
    def __init__(self, network: str, error: CommandFailed) -> None:
        absent = error.returncode in _NOT_RUN
        reason = "it is not installed (package dnsmasq-base)" if absent else str(error)
        super().__init__(f'Failed starting dnsmasq of network "{network}": {reason}')


class DnsmasqDied(FlexdError):
    def __init__(self, network: str, log_tail: str) -> None:
        reason = log_tail or "no message"
        super().__init__(f'Failed starting dnsmasq of network "{network}": it ended at once: {reason}')


class ProcessRecord(Struct, frozen=True):
    """What was started. `digest` covers all that a running dnsmasq can't be told without a restart."""

    pid: int
    start_time: int
    boot_id: str
    digest: str


def choose_user(directory: Path) -> tuple[str, str]:
    """User and group for dnsmasq: unprivileged, unless a parent directory keeps others out. Blocking."""
    if not all(parent.stat().st_mode & stat.S_IXOTH for parent in (directory, *directory.resolve().parents)):
        log.warning("dnsmasq of %s runs as root: other users can't enter that directory", directory)
        return "root", "root"
    for user in _USERS:
        try:
            return user, grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
        except KeyError:
            continue
    return "root", "root"


class DnsmasqProcess:
    def __init__(self, host: Host, files: DnsmasqFiles) -> None:
        self._host = host
        self._files = files

    async def ensure(self, render: Callable[[str, str], str], *, epoch: str) -> bool:
        """Have a dnsmasq with the configuration that `render(user, group)` gives, none if that is empty; True if one
        was started for that.

        `epoch` names what else a running one is tied to: its sockets stay with a bridge that was deleted.
        """
        user, group = await asyncio.to_thread(choose_user, self._files.directory)
        config = render(user, group)
        digest = hashlib.sha256(f"{epoch}\n{config}".encode()).hexdigest()
        record = await asyncio.to_thread(read_value, self._files.process, ProcessRecord)
        if config and record is not None and record.digest == digest and await self._running(record):
            return False
        await self.stop()
        if config:
            await self._start(config, digest)
        return config != ""

    async def reload(self) -> None:
        """Have the files of static leases and names read again."""
        process = await self._find()
        if process is not None:
            await self._host.processes.signal(process, signal.SIGHUP)

    async def stop(self) -> None:
        process = await self._find()
        if process is not None:
            await self._end(process)
        await asyncio.to_thread(self._forget)

    async def wait_exit(self) -> None:
        """Return when the dnsmasq that was started has ended, at once if it already has; never if none is wanted."""
        record = await asyncio.to_thread(read_value, self._files.process, ProcessRecord)
        if record is None:
            await asyncio.get_running_loop().create_future()
        else:
            await self._host.processes.wait_exit(ProcessRef(record.pid, record.start_time))

    async def leases(self) -> list[LeaseRow]:
        return parse_leases(await asyncio.to_thread(read_text, self._files.leases))

    async def _start(self, config: str, digest: str) -> None:
        """dnsmasq leaves its parent when it is ready, so a status of 0 means that it serves."""
        await asyncio.to_thread(self._prepare, config)
        try:
            await self._host.processes.run(["dnsmasq", f"--conf-file={self._files.config}"], timeout_s=_START_TIMEOUT_S)
        except CommandFailed as error:
            raise DnsmasqFailed(self._files.directory.name, error) from error
        process = await self._from_pid_file()
        if process is None:
            tail = (await asyncio.to_thread(read_text, self._files.log))[-500:].strip()
            raise DnsmasqDied(self._files.directory.name, tail)
        boot_id = await self._host.machine.boot_id()
        record = ProcessRecord(process.pid, process.start_time, boot_id, digest)
        await asyncio.to_thread(write_value, self._files.process, record)

    def _prepare(self, config: str) -> None:
        write_text(self._files.config, config)
        for path in (self._files.static_leases, self._files.names):
            path.touch(mode=0o644)
        self._files.log.unlink(missing_ok=True)

    def _forget(self) -> None:
        self._files.process.unlink(missing_ok=True)
        self._files.pid.unlink(missing_ok=True)

    async def _running(self, record: ProcessRecord) -> ProcessRef | None:
        process = ProcessRef(record.pid, record.start_time)
        same_boot = record.boot_id == await self._host.machine.boot_id()
        return process if same_boot and await self._host.processes.is_alive(process) else None

    async def _find(self) -> ProcessRef | None:
        """The running dnsmasq, also one that was started just before the daemon was killed and so is not recorded."""
        record = await asyncio.to_thread(read_value, self._files.process, ProcessRecord)
        process = await self._running(record) if record is not None else None
        return process or await self._from_pid_file()

    async def _from_pid_file(self) -> ProcessRef | None:
        text = (await asyncio.to_thread(read_text, self._files.pid)).strip()
        if not text.isdigit():
            return None
        process = await self._host.processes.identify(int(text))
        words = await self._host.processes.command_line(int(text))
        return process if f"--conf-file={self._files.config}" in words else None

    async def _end(self, process: ProcessRef) -> None:
        await self._host.processes.signal(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._host.processes.wait_exit(process)
        except TimeoutError:
            log.warning("dnsmasq (pid %d) of %s ignores SIGTERM", process.pid, self._files.directory)
            await self._host.processes.signal(process, signal.SIGKILL)
            await self._host.processes.wait_exit(process)
