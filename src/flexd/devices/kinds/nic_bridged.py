# SPDX-License-Identifier: Apache-2.0
"""Device kind `nic`, type `bridged`: a veth pair, one end in the container, the other on a bridge of the host."""

import hashlib
import ipaddress
import re
import secrets
from collections.abc import Mapping

from flexd.api.errors import Fault
from flexd.api.keys import Key
from flexd.devices.contract import DeviceContext, Kind, RunConfig
from flexd.runtime.contract import NicSpec

# LXD's and Xen's registered prefix for generated addresses.
_HWADDR_PREFIX = "00:16:3e"


def interface_fault(value: str) -> str | None:
    """The kernel's rule for interface names (dev_valid_name): 1-15 bytes, no slash, colon or white space."""
    if not re.fullmatch(r"[^\s/:%]{1,15}", value) or value in (".", ".."):
        return f'invalid interface name "{value}" (1 to 15 characters without slash, colon or space)'
    return None


def _hwaddr_fault(value: str) -> str | None:
    if not re.fullmatch(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}", value):
        return f'invalid MAC address "{value}" (six bytes in hexadecimal, separated by colons)'
    if int(value[:2], 16) & 1:
        return f'invalid MAC address "{value}" (it is a multicast address)'
    return None


def _mtu_fault(value: str) -> str | None:
    # 1280 is IPv6's least MTU; 68 IPv4's (RFC 791); 65535 is what veth takes at most.
    if not value.isdecimal() or not 68 <= int(value) <= 65535:
        return f'invalid MTU "{value}" (68 to 65535)'
    return None


def _ip_fault(version: int, value: str) -> str | None:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        address = None
    if address is None or address.version != version:
        return f'invalid IPv{version} address "{value}"'
    return None


def new_hwaddr() -> str:
    """A random address with LXD's prefix."""
    return ":".join([_HWADDR_PREFIX, *(f"{byte:02x}" for byte in secrets.token_bytes(3))])


class BridgedNic(Kind, type="nic", subtype="bridged"):
    """`network=NAME` (managed) or `nictype=bridged parent=BRIDGE`."""

    KEYS = (
        Key("network", description="Managed network to attach to, instead of nictype and parent"),
        Key("nictype", description="`bridged`, where no network is given", choices=("bridged",)),
        Key("parent", description="Bridge of the host", check=interface_fault),
        Key("name", description="Name of the interface inside the instance", check=interface_fault),
        Key("hwaddr", description="MAC address; made up and kept when not given", check=_hwaddr_fault),
        Key("mtu", description="Default: that of the bridge", check=_mtu_fault),
        Key("host_name", description="Name of the interface on the host", check=interface_fault),
        Key("ipv4.address", description="Fixed address given by DHCP", check=lambda v: _ip_fault(4, v)),
        Key("ipv6.address", description="Fixed address given by DHCP", check=lambda v: _ip_fault(6, v)),
    )

    def faults(self, device: str, config: Mapping[str, str]) -> list[Fault]:
        found = super().faults(device, config)
        where = f"devices.{device}"
        if config.get("network"):
            found.extend(
                Fault(f"{where}.{key}", f'cannot be used together with "network" ({config["network"]})')
                for key in ("nictype", "parent")
                if config.get(key)
            )
        elif not config.get("parent"):
            found.append(Fault(f"{where}.parent", 'a NIC needs a "network", or a "parent" with its "nictype"'))
        return found

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        where = f"devices.{context.device}"
        network = context.config.get("network")
        if network:
            if network not in self.networks.names(context.project):
                return [Fault(f"{where}.network", f'Network "{network}" not found')]
            return []
        parent = context.config["parent"]
        link = await self.host.links.get(parent)
        if link is None or link.kind != "bridge":
            return [Fault(f"{where}.parent", f'Parent device "{parent}" is not a bridge of this host')]
        return []

    def new_volatile(self, device: str, config: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
        new = {}
        if not config.get("hwaddr") and not known.get("hwaddr"):
            new["hwaddr"] = new_hwaddr()
        if not config.get("name") and not known.get("name"):
            new["name"] = device if re.fullmatch(r"eth[0-9]+", device) else "eth0"
        if not config.get("host_name") and not known.get("host_name"):
            new["host_name"] = f"veth{secrets.token_hex(4)}"
        return new

    def _value(self, context: DeviceContext, key: str) -> str:
        return context.config.get(key) or context.volatile.get(key, "")

    def _inner_link(self, context: DeviceContext) -> str:
        """The container's end while it is still on the host: derived, so that a crash leaves no unknown link."""
        seed = f"{self.daemon_id}/{context.runtime_name}/{context.device}"
        return "fx" + hashlib.blake2s(seed.encode(), digest_size=6).hexdigest()

    async def run_config(self, context: DeviceContext) -> RunConfig:
        name = self._value(context, "name")
        return RunConfig(nics=(NicSpec(self._inner_link(context), name, hwaddr=self._value(context, "hwaddr")),))

    async def start(self, context: DeviceContext) -> None:
        bridge = context.config.get("network") or context.config["parent"]
        host_name = self._value(context, "host_name")
        mtu = context.config.get("mtu")
        if mtu is None:
            link = await self.host.links.get(bridge)
            mtu = str(link.mtu) if link is not None else "0"
        await self.host.links.delete(host_name)  # of a run that ended without its clean-up
        await self.host.links.create_veth(
            self._inner_link(context), host_name, hwaddr=self._value(context, "hwaddr"), mtu=int(mtu)
        )
        # The host talks through the bridge only: no address, no router solicitation on the port itself.
        await self.host.links.set_sysctl(host_name, "ipv6", "disable_ipv6", "1")
        await self.host.links.set_master(host_name, bridge)
        await self.host.links.set_up(host_name)

    async def sever(self, context: DeviceContext) -> None:
        """Both ends of the pair go. With the link still there liblxc's monitor would first move it back to the host."""
        await self.stop(context)

    async def stop(self, context: DeviceContext) -> None:
        await self.host.links.delete(self._value(context, "host_name"))
