# SPDX-License-Identifier: Apache-2.0
"""`flexc network`."""

from __future__ import annotations

from flexd.cli import entity as verbs
from flexd.cli.attaching import DEVICE, OWNER_INSTANCE, OWNER_PROFILE, attach, detach
from flexd.cli.command import ALL_PROJECTS, FORMAT, Command, Group, Option, Positional
from flexd.cli.context import only_remote
from flexd.cli.create import nic_of_network
from flexd.cli.keyvalue import parse_pairs
from flexd.cli.show import size_si, yes_no
from flexd.cli.table import natural_key, print_list
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def _locate(context: Context, args: Arguments) -> tuple[Client, str, str]:
    client, name = context.resolve(args.network)
    return client, path_of("networks", name), name


NETWORK = verbs.Entity(
    "network",
    "[<remote>:]<network>",
    [Positional("network", completes="network")],
    _locate,
    ("config", "description"),
    ("config", "description", "name", "type", "used_by", "managed", "status", "locations"),
    clustered=True,
)


def _list(context: Context, args: Arguments) -> None:
    query = {"recursion": "1", **({"all-projects": "true"} if args.all_projects else {})}
    networks = only_remote(context, args.remote).get("/1.0/networks", query)
    header = ["name", "type", "managed", "ipv4", "ipv6", "description", "used by", "state"]
    shown = [each for each in networks if each["type"] not in ("loopback", "unknown")]
    rows = [_row(each) for each in shown]
    if args.all_projects:
        header = ["project", *header]
        rows = [[each.get("project", ""), *row] for each, row in zip(shown, rows, strict=True)]
    print_list(args.format, header, sorted(rows, key=natural_key), networks)


def _row(network: Mapping[str, Any]) -> list[str]:
    config = network.get("config") or {}
    return [
        network["name"],
        network["type"],
        yes_no(network["managed"]).upper(),
        config.get("ipv4.address", ""),
        config.get("ipv6.address", ""),
        network["description"],
        str(len(network["used_by"] or ())),
        network["status"].upper(),
    ]


def _create(context: Context, args: Arguments) -> None:
    client, name = context.resolve(args.network)
    body = {"name": name, "description": "", "type": args.type, "config": parse_pairs(args.setting)}
    query = {"target": args.target} if args.target else None
    context.perform(client, "POST", "/1.0/networks", body, query=query)
    context.say(f"Network {name} created")


def _info(context: Context, args: Arguments) -> None:
    client, path, name = _locate(context, args)
    print("\n".join(_info_lines(name, client.get(f"{path}/state"))))


def _info_lines(name: str, state: Mapping[str, Any]) -> Iterator[str]:
    yield f"Name: {name}"
    yield f"MAC address: {state.get('hwaddr', '')}"
    yield f"MTU: {state.get('mtu', 0)}"
    yield f"State: {state.get('state', '')}"
    yield f"Type: {state.get('type', '')}"
    if state.get("addresses"):
        yield "\nIP addresses:"
        for each in state["addresses"]:
            yield f"  {each['family']}\t{each['address']}/{each['netmask']} ({each['scope']})"
    counters = state.get("counters") or {}
    yield "\nNetwork usage:"
    yield f"  Bytes received: {size_si(counters.get('bytes_received', 0))}"
    yield f"  Bytes sent: {size_si(counters.get('bytes_sent', 0))}"
    yield f"  Packets received: {counters.get('packets_received', 0)}"
    yield f"  Packets sent: {counters.get('packets_sent', 0)}"
    bridge = state.get("bridge")
    if bridge:
        yield "\nBridge:"
        yield f"  ID: {bridge.get('id', '')}\n  STP: {str(bridge.get('stp', False)).lower()}"
        yield f"  Forward delay: {bridge.get('forward_delay', 0)}"
        yield f"  Default VLAN ID: {bridge.get('vlan_default', 0)}"
        yield f"  VLAN filtering: {str(bridge.get('vlan_filtering', False)).lower()}"
        yield f"  Upper devices: {', '.join(bridge.get('upper_devices') or ())}"


def _list_leases(context: Context, args: Arguments) -> None:
    client, path, _ = _locate(context, args)
    leases = client.get(f"{path}/leases")
    rows = [[each["hostname"], each["hwaddr"], each["address"], each["type"].upper()] for each in leases]
    header = ["hostname", "mac address", "ip address", "type"]
    print_list(args.format, header, sorted(rows, key=natural_key), leases)


def _attach(context: Context, args: Arguments) -> None:
    client, network = context.resolve(args.network)
    device = args.device or network
    nic = nic_of_network(client, network, args.interface or (device if args.device else ""))
    if not nic["name"]:
        del nic["name"]
    attach(context, args, args.network, device, nic)


def _detach(context: Context, args: Arguments) -> None:
    _, network = context.resolve(args.network)

    def is_of(entry: dict[str, str]) -> bool:
        return entry.get("type") == "nic" and network in (entry.get("network"), entry.get("parent"))

    detach(context, args, args.network, is_of, "network", f"attached to network {network}")


_INTERFACE = Positional("interface", "?")

COMMAND = Group(
    "network",
    "Manage networks",
    [
        NETWORK.command(
            "attach",
            "Attach an instance to a network",
            _attach,
            "<instance> [<device name>] [<interface name>]",
            [OWNER_INSTANCE, DEVICE, _INTERFACE],
            examples=[("flexc network attach flexbr0 first eth0", "Its card eth0")],
        ),
        NETWORK.command(
            "attach-profile",
            "Attach all instances of a profile to a network",
            _attach,
            "<profile> [<device name>] [<interface name>]",
            [OWNER_PROFILE, DEVICE, _INTERFACE],
        ),
        NETWORK.command(
            "create",
            "Create a network",
            _create,
            "[key=value...]",
            [Positional("setting", "*")],
            [Option("-t", "--type", default="", help="Kind of network (default bridge)")],
            examples=[
                ("flexc network create flexbr1", "A bridge with addresses that are free here"),
                ("flexc network create lab ipv4.address=10.7.0.1/24 ipv4.nat=false ipv6.address=none", "With your own"),
            ],
        ),
        verbs.delete(NETWORK),
        NETWORK.command(
            "detach", "Detach an instance", _detach, "<instance> [<device name>]", [OWNER_INSTANCE, DEVICE]
        ),
        NETWORK.command(
            "detach-profile", "Detach a profile", _detach, "<profile> [<device name>]", [OWNER_PROFILE, DEVICE]
        ),
        verbs.edit(NETWORK),
        verbs.get(NETWORK),
        NETWORK.command("info", "Show addresses and traffic", _info),
        Command(
            "list",
            "List networks",
            _list,
            "[<remote>:]",
            [Positional("remote", "?", completes="remote")],
            [ALL_PROJECTS, FORMAT],
            aliases=["ls"],
        ),
        NETWORK.command("list-leases", "List DHCP leases", _list_leases, options=[FORMAT]),
        verbs.rename(NETWORK),
        verbs.set_(NETWORK, [("flexc network set flexbr0 ipv4.dhcp.ranges=10.7.0.50-10.7.0.99", "For its leases")]),
        verbs.show(NETWORK),
        verbs.unset(NETWORK),
    ],
    examples=[
        ("flexc network list", "Networks, and interfaces of the host"),
        ("flexc network list-leases flexbr0", "Who has which address"),
    ],
)
