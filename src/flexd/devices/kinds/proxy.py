# SPDX-License-Identifier: Apache-2.0
"""Device kind `proxy`: connections forwarded between host and container, by a process, or by the kernel (`nat`)."""

import ipaddress
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from urllib.parse import quote

from flexd.api.errors import BadRequest, Fault
from flexd.api.keys import Key
from flexd.api.units import is_true
from flexd.devices.contract import DeviceContext, Kind
from flexd.devices.nics import split
from flexd.devices.unix import id_fault, mode_fault
from flexd.runtime.contract import ProxyAddress, ProxySpec, RunningContainer

# LXD's older words for the two sides.
_INSIDE = ("instance", "container", "guest")
# sun_path of unix(7) holds 108 bytes, the last of them a NUL.
_LONGEST_PATH = 107
# A device may not take all ports there are.
_MOST_PORTS = 1000


def parse_addresses(text: str) -> list[ProxyAddress]:
    """`tcp:127.0.0.1:80-82,90`, `udp:[::1]:53`, `unix:/run/x`, `unix:@abstract`; BadRequest with what is wrong."""
    kind, _, rest = text.partition(":")
    if kind == "unix":
        if not (rest.startswith(("/", "@")) and 1 < len(rest.encode()) <= _LONGEST_PATH) or ".." in rest.split("/"):
            raise BadRequest(f'invalid unix address "{text}" (unix:/PATH or unix:@NAME, at most {_LONGEST_PATH} bytes)')
        return [ProxyAddress("unix", rest)]
    host, _, ports = rest.rpartition(":")
    if kind not in ("tcp", "udp") or not host:
        raise BadRequest(f'invalid address "{text}" (tcp:ADDRESS:PORT, udp:ADDRESS:PORT or unix:PATH)')
    try:
        address = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError as error:
        raise BadRequest(f'invalid address "{text}": {error}') from error
    return [ProxyAddress(kind, str(address), port) for port in _parse_ports(ports)]


def _parse_ports(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last if dash else "1").isdecimal()):
            raise BadRequest(f'invalid port "{part}"')
        low, high = int(first), int(last if dash else first)
        if not 1 <= low <= high <= 65535:
            raise BadRequest(f'invalid port "{part}" (1 to 65535)')
        if high - low >= _MOST_PORTS:
            raise BadRequest(f'invalid ports "{part}" (at most {_MOST_PORTS})')
        found += range(low, high + 1)
    return found


def _address_fault(value: str) -> str | None:
    try:
        parse_addresses(value)
    except BadRequest as error:
        return str(error)
    return None


def pairs(config: Mapping[str, str]) -> list[tuple[ProxyAddress, ProxyAddress]]:
    """(listen, connect) for each port; one target serves many ports."""
    listen, connect = parse_addresses(config["listen"]), parse_addresses(config["connect"])
    if len(connect) == 1:
        connect *= len(listen)
    if len(connect) != len(listen):
        raise BadRequest(f"{len(listen)} ports cannot lead to {len(connect)}")
    return list(zip(listen, connect, strict=True))


class Proxy(Kind, type="proxy"):
    """`bind=host` (the default): listen on the host, connect inside; `bind=instance`: the other way round."""

    SAVABLE = True
    KEYS = (
        Key("listen", required=True, check=_address_fault, description="Where to listen, such as tcp:0.0.0.0:80"),
        Key(
            "connect", required=True, check=_address_fault, description="Where to connect to, such as tcp:127.0.0.1:80"
        ),
        Key("bind", default="host", choices=("host", *_INSIDE), description="The side that listens"),
        Key("nat", kind="bool", default="false", description="Let the kernel forward, to a NIC's static address"),
        Key("proxy_protocol", kind="bool", default="false", description="Tell the sender by HAProxy's PROXY protocol"),
        Key("mode", default="0644", check=mode_fault, description="Permissions of the listening unix socket"),
        Key("uid", default="0", check=id_fault, description="Owner of the listening unix socket"),
        Key("gid", default="0", check=id_fault, description="Group of the listening unix socket"),
        Key("security.uid", default="0", check=id_fault, description="User to drop to"),
        Key("security.gid", default="0", check=id_fault, description="Group to drop to"),
    )

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        found = super().faults(device, config)
        if found:
            return found
        where = f"devices.{device}"
        listen, connect = parse_addresses(config["listen"]), parse_addresses(config["connect"])
        if len(connect) not in (1, len(listen)):
            found.append(Fault(f"{where}.connect", f"{len(listen)} ports cannot lead to {len(connect)}"))
        if "udp" in (listen[0].kind, connect[0].kind) and listen[0].kind != connect[0].kind:
            found.append(Fault(f"{where}.connect", "datagrams (udp) lead to udp only, and udp takes nothing else"))
        if is_true(config.get("proxy_protocol")) and "udp" in (listen[0].kind, connect[0].kind):
            found.append(Fault(f"{where}.proxy_protocol", "The PROXY header can only be sent to tcp and unix sockets"))
        if listen[0].kind != "unix":
            unused = (key for key in ("mode", "uid", "gid") if config.get(key))
            found += [Fault(f"{where}.{key}", "only a listening unix socket has an owner") for key in unused]
        return found + (_nat_faults(where, config, listen, connect) if is_true(config.get("nat")) else [])

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        if not is_true(context.config.get("nat")):
            return []
        where = f"devices.{context.device}"
        missing = await self.host.firewall.available()
        if missing is not None:
            return [Fault(f"{where}.nat", f"needs nftables: {missing}")]
        version = ipaddress.ip_address(parse_addresses(context.config["listen"])[0].host).version
        if _target(context) is None:
            reason = f'must be a static address of the instance ("ipv{version}.address" of a NIC) with nat'
            return [Fault(f"{where}.connect", reason)]
        return []

    def _record(self, context: DeviceContext) -> Path:
        return context.directory / f"proxy.{quote(context.device, safe='')}"

    # --- on and off --------------------------------------------------------------------------------------------------

    async def start(self, context: DeviceContext) -> None:
        target = _target(context) if is_true(context.config.get("nat")) else None
        if target is not None:
            rules = _nat(context.config, target, _bridge(context, target))
            await self.host.firewall.replace_table("inet", f"flexd_{self.token(context)}", rules)

    async def activate(self, context: DeviceContext, container: RunningContainer) -> None:
        if is_true(context.config.get("nat")):
            await self._hairpin(context, container, "on")
            return
        await self.keeper.release(_key(context))
        await self._start_process(context, container)
        await self._keep(context, container)

    async def _keep(self, context: DeviceContext, container: RunningContainer) -> None:
        gone = partial(self.runtime.wait_proxy, self._record(context))
        await self.keeper.keep(_key(context), gone, partial(self._start_process, context, container))

    async def _start_process(self, context: DeviceContext, container: RunningContainer) -> None:
        config, record = context.config, self._record(context)
        await self.runtime.stop_proxy(record)
        spec = ProxySpec(
            tuple(pairs(config)),
            inside=config.get("bind") in _INSIDE,
            proxy_protocol=is_true(config.get("proxy_protocol")),
            socket_uid=int(config.get("uid") or 0),
            socket_gid=int(config.get("gid") or 0),
            socket_mode=int(config.get("mode") or "644", 8),
            drop_uid=int(config.get("security.uid") or 0),
            drop_gid=int(config.get("security.gid") or 0),
        )
        await self.runtime.start_proxy(container, spec, record)

    async def deactivate(self, context: DeviceContext, container: RunningContainer) -> None:
        if is_true(context.config.get("nat")):
            await self._hairpin(context, container, "off")

    async def _hairpin(self, context: DeviceContext, container: RunningContainer, switch: str) -> None:
        """Where bridged packets pass the firewall (br_netfilter), a connection of the instance to itself leaves the
        bridge by the port that it came from, which a port refuses otherwise."""
        bridge = await self.host.links.get(_bridge(context, _target(context) or ""))
        if bridge is None:
            return
        peers = {link.peer_index for link in (await self.host.links.inside([container.init.pid]))[0]}
        for port in await self.host.links.all():
            if port.index in peers and port.master_index == bridge.index:
                await self.host.processes.run(["bridge", "link", "set", "dev", port.name, "hairpin", switch])

    async def adopt(self, context: DeviceContext, container: RunningContainer) -> None:
        if is_true(context.config.get("nat")):
            return
        if await self.runtime.proxy_runs(self._record(context)):
            await self._keep(context, container)
        else:
            await self.activate(context, container)

    async def stop(self, context: DeviceContext) -> None:
        if is_true(context.config.get("nat")):
            await self.host.firewall.delete_table("inet", f"flexd_{self.token(context)}")
            return
        await self.keeper.release(_key(context))
        await self.runtime.stop_proxy(self._record(context))
        listen = parse_addresses(context.config["listen"])[0]
        if listen.kind == "unix" and listen.host.startswith("/") and context.config.get("bind") not in _INSIDE:
            await self.host.files.remove_tree(Path(listen.host))


def _key(context: DeviceContext) -> tuple[str, str]:
    return context.runtime_name, context.device


def _nat_faults(
    where: str, config: Mapping[str, str], listen: list[ProxyAddress], connect: list[ProxyAddress]
) -> list[Fault]:
    found = []
    if config.get("bind") in _INSIDE:
        found.append(Fault(f"{where}.bind", "Only host-bound proxies can use NAT"))
    if "unix" in (listen[0].kind, connect[0].kind) or listen[0].kind != connect[0].kind:
        found.append(Fault(f"{where}.nat", "Proxying with NAT works for tcp to tcp and udp to udp"))
        return found
    if is_true(config.get("proxy_protocol")):
        found.append(
            Fault(f"{where}.proxy_protocol", "cannot be used together with nat, which keeps the sender's address")
        )
    first, second = (ipaddress.ip_address(side[0].host) for side in (listen, connect))
    if first.is_unspecified:
        found.append(Fault(f"{where}.listen", f'Cannot listen on wildcard address "{first}" when in nat mode'))
    if first.version != second.version:
        found.append(Fault(f"{where}.connect", f"IPv{first.version} cannot lead to IPv{second.version} with NAT"))
    return found


def _target(context: DeviceContext) -> str | None:
    """The static address of a NIC of the instance that connections lead to."""
    wanted = ipaddress.ip_address(parse_addresses(context.config["connect"])[0].host)
    key = f"ipv{wanted.version}.address"
    nics = [entry for entry in context.siblings.values() if entry.get("type") == "nic"]
    static = [each for entry in nics for each in split(entry.get(key)) if each != "none"]
    if wanted.is_unspecified:
        return static[0] if static else None
    return str(wanted) if str(wanted) in static else None


def _bridge(context: DeviceContext, target: str) -> str:
    """The bridge of the NIC with this address; "" if it is on none."""
    for entry in context.siblings.values():
        if target in split(entry.get("ipv4.address")) + split(entry.get("ipv6.address")):
            bridged = entry.get("nictype") == "bridged"
            return entry.get("network") or (entry.get("parent", "") if bridged else "")
    return ""


def _nat(config: Mapping[str, str], target: str, bridge: str) -> str:
    """What stands between the table's braces: for packets from outside, from the host, from the instance itself and
    from its neighbours on the bridge. These two get an answer through the host only if it seems to ask itself."""
    redirect: list[str] = []
    back: list[str] = []
    for listen, connect in pairs(config):
        family, to = ("ip6", f"[{target}]") if ":" in target else ("ip", target)
        redirect.append(
            f"{family} daddr {listen.host} {listen.kind} dport {listen.port} dnat {family} to {to}:{connect.port}"
        )
        leading = f"{family} daddr {target} {connect.kind} dport {connect.port}"
        back.append(f"{family} saddr {target} {leading} masquerade")
        if bridge:  # postrouting knows where a packet came from since Linux 5.7
            back.append(f'iifname "{bridge}" oifname "{bridge}" {leading} masquerade')
    chains = (("prerouting", "dstnat", redirect), ("output", "-100", redirect), ("postrouting", "srcnat", back))
    return "\n".join(
        f"chain {hook} {{\n\ttype nat hook {hook} priority {priority}; policy accept;\n"
        + "".join(f"\t{rule}\n" for rule in rules)
        + "}"
        for hook, priority, rules in chains
    )
