# SPDX-License-Identifier: Apache-2.0
"""A whole daemon on a fake host and a fake runtime, with pool, network and profile as `admin init` makes them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from flexd.api.errors import FlexdError
from flexd.api.instance import InstanceSource, InstancesPost
from flexd.api.instance_state import InstanceStatePut
from flexd.api.network import NetworksPost
from flexd.api.profile import ProfilePut
from flexd.api.storage_pool import StoragePoolsPost
from flexd.daemon import Daemon, open_daemon
from flexd.host.fake.host import FakeHost
from flexd.host.terminals import HostTerminals
from flexd.operations.contract import Plan
from flexd.operations.operations import Operation
from flexd.runtime.fake import FakeRuntime
from tests.contract.network.house import fake_host

PROJECT = "default"
ROOT = {"type": "disk", "path": "/", "pool": "default"}
NIC = {"type": "nic", "network": "flexbr0", "name": "eth0"}


class House:
    """The daemon, its fakes, and the requests that tests make again and again."""

    def __init__(self, daemon: Daemon, host: FakeHost, runtime: FakeRuntime) -> None:
        self.daemon, self.host, self.runtime = daemon, host, runtime

    async def done(self, operation: Operation) -> None:
        """Wait; a failed operation raises its error."""
        await operation.wait()
        if operation.status != "Success":
            raise FlexdError(operation.err)

    async def create(self, name: str = "c1", **fields: object) -> None:
        post = InstancesPost(name=name, source=InstanceSource(type="none"), **fields)  # type: ignore[arg-type]
        await self.done(await self.daemon.instances.create(PROJECT, post))

    async def act(self, action: str, name: str = "c1", **fields: object) -> None:
        put = InstanceStatePut(action=action, **fields)  # type: ignore[arg-type]
        await self.done(await self.daemon.lifecycle.change_state(PROJECT, name, put))

    async def delete(self, name: str = "c1") -> None:
        await self.done(await self.daemon.instances.delete(PROJECT, name))

    def status(self, name: str = "c1") -> str:
        return self.daemon.instances.show(PROJECT, name).status

    def host_state(self) -> dict[str, object]:
        """What a failed request must leave as it was: mounts, links, documents."""
        return {
            "mounts": sorted(str(mount.info.target) for mount in self.host.mounts.table),
            "links": sorted(self.host.links.by_name),
            "instances": self.daemon.instances.names(PROJECT),
            "volumes": sorted(v.name for v in self.daemon.volumes.show_all("default", PROJECT)),
        }


async def _open(directory: Path, host: FakeHost, runtime: FakeRuntime, *, rebooted: bool) -> Daemon:
    daemon = await open_daemon(directory, host=host, runtime=runtime, terminals=HostTerminals())
    await daemon.start(host_rebooted=rebooted)
    return daemon


@asynccontextmanager
async def house(directory: Path) -> AsyncIterator[House]:
    """A daemon ready for instances."""
    host = fake_host()
    runtime = FakeRuntime(directory / "runtime")
    daemon = await _open(directory / "state", host, runtime, rebooted=True)
    await daemon.pools.create(StoragePoolsPost(name="default", driver="overlay"))
    config = {"ipv4.address": "198.18.1.1/24", "ipv6.address": "none"}
    await daemon.networks.create(NetworksPost(name="flexbr0", config=config))
    await daemon.profiles.update(PROJECT, "default", ProfilePut(devices={"root": ROOT, "eth0": NIC}))
    home = House(daemon, host, runtime)
    try:
        yield home
    finally:
        await home.daemon.close()


async def interrupt(home: House, plan: Plan, position: int) -> None:
    """Leave what a daemon leaves that is killed at the beginning of a step: those before are done, and the journal's
    row."""
    journal = home.daemon.journal
    for step in plan.steps[:position]:
        await journal._action(plan, step).do(step.args, lambda _metadata: None)
    statement = "INSERT INTO plan (token, plan, state, position) VALUES ('interrupted', ?, 'doing', ?)"
    await journal._write(statement, msgspec.json.encode(plan), position)


async def restart(home: House, directory: Path, *, rebooted: bool = False) -> None:
    """End the daemon and start it again on the same host."""
    await home.daemon.close()
    if rebooted:
        await home.host.reboot()
    home.daemon = await _open(directory / "state", home.host, home.runtime, rebooted=rebooted)
