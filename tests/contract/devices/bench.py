# SPDX-License-Identifier: Apache-2.0
"""A running container and an entry of every kind, on fakes or on this machine."""

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from flexd.api import resources as api
from flexd.devices.contract import DeviceContext, Kind, Parts
from flexd.devices.devices import Devices
from flexd.devices.hotplug import Hotplug
from flexd.devices.keeper import Keeper
from flexd.host.contract import Completed, Host, Link, Node
from flexd.host.fake.host import FakeHost
from flexd.host.linux import LinuxHost
from flexd.network.networks import Networks
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.place import daemon_id
from flexd.projects.projects import Projects
from flexd.runtime.contract import RunningContainer, Runtime
from flexd.runtime.fake import FakeRuntime
from flexd.runtime.lxc import LxcRuntime
from flexd.storage.pools import Pools
from tests.contract.network.house import MemoryMirror
from tests.contract.runtime.places import IDS, make_root

NAME = "c1"
# Names of this run alone: what a killed run left behind must not stop the next.
_RUN = f"{os.getpid():x}"
BRIDGE, CARD, CARD_PEER, HOST_END = (f"fxd{what}{_RUN}" for what in ("b", "c", "p", "h"))
DONE = Completed(0, b"[]", b"")


class Bench:
    """`real`: on this machine, where links begin with `fxd`."""

    def __init__(
        self, host: Host, runtime: Runtime, devices: Devices, container: RunningContainer, directory: Path
    ) -> None:
        self.host, self.runtime, self.devices, self.container = host, runtime, devices, container
        self.directory = directory
        self.port = _free_port()

    @property
    def real(self) -> bool:
        return isinstance(self.host, LinuxHost)

    def entry(self, name: str) -> dict[str, str]:
        """A device of a kind ("nic-bridged"), as people write it."""
        kind, _, subtype = name.partition("-") if name.startswith(("nic-", "infiniband-")) else (name, "", "")
        nic = {"nictype": subtype, "name": "eth7"}
        special: dict[str, dict[str, str]] = {
            "disk": {"source": str(self.directory / "source"), "path": "/srv/x", "shift": "true", "readonly": "true"},
            "nic-bridged": {
                **nic,
                "parent": BRIDGE,
                "limits.max": "10Mbit",
                "limits.priority": "7",
                "security.mac_filtering": "true",
                "security.ipv4_filtering": "true",
                "security.ipv6_filtering": "true",
                "security.port_isolation": "true",
                "ipv4.address": "198.18.40.7",
                "ipv6.address": "fd42:40::7",
                "ipv4.routes": "198.18.41.0/24",
                "queue.tx.length": "500",
                "mtu": "1400",
            },
            "nic-p2p": {**nic, "limits.ingress": "5Mbit", "ipv4.routes": "198.18.42.0/24"},
            "nic-macvlan": {**nic, "parent": CARD, "mode": "private"},
            "nic-ipvlan": {**nic, "parent": CARD, "ipv4.address": "198.18.40.8"},
            "nic-routed": {**nic, "ipv4.address": "198.18.40.9", "ipv4.routes": "198.18.43.0/24"},
            "nic-physical": {**nic, "parent": CARD, "mtu": "1400", "hwaddr": "00:16:3e:00:00:40"},
            "nic-sriov": {**nic, "parent": CARD},
            "infiniband-physical": {"nictype": "physical", "parent": CARD, "name": "ib7"},
            "infiniband-sriov": {"nictype": "sriov", "parent": CARD, "name": "ib7"},
            "proxy": {"listen": f"tcp:127.0.0.1:{self.port}", "connect": "tcp:127.0.0.1:7"},
            "unix-char": {"source": str(self.directory / "null"), "path": "/dev/given", "mode": "0600", "uid": "1000"},
            "unix-block": {"source": str(self.directory / "loop"), "path": "/dev/block"},
            "unix-hotplug": {"vendorid": "0403", "productid": "6001"},
            "usb": {"vendorid": "0403"},
            "tpm": {"path": "/dev/tpm0", "pathrm": "/dev/tpmrm0"},
        }
        return {"type": kind, **special.get(name, {})}

    def context(self, entry: Mapping[str, str], volatile: Mapping[str, str]) -> DeviceContext:
        return DeviceContext(
            project="default",
            instance=NAME,
            runtime_name=NAME,
            device="dev.7",
            config=dict(entry),
            volatile=dict(volatile),
            idmap=IDS,
            directory=self.directory / "devices",
        )

    async def prepare(self, kind: Kind, entry: Mapping[str, str]) -> DeviceContext:
        """As a start does: values made up, then what must be remembered of the host."""
        known = kind.new_volatile("dev.7", entry, {})
        if "host_name" in known:
            known["host_name"] = HOST_END
        return self.context(entry, known | await kind.volatile_at_start(self.context(entry, known)))

    async def state(self) -> dict[str, object]:
        """All that devices may leave on the host."""
        links = [link for link in await self.host.links.all() if link.name.startswith(("fxd", "fx", "mac", "ipv"))]
        tables = [name for _, name in await self.host.firewall.tables() if name in self.own_tables()]
        return {
            "links": sorted((link.name, link.mtu, link.hwaddr) for link in links),
            "tables": sorted(tables),
            "mounts": [str(mount.target) for mount in await self.host.mounts.below(self.directory / "devices")],
            "files": sorted(
                path.name
                for path in (self.directory / "devices").glob("*")
                if path.suffix != ".state"  # a TPM's, which is for good
            ),
            "proxies": await self.runtime.proxy_runs(self.directory / "devices/proxy.dev.7"),
        }

    def own_tables(self) -> set[str]:
        context = self.context({}, {})
        return {f"flexd_{kind.token(context)}" for kind in self.devices.kinds()}

    async def inside(self) -> dict[str, object]:
        """What the container has of the host beside what it started with."""
        links = (await self.host.links.inside([self.container.init.pid]))[0]
        mounts: list[str] = []
        if isinstance(self.runtime, FakeRuntime):
            mounts = sorted(self.runtime.mounts_of(NAME))
        else:
            table = Path(f"/proc/{self.container.init.pid}/mountinfo").read_text().splitlines()
            mounts = sorted(line.split()[4].lstrip("/") for line in table)
        return {"links": sorted(link.name for link in links if link.name != "lo"), "mounts": mounts}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _devices(host: Host, runtime: Runtime, directory: Path) -> tuple[Devices, Hotplug, Journal]:
    mirror, locks, events = MemoryMirror(), Locks(), Events()
    journal = await Journal.open(directory / "journal.db")
    pools = Pools(host=host, mirror=mirror, journal=journal, locks=locks, events=events, directory=directory / "pools")
    projects = Projects(mirror, locks)
    await projects.start()
    networks = Networks(
        host=host, mirror=mirror, projects=projects, locks=locks, events=events, directory=directory / "networks"
    )
    hotplug = Hotplug(host)
    return Devices(Parts(host, pools, networks, runtime, hotplug, Keeper(), daemon_id(directory))), hotplug, journal


def _fake_host(directory: Path) -> FakeHost:
    """A machine that has everything."""
    host = FakeHost()
    for program in ("ip", "tc", "bridge", "nft", "unshare", "nsenter"):
        host.processes.answer(program, DONE)
    host.processes.answer("swtpm", DONE)
    host.processes.outputs["swtpm"] = b"New TPM device: /dev/tpm3 (major/minor = 253/3)\n"
    host.nodes.by_path[Path("/dev/tpmrm3")] = Node("c", 252, 3)
    host.links.add(Link(BRIDGE, 900, "bridge", "02:00:00:00:09:00", 1500, up=True))
    host.links.add(Link(CARD, 901, "", "02:00:00:00:09:01", 1500))
    host.links.add(Link("fxdvf0", 902, "", "02:00:00:00:09:02", 1500))
    host.links.functions_of[CARD] = {0: "fxdvf0"}
    host.nodes.by_path[directory / "null"] = Node("c", 1, 3)
    host.nodes.by_path[directory / "loop"] = Node("b", 7, 200)
    host.nodes.usb["0403", "6001"] = {"/dev/ttyUSB0": Node("c", 188, 0), "/dev/bus/usb/001/002": Node("c", 189, 1)}
    host.nodes.classes |= {"drm", "infiniband"}
    host.nodes.by_path[Path("/dev/vtpmx")] = Node("c", 10, 224)
    drm = api.ResourcesGPUCardDRM(
        card_name="card0", card_device="226:0", id=0, render_name="renderD128", render_device="226:128"
    )
    host.machine.gpu = api.ResourcesGPU([api.ResourcesGPUCard(drm=drm, vendor_id="8086", product_id="1912")], 1)
    return host


@asynccontextmanager
async def fake_bench(directory: Path) -> AsyncIterator[Bench]:
    host, runtime = _fake_host(directory), FakeRuntime(directory / "runtime")
    (directory / "source").mkdir()
    for name in ("null", "loop"):
        (directory / name).touch()
    make_root(directory / "root", busybox=None)
    devices, hotplug, journal = await _devices(host, runtime, directory)
    container = await runtime.start(_spec(directory))
    host.cgroups.make(container.cgroup)
    yield Bench(host, runtime, devices, container, directory)
    await hotplug.close()
    await journal.close()
    await host.close()


def _spec(directory: Path):
    from flexd.runtime.contract import ContainerSpec

    return ContainerSpec(NAME, directory / "root", IDS)


@asynccontextmanager
async def real_bench(directory: Path) -> AsyncIterator[Bench]:
    host = LinuxHost()
    runtime = LxcRuntime(host=host, directory=directory / "containers", log_directory=directory / "logs")
    _make_real(directory)
    devices, hotplug, journal = await _devices(host, runtime, directory)
    await host.links.create_bridge(BRIDGE, hwaddr="00:16:3e:00:09:00")
    await host.links.set_addresses(BRIDGE, ["198.18.40.1/24"])
    await host.links.set_up(BRIDGE)
    await host.links.create_veth(CARD, CARD_PEER)
    container = await runtime.start(_spec(directory))
    try:
        yield Bench(host, runtime, devices, container, directory)
    finally:
        await runtime.kill(container)
        await hotplug.close()
        await journal.close()
        await runtime.close()
        for link in (BRIDGE, CARD, CARD_PEER, HOST_END):
            await host.links.delete(link)
        await host.close()


def _make_real(directory: Path) -> None:
    make_root(directory / "root", busybox=Path(shutil.which("busybox") or ""))
    (directory / "source").mkdir()
    os.mknod(directory / "null", 0o666 | 0o020000, os.makedev(1, 3))
    os.mknod(directory / "loop", 0o600 | 0o060000, os.makedev(7, 200))


def unmount_all(directory: Path) -> None:
    """After a test that failed."""
    targets = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in reversed([each for each in targets if each.startswith(f"{directory}/")]):
        subprocess.run(["umount", "-l", target], check=False)
