# SPDX-License-Identifier: Apache-2.0
"""Links and nftables tables in memory, with the kernel's rules about names, pairs and bridges."""

import asyncio
import errno
import itertools
import os
from collections.abc import Sequence
from ipaddress import ip_interface
from pathlib import Path

import msgspec

from flexd.host.contract import HostError, Link, LinkAddress, Route
from flexd.host.fake.recorder import Recorder
from flexd.host.firewall import checked_table

_DEFAULT_MTU = 1500
_LOOPBACK = Link(
    name="lo",
    index=1,
    hwaddr="00:00:00:00:00:00",
    mtu=65536,
    up=True,
    running=True,
    loopback=True,
    addresses=(LinkAddress("inet", "127.0.0.1", 8, "local"), LinkAddress("inet6", "::1", 128, "local")),
)


class FakeLinks:
    def __init__(self, recorder: Recorder) -> None:
        self.by_name: dict[str, Link] = {"lo": _LOOPBACK}
        self.inside_of: dict[int, list[Link]] = {}  # by pid: what `inside` tells
        self.functions_of: dict[str, dict[int, str]] = {}  # SR-IOV: by card
        self.more_routes: list[Route] = []  # beside those of the links' own addresses
        self.neighbours_of: dict[str, list[tuple[str, str]]] = {}
        self.sysctls: dict[tuple[str, str, str], str] = {}
        self._recorder = recorder
        self._indices = itertools.count(2)

    def clear(self) -> None:
        """As after a boot: only the loopback is there."""
        for kept in (self.by_name, self.inside_of, self.neighbours_of, self.sysctls):
            kept.clear()
        self.by_name["lo"] = _LOOPBACK

    def add(self, link: Link) -> None:
        """For tests: a link of the host's own (eth0)."""
        self.by_name[link.name] = link

    async def all(self) -> list[Link]:
        self._recorder.note_reading("links.all")
        return sorted(self.by_name.values(), key=lambda link: link.index)

    async def names(self) -> dict[int, str]:
        self._recorder.note_reading("links.names")
        return {link.index: link.name for link in self.by_name.values()}

    async def get(self, name: str) -> Link | None:
        self._recorder.note_reading("links.get", name)
        return self.by_name.get(name)

    async def virtual_functions(self, name: str) -> dict[int, str]:
        self._recorder.note_reading("links.virtual_functions", name)
        return {
            number: link if link in self.by_name else "" for number, link in self.functions_of.get(name, {}).items()
        }

    async def routes(self) -> list[Route]:
        self._recorder.note_reading("links.routes")
        own = [
            Route(str(ip_interface(f"{each.address}/{each.prefix}").network), link.name)
            for link in self.by_name.values()
            if link.up and not link.loopback
            for each in link.addresses
        ]
        return own + self.more_routes

    async def create_bridge(self, name: str, *, hwaddr: str = "", mtu: int = 0) -> None:
        self._recorder.note("links.create_bridge", name)
        self._claim(f"create bridge {name}", name)
        index = next(self._indices)
        self.add(Link(name, index, "bridge", hwaddr or _hwaddr(index), mtu or _DEFAULT_MTU))

    async def create_veth(
        self, name: str, peer: str, *, hwaddr: str = "", mtu: int = 0, index: int = 0, peer_hwaddr: str = ""
    ) -> None:
        self._recorder.note("links.create_veth", name, peer)
        what = f"create veth pair {name} and {peer}"
        self._claim(what, name)
        self._claim(what, peer)
        first, second = index or next(self._indices), next(self._indices)
        self.add(Link(name, first, "veth", hwaddr or _hwaddr(first), mtu or _DEFAULT_MTU, peer_index=second))
        self.add(Link(peer, second, "veth", peer_hwaddr or _hwaddr(second), mtu or _DEFAULT_MTU, peer_index=first))

    async def create_macvlan(
        self, name: str, parent: str, *, mode: str = "bridge", hwaddr: str = "", mtu: int = 0
    ) -> None:
        self._recorder.note("links.create_macvlan", name, parent, mode)
        what = f"create macvlan {name} on {parent}"
        self._claim(what, name)
        on, index = self._link(what, parent), next(self._indices)
        self.add(Link(name, index, "macvlan", hwaddr or _hwaddr(index), mtu or on.mtu))

    async def create_ipvlan(self, name: str, parent: str, *, mode: str = "l3s") -> None:
        self._recorder.note("links.create_ipvlan", name, parent, mode)
        what = f"create ipvlan {name} on {parent}"
        self._claim(what, name)
        on = self._link(what, parent)
        self.add(Link(name, next(self._indices), "ipvlan", on.hwaddr, on.mtu))

    async def delete(self, name: str) -> None:
        self._recorder.note("links.delete", name)
        gone = self.by_name.pop(name, None)
        if gone is None:
            return
        for link in list(self.by_name.values()):
            if link.master_index == gone.index:
                self._put(link, master_index=0)
            if gone.kind == "veth" and link.index == gone.peer_index:
                del self.by_name[link.name]
        for links in self.inside_of.values():
            links[:] = [link for link in links if gone.kind != "veth" or link.index != gone.peer_index]

    async def move(self, name: str, namespace: Path, new_name: str) -> None:
        self._recorder.note("links.move", name, namespace, new_name)
        what = f"move link {name} to {namespace} as {new_name}"
        link = self._link(what, name)
        there = self.inside_of.setdefault(await asyncio.to_thread(_owner, namespace), [])
        if any(each.name == new_name for each in there):
            raise HostError(f"{what}: File exists (rtnetlink EEXIST)", errno.EEXIST)
        del self.by_name[name]
        there.append(
            msgspec.structs.replace(link, name=new_name, up=False, running=False, master_index=0, addresses=())
        )

    async def fetch(self, namespace: Path, name: str, new_name: str) -> bool:
        self._recorder.note("links.fetch", namespace, name, new_name)
        there = self.inside_of.get(await asyncio.to_thread(_owner, namespace), [])
        link = next((each for each in there if each.name == name), None)
        if link is None:
            return False
        self._claim(f"move link {name} from {namespace} as {new_name}", new_name)
        there.remove(link)
        self._put(link, name=new_name, up=False, running=False, addresses=())
        return True

    async def rename(self, name: str, new_name: str) -> None:
        self._recorder.note("links.rename", name, new_name)
        what = f"rename link {name} to {new_name}"
        link = self._link(what, name)
        self._claim(what, new_name)
        del self.by_name[name]
        self._put(link, name=new_name)

    async def set_up(self, name: str, up: bool = True) -> None:
        self._recorder.note("links.set_up", name, up)
        self._put(self._link(f"set link {name} {'up' if up else 'down'}", name), up=up, running=up)

    async def set_mtu(self, name: str, mtu: int) -> None:
        self._recorder.note("links.set_mtu", name, mtu)
        self._put(self._link(f"set the MTU of link {name} to {mtu}", name), mtu=mtu)

    async def set_hwaddr(self, name: str, hwaddr: str) -> None:
        self._recorder.note("links.set_hwaddr", name, hwaddr)
        self._put(self._link(f"set the address of link {name} to {hwaddr}", name), hwaddr=hwaddr)

    async def set_master(self, name: str, bridge: str | None) -> None:
        self._recorder.note("links.set_master", name, bridge)
        what = f"attach link {name} to bridge {bridge}" if bridge else f"detach link {name} from its bridge"
        master = self._link(what, bridge).index if bridge else 0
        self._put(self._link(what, name), master_index=master)

    async def set_addresses(self, name: str, addresses: Sequence[str]) -> None:
        self._recorder.note("links.set_addresses", name, *addresses)
        link = self._link(f"set the addresses of link {name}", name)
        kept = [each for each in link.addresses if each.scope != "global"]
        given = [ip_interface(address) for address in addresses]
        made = [
            LinkAddress("inet" if each.version == 4 else "inet6", str(each.ip), each.network.prefixlen, "global")
            for each in given
        ]
        self._put(link, addresses=(*kept, *made))

    async def set_sysctl(self, name: str, family: str, key: str, value: str) -> None:
        self._recorder.note("links.set_sysctl", name, family, key, value)
        if name not in ("all", "default"):
            self._link(f"set net.{family}.conf.{name}.{key}", name)
        self.sysctls[name, family, key] = value

    async def get_sysctl(self, name: str, family: str, key: str) -> str | None:
        self._recorder.note_reading("links.get_sysctl", name, family, key)
        if name not in ("all", "default") and name not in self.by_name:
            return None
        return self.sysctls.get((name, family, key), "0")

    async def neighbours(self, name: str) -> list[tuple[str, str]]:
        self._recorder.note_reading("links.neighbours", name)
        self._link(f"list neighbours of link {name}", name)
        return self.neighbours_of.get(name, [])

    async def inside(self, pids: Sequence[int]) -> list[list[Link]]:
        self._recorder.note_reading("links.inside", *pids)
        return [self.inside_of.get(pid, []) for pid in pids]

    def _link(self, what: str, name: str) -> Link:
        if name not in self.by_name:
            raise HostError(f'{what}: no link "{name}" (rtnetlink ENODEV)', errno.ENODEV)
        return self.by_name[name]

    def _claim(self, what: str, name: str) -> None:
        if name in self.by_name:
            raise HostError(f"{what}: File exists (rtnetlink EEXIST)", errno.EEXIST)

    def _put(self, link: Link, **changes: object) -> None:
        changed = msgspec.structs.replace(link, **changes)
        self.by_name[changed.name] = changed


def _owner(namespace: Path) -> int:
    """The process whose network namespace a path names; a bind mount of it is a link here."""
    words = os.path.realpath(namespace).split("/")
    return int(words[2]) if words[1] == "proc" and words[2].isdecimal() else 0


def _hwaddr(index: int) -> str:
    return f"02:00:00:00:{index >> 8:02x}:{index & 0xFF:02x}"


class FakeFirewall:
    def __init__(self, recorder: Recorder) -> None:
        self.bodies: dict[tuple[str, str], str] = {}
        self.fault: str | None = None
        self._recorder = recorder

    async def available(self) -> str | None:
        self._recorder.note_reading("firewall.available")
        return self.fault

    async def replace_table(self, family: str, name: str, body: str) -> None:
        self._recorder.note("firewall.replace_table", family, name)
        checked_table(family, name)
        self.bodies[family, name] = body

    async def delete_table(self, family: str, name: str) -> None:
        self._recorder.note("firewall.delete_table", family, name)
        self.bodies.pop((family, name), None)

    async def tables(self) -> list[tuple[str, str]]:
        self._recorder.note_reading("firewall.tables")
        return list(self.bodies)
