# SPDX-License-Identifier: Apache-2.0
"""hostname, hosts and resolv.conf of a container that has no system inside to write them: an OCI image's.

Written into its root at every start, as the container's own root would, so that a link never leads out.
"""

import asyncio
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from flexd.api.errors import FlexdError, NotFound
from flexd.api.idmap import IdMap
from flexd.instances.record import Config, Expanded, InstanceRecord
from flexd.network.addresses import interface_of, parse_list
from flexd.network.contract import NetworkNotFound
from flexd.network.dnsmasq import domain_of
from flexd.network.networks import Networks
from flexd.runtime.contract import ContainerFiles, Runtime

_HEAD = "# Written by flexd at each start.\n"
_LOCAL = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
_SERVERS = 3  # resolv.conf(5): the library looks at no more


class NameFiles:
    def __init__(self, *, networks: Networks, runtime: Runtime, host_resolver: Path = Path("/etc/resolv.conf")) -> None:
        self._networks, self._runtime, self._host_resolver = networks, runtime, host_resolver

    async def write(
        self, record: InstanceRecord, expanded: Expanded, rootfs: Path, idmap: IdMap, addresses: Sequence[str]
    ) -> None:
        """The root is mounted and nobody else uses it. `addresses` (CIDR) are those that it starts with."""
        texts = {
            "/etc/hostname": f"{record.name}\n",
            "/etc/hosts": render_hosts(record.name, [address.partition("/")[0] for address in addresses]),
            "/etc/resolv.conf": render_resolver(expanded.config, await self._told_by_networks(record, expanded)),
        }
        files = await self._runtime.files(None, rootfs, idmap)
        try:
            for path, text in texts.items():
                await _write(files, path, text)
        except FlexdError as error:
            raise FlexdError(f'Failed writing names and name servers for instance "{record.name}": {error}') from error
        finally:
            await files.close()

    async def _told_by_networks(self, record: InstanceRecord, expanded: Expanded) -> tuple[list[str], list[str]]:
        """Name servers and domains to search."""
        servers: list[str] = []
        domains: list[str] = []
        for entry in expanded.devices.values():
            if entry.get("type") != "nic" or not entry.get("network"):
                continue
            try:
                config = (await self._networks.show(record.project, entry["network"])).config
            except NetworkNotFound:
                continue  # the device's own start has said so
            interfaces = [interface_of(config, family) for family in ("ipv4", "ipv6")]
            servers += [str(interface.ip) for interface in interfaces if interface is not None]
            domains += parse_list(config.get("dns.search")) or [domain_of(config)]
        if not servers:
            servers = await asyncio.to_thread(_host_servers, self._host_resolver)
        return servers, domains


def render_hosts(name: str, addresses: Sequence[str]) -> str:
    own = "".join(f"{address} {name}\n" for address in addresses) or f"127.0.1.1 {name}\n"
    return _HEAD + _LOCAL + own


def render_resolver(config: Config, told: tuple[Sequence[str], Sequence[str]]) -> str:
    """`oci.dns.*` in place of what the networks say."""
    servers = parse_list(config.get("oci.dns.nameservers")) or list(dict.fromkeys(told[0]))
    domains = parse_list(config.get("oci.dns.search")) or parse_list(config.get("oci.dns.domain"))
    lines = [f"nameserver {server}" for server in servers[:_SERVERS]]
    if domains or told[1]:
        lines.append(f"search {' '.join(domains or dict.fromkeys(told[1]))}")
    return _HEAD + "".join(f"{line}\n" for line in lines)


def _host_servers(file: Path) -> list[str]:
    """Those of this machine that can be reached from elsewhere in it."""
    try:
        words = [line.split() for line in file.read_text(errors="replace").splitlines()]
    except OSError:
        return []
    found = [each[1] for each in words if len(each) > 1 and each[0] == "nameserver"]
    return [server for server in found if not _is_local(server)]


def _is_local(server: str) -> bool:
    try:
        address = ipaddress.ip_address(server)
    except ValueError:
        return True
    return address.is_loopback or address.is_link_local


async def _write(files: ContainerFiles, path: str, text: str) -> None:
    """In place of a link, which may lead to what does not exist yet."""
    try:
        if (await files.stat(path, follow=False)).kind == "symlink":
            await files.remove(path)
    except NotFound:
        await files.make_directory(os.path.dirname(path), mode=0o755, uid=0, gid=0)
    fd = await files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode=0o644)
    try:
        await asyncio.to_thread(os.write, fd, text.encode())
    finally:
        os.close(fd)
