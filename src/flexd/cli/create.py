# SPDX-License-Identifier: Apache-2.0
"""Creating instances: what `init` and `launch` share."""

from __future__ import annotations

import sys

from flexd.cli.command import TARGET, Option, Positional
from flexd.cli.errors import CliError, UsageError
from flexd.cli.image_remotes import launch_source
from flexd.cli.keyvalue import parse_devices, parse_pairs
from flexd.client.client import path_of
from flexd.client.errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

USAGE = "[<remote>:]<image> [<remote>:][<name>]"
POSITIONALS = (Positional("image", "?", completes="image"), Positional("name", "?"))
OPTIONS = (
    Option("-c", "--config", action="append", default=[], help="Configuration key=value"),
    Option("-d", "--device", action="append", default=[], help="Device, or change of a profile's: name,key=value…"),
    Option("-e", "--ephemeral", action="store_true", help="Delete the instance when it stops"),
    Option("--empty", action="store_true", help="Create it without an image"),
    Option("-n", "--network", default="", help="Network to attach as eth0", completes="network"),
    Option("--no-profiles", action="store_true", help="Use no profile, not even default"),
    Option("-p", "--profile", action="append", default=[], help="Profile to apply", completes="profile"),
    Option("-s", "--storage", default="", help="Storage pool of the root disk", completes="pool"),
    Option("-t", "--type", default="", help="Instance type, as c2-m4"),
    TARGET,
    Option("--vm", action="store_true", help="Create a virtual machine"),
)


def create_instance(context: Context, args: Arguments) -> tuple[Client, str]:
    """Create what the words say; the server and the name of the new instance."""
    image, name = (None, args.name or args.image) if args.empty else (args.image, args.name)
    if args.empty and args.name:
        raise UsageError("--empty can't be combined with an image name")
    if image == "":
        raise UsageError("Invalid number of arguments: <image> missing (or say --empty)")
    client, instance = context.resolve(name)
    body = _request(client, args, instance)
    if image is None:
        body["source"] = {"type": "none"}
    else:
        body["source"] = launch_source(context, client, image, "virtual-machine" if args.vm else "container")
    context.say(f"Creating {instance}" if instance else "Creating the instance")
    query = {"target": args.target} if args.target else None
    label = "Creating the instance"
    operation = context.perform(client, "POST", "/1.0/instances", body, query=query, label=label)
    created = _created_name(operation) or instance
    if not instance:
        context.say(f"Instance name is: {created}")
    _warn_without_network(client, created)
    return client, created


def _request(client: Client, args: Arguments, instance: str) -> dict[str, Any]:
    """The body of the POST: what standard input describes, changed by the options."""
    given = _from_stdin()
    profiles = [] if args.no_profiles else args.profile or given.get("profiles")
    devices: dict[str, dict[str, str]] = dict(given.get("devices") or {})
    if args.network:
        devices["eth0"] = nic_of_network(client, args.network, "eth0")
    if args.storage:
        devices["root"] = {"type": "disk", "path": "/", "pool": args.storage}
    _override_devices(client, devices, parse_devices(args.device), profiles)
    return {
        "name": instance,
        "description": given.get("description", ""),
        "type": "virtual-machine" if args.vm else "container",
        "instance_type": args.type,
        "profiles": profiles,
        "config": {**(given.get("config") or {}), **parse_pairs(args.config)},
        "devices": devices,
        "ephemeral": args.ephemeral or bool(given.get("ephemeral")),
    }


def _from_stdin() -> dict[str, Any]:
    """`flexc launch … < config.yaml`."""
    if sys.stdin is None or sys.stdin.isatty():
        return {}
    text = sys.stdin.read()
    if not text.strip():
        return {}
    from flexd.cli.yamltext import load

    document = load(text, "standard input")
    if not isinstance(document, dict):
        raise CliError("Failed reading standard input: expected an instance's configuration as YAML")
    return document


def _override_devices(
    client: Client, devices: dict[str, dict[str, str]], changes: dict[str, dict[str, str]], profiles: list[str] | None
) -> None:
    """Apply `-d`: on top of a profile's device of that name, if there is one."""
    if not changes:
        return
    inherited: dict[str, dict[str, str]] = {}
    for profile in ["default"] if profiles is None else profiles:
        inherited.update(client.get(path_of("profiles", profile)).get("devices") or {})
    for name, change in changes.items():
        devices[name] = {**devices.get(name, inherited.get(name, {})), **change}


def nic_of_network(client: Client, network: str, interface: str) -> dict[str, str]:
    """The nic device that attaches an instance to a network."""
    found = client.get(path_of("networks", network))
    if found.get("managed"):
        return {"type": "nic", "network": network, "name": interface}
    kind = "bridged" if found.get("type") == "bridge" else "macvlan"
    return {"type": "nic", "nictype": kind, "parent": network, "name": interface}


def _created_name(operation: Any) -> str:
    """The name in `/1.0/instances/NAME` of an operation's resources."""
    resources = (operation or {}).get("resources") or {}
    paths = resources.get("instances") or resources.get("containers") or [""]
    return str(paths[0]).partition("?")[0].rpartition("/")[2]


def _warn_without_network(client: Client, name: str) -> None:
    try:
        instance = client.get(path_of("instances", name))
    except ClientError:
        return  # an ephemeral one may be gone already
    devices = instance.get("expanded_devices") or {}
    if not any(device.get("type") == "nic" for device in devices.values()):
        print(
            f"\nThe instance has no network. To give it one:\n  flexc network create flexbr0\n"
            f"  flexc network attach flexbr0 {name} eth0\n",
            file=sys.stderr,
        )
