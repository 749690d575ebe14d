# SPDX-License-Identifier: Apache-2.0
"""Puts the limits of `limits.py` and the CPUs of `cpus.py` onto containers, at start and live."""

from collections.abc import Mapping

from flexd.api.errors import BadRequest
from flexd.host.contract import Host, HostError
from flexd.instances.cpus import balance, check_pinning, format_set, parse_set
from flexd.instances.limits import Setting, changes, settings
from flexd.instances.record import Config
from flexd.operations.undo import Undo
from flexd.runtime.contract import RunningContainer


class Limiter:
    """One per daemon; remembers only which CPUs it gave to whom."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._given: dict[str, frozenset[int]] = {}

    async def settings(self, config: Config) -> list[Setting]:
        """The cgroup files for an expanded configuration; BadRequest for a limit that this host cannot hold."""
        layout = await self._host.cgroups.layout()
        total = await self._host.machine.memory_bytes()
        check_pinning(config.get("limits.cpu", ""), await self._online())
        if config.get("limits.cpu") and "cpuset" not in layout.controllers:
            raise BadRequest("Failed setting limits.cpu: this host's kernel has no cgroup controller cpuset")
        return settings(config, layout, total_memory_bytes=total)

    async def apply(self, container: RunningContainer, old: Config, new: Config) -> None:
        """Change the limits of a running container; what was written is taken back if a later one fails."""
        before, after = await self.settings(old), await self.settings(new)
        async with Undo() as undo:
            for setting in changes(before, after):
                await self._write(container, setting)
                undo.push(self._put_back, container, changes(after, before), setting.file)

    async def _write(self, container: RunningContainer, setting: Setting) -> None:
        try:
            await self._host.cgroups.write(container.cgroup, setting.controller, setting.file, setting.value)
        except HostError as error:
            raise BadRequest(
                f'Failed setting {setting.file} of instance "{container.name}" to {setting.value}: {error}'
            ) from error

    async def _put_back(self, container: RunningContainer, back: list[Setting], file: str) -> None:
        for setting in back:
            if setting.file == file:
                await self._write(container, setting)

    async def _online(self) -> frozenset[int]:
        return parse_set(await self._host.machine.online_cpus())

    async def rebalance(self, running: Mapping[str, tuple[RunningContainer, str]]) -> None:
        """Spread the containers (runtime name -> container and its `limits.cpu`) over the CPUs, now that one came,
        went or changed. Writes only what differs from before."""
        self._given = {name: cpus for name, cpus in self._given.items() if name in running}
        if not self._given and not any(limit for _, limit in running.values()):
            return
        online = await self._online()
        for name, cpus in balance({name: limit for name, (_, limit) in running.items()}, online).items():
            if cpus == self._given.get(name, online):
                continue
            container = running[name][0]
            await self._write(container, Setting("cpuset", "cpuset.cpus", format_set(cpus)))
            self._given[name] = cpus
