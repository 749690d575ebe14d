# SPDX-License-Identifier: Apache-2.0
"""`flexc info`: of an instance or of the server."""

from __future__ import annotations

import sys

from flexd.cli.command import TARGET, Command, Option, Positional
from flexd.cli.errors import UsageError
from flexd.cli.show import is_active, is_set, size_iec, size_si, utc_time, yes_no
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def _run(context: Context, args: Arguments) -> None:
    client, name = context.resolve(args.instance)
    if not name:
        _show_server(client, args)
        return
    if args.resources:
        raise UsageError("--resources is about a server, not an instance")
    instance = client.get(path_of("instances", name), {"recursion": "1"})
    print("\n".join(instance_lines(instance)))
    if args.show_log:
        _show_log(client, name)


def _show_server(client: Client, args: Arguments) -> None:
    from flexd.cli.yamltext import dump

    if args.resources:
        print("\n".join(resource_lines(client.get("/1.0/resources"))))
        return
    print(dump(client.server()), end="")


def _show_log(client: Client, name: str) -> None:
    print("\nLog:\n", flush=True)
    response = client.open("GET", path_of("instances", name, "logs", "lxc.log"))
    for chunk in response.chunks():
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def instance_lines(instance: Mapping[str, Any]) -> Iterator[str]:
    """What `flexc info NAME` prints."""
    state = instance.get("state") or {}
    yield f"Name: {instance['name']}"
    if instance.get("description"):
        yield f"Description: {instance['description']}"
    yield f"Status: {instance['status'].upper()}"
    yield f"Type: {instance.get('type') or 'container'}" + (" (ephemeral)" if instance.get("ephemeral") else "")
    yield f"Architecture: {instance['architecture']}"
    if instance.get("location") not in ("", "none", None):
        yield f"Location: {instance['location']}"
    status = (instance.get("config") or {}).get("volatile.last_state.exit_status")
    if status and not state.get("pid"):
        yield f"Exit status: {status}"
    if state.get("pid"):
        yield f"PID: {state['pid']}"
    for label, time in (("Created", instance["created_at"]), ("Last Used", instance["last_used_at"])):
        if is_set(time):
            yield f"{label}: {utc_time(time)}"
    if is_active(instance):
        yield from _usage_lines(state)
    yield from _snapshot_lines(instance.get("snapshots") or [])


def _usage_lines(state: Mapping[str, Any]) -> Iterator[str]:
    yield "\nResources:"
    yield f"  Processes: {state.get('processes', 0)}"
    disks = {name: disk["usage"] for name, disk in (state.get("disk") or {}).items() if disk.get("usage")}
    if disks:
        yield "  Disk usage:"
        yield from (f"    {name}: {size_iec(usage)}" for name, usage in sorted(disks.items()))
    cpu = (state.get("cpu") or {}).get("usage", 0)
    yield f"  CPU usage:\n    CPU usage (in seconds): {cpu // 1_000_000_000}"
    yield from _memory_lines(state.get("memory") or {})
    networks = state.get("network") or {}
    if networks:
        yield "  Network usage:"
        for name, network in sorted(networks.items()):
            yield from _network_lines(name, network)


def _memory_lines(memory: Mapping[str, int]) -> Iterator[str]:
    names = {
        "usage": "Memory (current)",
        "usage_peak": "Memory (peak)",
        "swap_usage": "Swap (current)",
        "swap_usage_peak": "Swap (peak)",
    }
    lines = [f"    {label}: {size_iec(memory[name])}" for name, label in names.items() if memory.get(name)]
    if lines:
        yield "  Memory usage:"
        yield from lines


def _network_lines(name: str, network: Mapping[str, Any]) -> Iterator[str]:
    counters = network.get("counters") or {}
    yield f"    {name}:"
    yield f"      Type: {network.get('type', '')}"
    yield f"      State: {str(network.get('state', '')).upper()}"
    if network.get("host_name"):
        yield f"      Host interface: {network['host_name']}"
    if network.get("hwaddr"):
        yield f"      MAC address: {network['hwaddr']}"
    if network.get("mtu"):
        yield f"      MTU: {network['mtu']}"
    yield f"      Bytes received: {size_si(counters.get('bytes_received', 0))}"
    yield f"      Bytes sent: {size_si(counters.get('bytes_sent', 0))}"
    yield f"      Packets received: {counters.get('packets_received', 0)}"
    yield f"      Packets sent: {counters.get('packets_sent', 0)}"
    addresses = network.get("addresses") or []
    if addresses:
        yield "      IP addresses:"
    for address in addresses:
        family = "inet: " if address["family"] == "inet" else "inet6:"
        yield f"        {family} {address['address']}/{address['netmask']} ({address['scope']})"


def _snapshot_lines(snapshots: list[dict[str, Any]]) -> Iterator[str]:
    if not snapshots:
        return
    from flexd.cli.table import render

    rows = [
        [
            each["name"].rpartition("/")[2],
            utc_time(each["created_at"]),
            utc_time(each.get("expires_at", "")),
            yes_no(each.get("stateful")).upper(),
        ]
        for each in snapshots
    ]
    yield "\nSnapshots:"
    yield render("table", ["name", "taken at", "expires at", "stateful"], rows, None).rstrip("\n")


def resource_lines(resources: Mapping[str, Any]) -> Iterator[str]:
    """What `flexc info --resources` prints."""
    cpu, memory = resources.get("cpu") or {}, resources.get("memory") or {}
    for socket in cpu.get("sockets") or []:
        yield f"CPU ({cpu.get('architecture', '')}):"
        yield f"  Vendor: {socket.get('vendor', '')}\n  Name: {socket.get('name', '')}"
        threads = sum(len(core.get("threads") or ()) for core in socket.get("cores") or ())
        yield f"  Cores: {len(socket.get('cores') or ())}\n  Threads: {threads}"
    total, used = memory.get("total", 0), memory.get("used", 0)
    yield "\nMemory:"
    yield f"  Free: {size_iec(total - used)}\n  Used: {size_iec(used)}\n  Total: {size_iec(total)}"
    for card in (resources.get("gpu") or {}).get("cards") or []:
        yield f"\nGPU:\n  Vendor: {card.get('vendor', '')}\n  Product: {card.get('product', '')}"
        yield f"  Driver: {card.get('driver', '')}\n  PCI address: {card.get('pci_address', '')}"
    for card in (resources.get("network") or {}).get("cards") or []:
        yield f"\nNIC:\n  Driver: {card.get('driver', '')}\n  PCI address: {card.get('pci_address', '')}"
        yield from (f"  Port: {port.get('id', '')} ({port.get('address', '')})" for port in card.get("ports") or [])
    for disk in (resources.get("storage") or {}).get("disks") or []:
        yield f"\nDisk:\n  ID: {disk.get('id', '')}\n  Model: {disk.get('model', '')}\n  Type: {disk.get('type', '')}"
        yield f"  Size: {size_iec(disk.get('size', 0))}\n  Read-Only: {str(disk.get('read_only', False)).lower()}"


COMMAND = Command(
    "info",
    "Show an instance or the server",
    _run,
    "[<remote>:][<instance>]",
    [Positional("instance", "?", completes="instance")],
    [
        Option("--resources", action="store_true", help="CPUs, memory, disks and cards of the server"),
        Option("--show-log", action="store_true", help="The instance's log, too"),
        TARGET,
    ],
    examples=[
        ("flexc info first", "State, usage, addresses, snapshots"),
        ("flexc info", "What the server is and can do"),
        ("flexc info --resources", "What the machine has"),
    ],
)
