# SPDX-License-Identifier: Apache-2.0
"""The real host: every facet on the kernel this daemon runs on."""

from flexd.host.btrfs import LinuxBtrfs
from flexd.host.cgroups import LinuxCgroups
from flexd.host.criu import LinuxCriu
from flexd.host.files import LinuxFiles
from flexd.host.firewall import LinuxFirewall
from flexd.host.links import LinuxLinks
from flexd.host.machine import LinuxMachine
from flexd.host.mounts import LinuxMounts
from flexd.host.nodes import LinuxNodes
from flexd.host.processes import LinuxProcesses
from flexd.host.quotas import LinuxQuotas
from flexd.host.threads import Threads


class LinuxHost:
    """`flexd.host.contract.Host`. Holds threads and a few fds, so `close` it; processes and mounts stay."""

    def __init__(self) -> None:
        self._threads = Threads()
        self.processes = LinuxProcesses(self._threads)
        self.mounts = LinuxMounts(self._threads, self.processes)
        self.files = LinuxFiles(self._threads, self.processes)
        self.quotas = LinuxQuotas(self._threads)
        self.btrfs = LinuxBtrfs(self._threads, self.processes)
        self.nodes = LinuxNodes(self._threads)
        self.cgroups = LinuxCgroups(self._threads)
        self.links = LinuxLinks(self._threads, self.processes)
        self.firewall = LinuxFirewall(self.processes)
        self.criu = LinuxCriu(self._threads, self.processes)
        self.machine = LinuxMachine(self._threads, self.processes, self.mounts, self.cgroups)

    async def close(self) -> None:
        self.mounts.close()
        self._threads.close()
