# SPDX-License-Identifier: Apache-2.0
"""Whether a container's init gets past its first moments, so that a start which comes to nothing is an error."""

import asyncio
import os
from pathlib import PurePath

from flexd.host.contract import Cgroups, HostError, Processes
from flexd.runtime.contract import RunningContainer

# A program that cannot work (a library missing, wrong arguments) ends within a few milliseconds.
_GRACE_S = 0.01
# systemd gives up before it makes init.scope, 5-25 ms after its start, if the kernel refuses it an inotify instance; on
# a machine that starts many containers at once that takes longer. Some configurations never make one.
_SYSTEMD_GRACE_S = 0.3
# Each poll is a turn of a thread, taken from a container that wants to boot.
_POLL_S = 0.004


async def survives(processes: Processes, cgroups: Cgroups, container: RunningContainer) -> bool:
    """False if init ends; then its monitor is gone too."""
    ended = asyncio.create_task(processes.wait_exit(container.init))
    try:
        if not await _ends_early(ended, cgroups, container):
            return True
    finally:
        ended.cancel()
    await processes.wait_exit(container.monitor)
    return False


async def _ends_early(ended: "asyncio.Task[None]", cgroups: Cgroups, container: RunningContainer) -> bool:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    while loop.time() - begin < _SYSTEMD_GRACE_S:
        done, _ = await asyncio.wait({ended}, timeout=_POLL_S)
        if done:
            return True
        if await _manages_units(cgroups, container):
            return False
        if loop.time() - begin > _GRACE_S and not await asyncio.to_thread(_is_systemd, container.init.pid):
            return False
    return False


async def _manages_units(cgroups: Cgroups, container: RunningContainer) -> bool:
    """systemd has moved into its own scope: it has all that it needs to run."""
    try:
        return bool(await cgroups.processes(f"{container.cgroup}/init.scope"))
    except HostError:
        return False


def _is_systemd(pid: int) -> bool:
    try:
        return PurePath(os.readlink(f"/proc/{pid}/exe")).name == "systemd"
    except OSError:
        return False
