# SPDX-License-Identifier: Apache-2.0
"""Network links of this host, and those inside containers, by rtnetlink(7).

The links of another network namespace are asked for by its id (rtnetlink's IFLA_TARGET_NETNSID, Linux 4.20), from our
own: no process has to enter it.
"""

import errno
import os
import socket
from collections.abc import Sequence
from ipaddress import ip_interface
from pathlib import Path

from flexd.host import netlink, syscalls
from flexd.host.contract import HostError, Link, LinkAddress, Processes, Route
from flexd.host.threads import Threads

_SYSCTLS = Path("/proc/sys/net")


class LinuxLinks:
    def __init__(self, threads: Threads, processes: Processes) -> None:
        self._threads = threads
        self._processes = processes

    async def all(self) -> list[Link]:
        return await self._threads.run(read_links)

    async def names(self) -> dict[int, str]:
        return await self._threads.run(_read_names)

    async def get(self, name: str) -> Link | None:
        return await self._threads.run(_read_link, name)

    async def virtual_functions(self, name: str) -> dict[int, str]:
        return await self._threads.run(_read_virtual_functions, Path("/sys/class/net") / name / "device")

    async def routes(self) -> list[Route]:
        return await self._threads.run(_read_routes)

    async def create_bridge(self, name: str, *, hwaddr: str = "", mtu: int = 0) -> None:
        body = netlink.IFINFO.pack(0, 0, 0, 0, 0) + _naming(name, hwaddr, mtu) + _info("bridge")
        await self._create(f"create bridge {name}", body)

    async def create_veth(
        self, name: str, peer: str, *, hwaddr: str = "", mtu: int = 0, index: int = 0, peer_hwaddr: str = ""
    ) -> None:
        other = netlink.IFINFO.pack(0, 0, 0, 0, 0) + _naming(peer, peer_hwaddr, mtu)
        pair = netlink.attribute(netlink.VETH_INFO_PEER, other)
        body = netlink.IFINFO.pack(0, 0, index, 0, 0) + _naming(name, hwaddr, mtu) + _info("veth", pair)
        await self._create(f"create veth pair {name} and {peer}", body)

    async def create_macvlan(
        self, name: str, parent: str, *, mode: str = "bridge", hwaddr: str = "", mtu: int = 0
    ) -> None:
        what = f"create macvlan {name} on {parent}"
        index = await self._threads.run(link_index, what, parent)
        data = netlink.u32(netlink.IFLA_MACVLAN_MODE, netlink.MACVLAN_MODES[mode])
        body = netlink.IFINFO.pack(0, 0, 0, 0, 0) + _naming(name, hwaddr, mtu) + _info("macvlan", data)
        await self._create(what, body + netlink.u32(netlink.IFLA_LINK, index))

    async def create_ipvlan(self, name: str, parent: str, *, mode: str = "l3s") -> None:
        what = f"create ipvlan {name} on {parent}"
        index = await self._threads.run(link_index, what, parent)
        data = netlink.u16(netlink.IFLA_IPVLAN_MODE, netlink.IPVLAN_MODES[mode])
        body = netlink.IFINFO.pack(0, 0, 0, 0, 0) + _naming(name, "", 0) + _info("ipvlan", data)
        await self._create(what, body + netlink.u32(netlink.IFLA_LINK, index))

    async def delete(self, name: str) -> None:
        try:
            await self._change(f"delete link {name}", name, netlink.RTM_DELLINK)
        except HostError as error:
            if error.errno != errno.ENODEV:
                raise

    async def rename(self, name: str, new_name: str) -> None:
        renamed = netlink.string(netlink.IFLA_IFNAME, new_name)
        await self._change(f"rename link {name} to {new_name}", name, netlink.RTM_SETLINK, renamed)

    async def move(self, name: str, namespace: Path, new_name: str) -> None:
        what = f"move link {name} to {namespace} as {new_name}"
        fd = await self._threads.open(_open_namespace, what, namespace)
        try:
            body = netlink.u32(netlink.IFLA_NET_NS_FD, fd) + netlink.string(netlink.IFLA_IFNAME, new_name)
            # A link that is up cannot be renamed, which a move to another name is.
            await self._change(what, name, netlink.RTM_SETLINK, mask=netlink.IFF_UP)
            await self._change(what, name, netlink.RTM_SETLINK, body)
        except HostError:
            # The kernel moves first and renames then, so with the new name taken it is there under the old one.
            await self.fetch(namespace, name, name)
            raise
        finally:
            os.close(fd)

    async def fetch(self, namespace: Path, name: str, new_name: str) -> bool:
        # rtnetlink moves links out of the namespace that it is spoken to in; ip(8) goes there for us.
        enter = ["nsenter", f"--net={namespace}", "--", "ip", "link"]
        there = await self._processes.run([*enter, "show", "dev", name], check=False)
        if there.returncode != 0:
            return False
        await self._processes.run([*enter, "set", "dev", name, "down"])
        await self._processes.run([*enter, "set", "dev", name, "netns", str(os.getpid()), "name", new_name])
        return True

    async def set_up(self, name: str, up: bool = True) -> None:
        what = f"set link {name} {'up' if up else 'down'}"
        await self._change(what, name, netlink.RTM_SETLINK, flags=netlink.IFF_UP if up else 0, mask=netlink.IFF_UP)

    async def set_mtu(self, name: str, mtu: int) -> None:
        body = netlink.u32(netlink.IFLA_MTU, mtu)
        await self._change(f"set the MTU of link {name} to {mtu}", name, netlink.RTM_SETLINK, body)

    async def set_hwaddr(self, name: str, hwaddr: str) -> None:
        body = netlink.attribute(netlink.IFLA_ADDRESS, netlink.hwaddr_bytes(hwaddr))
        await self._change(f"set the address of link {name} to {hwaddr}", name, netlink.RTM_SETLINK, body)

    async def set_master(self, name: str, bridge: str | None) -> None:
        what = f"attach link {name} to bridge {bridge}" if bridge else f"detach link {name} from its bridge"
        index = await self._threads.run(link_index, what, bridge) if bridge else 0
        await self._change(what, name, netlink.RTM_SETLINK, netlink.u32(netlink.IFLA_MASTER, index))

    async def set_addresses(self, name: str, addresses: Sequence[str]) -> None:
        await self._threads.run(_set_addresses, name, addresses)

    async def set_sysctl(self, name: str, family: str, key: str, value: str) -> None:
        # Not by dots: the name of a link may hold some.
        path = _SYSCTLS / family / "conf" / name / key
        with syscalls.naming(f"set {path} to {value}", "write"):
            await self._threads.run(path.write_text, value)

    async def get_sysctl(self, name: str, family: str, key: str) -> str | None:
        path = _SYSCTLS / family / "conf" / name / key
        try:
            return (await self._threads.run(path.read_text)).strip()
        except FileNotFoundError:
            return None

    async def neighbours(self, name: str) -> list[tuple[str, str]]:
        return await self._threads.run(_read_neighbours, name)

    async def inside(self, pids: Sequence[int]) -> list[list[Link]]:
        return await self._threads.run(_read_inside, pids)

    async def _create(self, what: str, body: bytes) -> None:
        def create() -> None:
            with netlink.Socket() as rtnetlink:
                rtnetlink.change(what, netlink.RTM_NEWLINK, body, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)

        await self._threads.run(create)

    async def _change(
        self, what: str, name: str, kind: int, body: bytes = b"", *, flags: int = 0, mask: int = 0
    ) -> None:
        def change() -> None:
            header = netlink.IFINFO.pack(0, 0, link_index(what, name), flags, mask)
            with netlink.Socket() as rtnetlink:
                rtnetlink.change(what, kind, header + body)

        await self._threads.run(change)


def link_index(what: str, name: str) -> int:
    """Blocking; ENODEV if there is no such link."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise HostError(f'{what}: no link "{name}" (rtnetlink ENODEV)', errno.ENODEV) from error


def _open_namespace(what: str, path: Path) -> int:
    with syscalls.naming(what, "open"):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _naming(name: str, hwaddr: str, mtu: int) -> bytes:
    body = netlink.string(netlink.IFLA_IFNAME, name)
    if hwaddr:
        body += netlink.attribute(netlink.IFLA_ADDRESS, netlink.hwaddr_bytes(hwaddr))
    return body + (netlink.u32(netlink.IFLA_MTU, mtu) if mtu else b"")


def _info(kind: str, *data: bytes) -> bytes:
    children = [netlink.string(netlink.IFLA_INFO_KIND, kind)]
    if data:
        children.append(netlink.nested(netlink.IFLA_INFO_DATA, *data))
    return netlink.nested(netlink.IFLA_LINKINFO, *children)


def read_links() -> list[Link]:
    """Blocking."""
    with netlink.Socket() as rtnetlink:
        return _links_of(rtnetlink, None)


def _read_names() -> dict[int, str]:
    """As if_nameindex(3), which has the kernel tell more and holds the interpreter's lock meanwhile."""
    header = netlink.IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    with netlink.Socket() as rtnetlink:
        mask = netlink.u32(netlink.IFLA_EXT_MASK, netlink.RTEXT_FILTER_SKIP_STATS)
        return dict(map(netlink.parse_link_name, rtnetlink.dump("list links", netlink.RTM_GETLINK, header + mask)))


def _read_link(name: str) -> Link | None:
    """One link without reading the others: a host may have a thousand."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return None
    with netlink.Socket() as rtnetlink:
        addresses = _addresses_of(rtnetlink, netlink.IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, index))
        try:
            header = netlink.IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0)
            payload = rtnetlink.get(f"read link {name}", netlink.RTM_GETLINK, header)
        except HostError as error:
            if error.errno == errno.ENODEV:  # gone meanwhile
                return None
            raise
    return netlink.parse_link(payload, addresses)


def _addresses_of(rtnetlink: netlink.Socket, request: bytes) -> dict[int, list[LinkAddress]]:
    """By the index of their link. A kernel that does not filter (before 4.20) answers with all."""
    addresses: dict[int, list[LinkAddress]] = {}
    for payload in rtnetlink.dump("list addresses", netlink.RTM_GETADDR, request):
        parsed = netlink.parse_address(payload)
        if parsed is not None:
            addresses.setdefault(parsed[0], []).append(parsed[1])
    return addresses


def _links_of(rtnetlink: netlink.Socket, namespace_id: int | None) -> list[Link]:
    """Links of our own network namespace (None) or of the one that we know by this id."""
    address_filter = b""
    link_filter = netlink.u32(netlink.IFLA_EXT_MASK, netlink.RTEXT_FILTER_SKIP_STATS)  # IPv6's own, not the counters
    if namespace_id is not None:
        link_filter += netlink.s32(netlink.IFLA_TARGET_NETNSID, namespace_id)
        address_filter = netlink.s32(netlink.IFA_TARGET_NETNSID, namespace_id)
    header = netlink.IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    addresses = _addresses_of(rtnetlink, header + address_filter)
    header = netlink.IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    links = rtnetlink.dump("list links", netlink.RTM_GETLINK, header + link_filter)
    return [netlink.parse_link(payload, addresses) for payload in links]


def _read_routes() -> list[Route]:
    names = dict(socket.if_nameindex())
    routes: list[Route] = []
    with netlink.Socket() as rtnetlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            header = netlink.RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            for payload in rtnetlink.dump("list routes", netlink.RTM_GETROUTE, header):
                parsed = netlink.parse_route(payload)
                routes += [Route(where, names.get(index, ""), gateway) for where, index, gateway in parsed]
    return routes


def _read_virtual_functions(card: Path) -> dict[int, str]:
    """virtfnN links to the function, whose net/ holds its interface (Documentation/ABI/testing/sysfs-bus-pci)."""
    found = {}
    for function in card.glob("virtfn*"):
        links = sorted((function / "net").glob("*"))
        found[int(function.name.removeprefix("virtfn"))] = links[0].name if links else ""
    return found


def _read_neighbours(name: str) -> list[tuple[str, str]]:
    wanted = link_index(f"list neighbours of link {name}", name)
    found: list[tuple[str, str]] = []
    with netlink.Socket() as rtnetlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            header = netlink.NDMSG.pack(family, 0, 0, 0, 0)
            for payload in rtnetlink.dump("list neighbours", netlink.RTM_GETNEIGH, header):
                parsed = netlink.parse_neighbour(payload)
                if parsed is not None and parsed[0] == wanted:
                    found.append(parsed[1:])
    return found


def _set_addresses(name: str, addresses: Sequence[str]) -> None:
    what = f"set the addresses of link {name}"
    index = link_index(what, name)
    wanted = {str(ip_interface(address)) for address in addresses}
    with netlink.Socket() as rtnetlink:
        link = next((link for link in _links_of(rtnetlink, None) if link.index == index), None)
        present = (
            {f"{each.address}/{each.prefix}" for each in link.addresses if each.scope == "global"} if link else set()
        )
        # New ones first: routes through an address go when the last one of its subnet goes.
        for address in sorted(wanted - present):
            rtnetlink.change(
                f"add address {address} to link {name}", netlink.RTM_NEWADDR, _address(index, address),
                netlink.NLM_F_CREATE | netlink.NLM_F_EXCL,
            )  # fmt: skip
        for address in sorted(present - wanted):
            rtnetlink.change(
                f"remove address {address} from link {name}", netlink.RTM_DELADDR, _address(index, address)
            )


def _address(index: int, text: str) -> bytes:
    interface = ip_interface(text)
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    body = netlink.IFADDR.pack(family, interface.network.prefixlen, 0, 0, index)
    body += netlink.attribute(netlink.IFA_LOCAL, interface.packed)
    body += netlink.attribute(netlink.IFA_ADDRESS, interface.packed)
    if interface.version == 6:
        # A bridge has no carrier before its first port, and an address in duplicate detection cannot be bound to.
        body += netlink.u32(netlink.IFA_FLAGS, netlink.IFA_F_NODAD)
    return body


def _read_inside(pids: Sequence[int]) -> list[list[Link]]:
    ours = os.stat("/proc/self/ns/net").st_ino
    read: dict[int, list[Link]] = {}  # by the namespace's inode: several processes may share one
    rows: list[list[Link]] = []
    with netlink.Socket() as rtnetlink:
        for pid in pids:
            try:
                fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # gone
                rows.append([])
                continue
            try:
                inode = os.fstat(fd).st_ino
                if inode not in read:
                    read[inode] = _links_of(rtnetlink, None) if inode == ours else _links_behind(rtnetlink, fd)
            finally:
                os.close(fd)
            rows.append(read[inode])
    return rows


def _links_behind(rtnetlink: netlink.Socket, namespace: int) -> list[Link]:
    """Links of a network namespace by an fd of it. The kernel forgets the id when the namespace ends."""
    try:
        identity = _namespace_id(rtnetlink, namespace)
        return _links_of(rtnetlink, identity)
    except HostError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV, errno.ENOENT):  # it ended while we asked
            return []
        raise


def _namespace_id(rtnetlink: netlink.Socket, namespace: int) -> int:
    what = "find the id of a network namespace"
    body = netlink.RTGEN.pack(socket.AF_UNSPEC) + netlink.u32(netlink.NETNSA_FD, namespace)
    identity = netlink.parse_namespace_id(rtnetlink.get(what, netlink.RTM_GETNSID, body))
    if identity >= 0:
        return identity
    try:
        rtnetlink.change(
            "give a network namespace an id", netlink.RTM_NEWNSID, body + netlink.s32(netlink.NETNSA_NSID, -1)
        )
    except HostError as error:
        if error.errno != errno.EEXIST:  # a veth's end was moved there meanwhile
            raise
    return netlink.parse_namespace_id(rtnetlink.get(what, netlink.RTM_GETNSID, body))
