# SPDX-License-Identifier: Apache-2.0
"""The fake host: `flexd.host.contract.Host` with its state in memory and its trees of files in real directories."""

from flexd.host.fake.btrfs import FakeBtrfs
from flexd.host.fake.cgroups import FakeCgroups
from flexd.host.fake.criu import FakeCriu
from flexd.host.fake.files import FakeFiles, FakeQuotas
from flexd.host.fake.links import FakeFirewall, FakeLinks
from flexd.host.fake.machine import FakeMachine
from flexd.host.fake.mounts import FakeMounts
from flexd.host.fake.nodes import FakeNodes
from flexd.host.fake.processes import FakeProcesses
from flexd.host.fake.recorder import Call, Recorder
from flexd.host.threads import Threads


class FakeHost:
    """Each facet shows what was done to it (`host.links.by_name`, `host.firewall.bodies`, `host.mounts.table`, …)."""

    def __init__(self) -> None:
        self._threads = Threads()
        self.recorder = Recorder()
        self.processes = FakeProcesses(self.recorder, self._threads)
        self.mounts = FakeMounts(self.recorder, self._threads)
        self.files = FakeFiles(self.recorder, self._threads, self.processes, self.mounts)
        self.quotas = FakeQuotas(self.recorder, self.files)
        self.btrfs = FakeBtrfs(self.recorder, self.files)
        self.nodes = FakeNodes(self.recorder, self._threads)
        self.cgroups = FakeCgroups(self.recorder)
        self.links = FakeLinks(self.recorder)
        self.firewall = FakeFirewall(self.recorder)
        self.criu = FakeCriu(self.recorder)
        self.machine = FakeMachine(self.recorder)

    @property
    def calls(self) -> list[Call]:
        """What changed something, or tried to; readings are in `recorder.readings`."""
        return self.recorder.calls

    def fail(self, *, method: str, error: BaseException, after: int = 0, times: int | None = None) -> None:
        """`host.fail(method="mounts.overlay", error=HostError("no", errno.EINVAL))`; see `Recorder.fail`."""
        self.recorder.fail(method, error, after=after, times=times)

    def heal(self) -> None:
        """Forget all failures asked for."""
        self.recorder.heal()

    async def reboot(self) -> None:
        """What a restart of the machine does: no process, mount, link, table or cgroup is left; files stay."""
        self.processes.end_all()
        await self.mounts.unmount_all()
        self.links.clear()
        self.firewall.bodies.clear()
        self.cgroups.clear()
        self.machine.new_boot()

    async def close(self) -> None:
        self.processes.end_all()
        await self.mounts.close()
        self._threads.close()
