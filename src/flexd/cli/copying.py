# SPDX-License-Identifier: Apache-2.0
"""What `copy` and `move` share."""

from __future__ import annotations

from flexd.cli.command import Option
from flexd.cli.errors import UsageError
from flexd.cli.keyvalue import parse_devices
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

MODE = Option(
    "--mode",
    default="pull",
    choices=("pull", "push", "relay"),
    help="Who carries it to another server: the target (pull, default), the source (push), or this machine (relay)",
)
COMMON_OPTIONS = (
    Option("--allow-inconsistent", action="store_true", help="Go on when files change while they are copied"),
    Option("-c", "--config", action="append", default=[], help="Configuration key=value of the new instance"),
    Option("-d", "--device", action="append", default=[], help="Change of a device: name,key=value…"),
    Option("--instance-only", action="store_true", help="Without its snapshots"),
    MODE,
    Option("--no-profiles", action="store_true", help="Use no profile, not even default"),
    Option("-p", "--profile", action="append", default=[], help="Profile to apply instead", completes="profile"),
    Option("--stateless", action="store_true", help="Without the running state"),
    Option("-s", "--storage", default="", help="Storage pool of the root disk", completes="pool"),
    Option("--target-project", default="", help="Into another project"),
)


def split_target(context: Context, source: str, target: str) -> tuple[str, str, bool]:
    """Remote and name to copy to, and whether that is another server."""
    remote, _ = context.split(source)
    new_remote, new_name = context.split(target)
    if "/" in new_name:
        raise UsageError(f'Invalid name "{new_name}": an instance can\'t become a snapshot')
    return new_remote, new_name, bool(target) and new_remote != remote


def changed_devices(found: dict[str, Any], args: Arguments) -> dict[str, dict[str, str]]:
    """The instance's own devices with what `-d` and `-s` change; those of its profiles are overridden."""
    devices: dict[str, dict[str, str]] = dict(found["devices"])
    expanded = found.get("expanded_devices") or {}
    for name, change in parse_devices(args.device).items():
        devices[name] = {**devices.get(name, expanded.get(name, {})), **change}
    if args.storage:
        root = next((name for name, device in expanded.items() if device.get("path") == "/"), "root")
        base = devices.get(root, expanded.get(root, {"type": "disk", "path": "/"}))
        devices[root] = {**base, "pool": args.storage}
    return devices


def profiles_of(args: Arguments, found: dict[str, Any]) -> list[str]:
    if args.no_profiles:
        return []
    profiles: list[str] = args.profile or found["profiles"]
    return profiles


def send_instance(
    context: Context, args: Arguments, new_remote: str, found: dict[str, Any], body: dict[str, Any], *, live: bool
) -> dict[str, Any]:
    """Copy to another server; returns the target's operation."""
    from flexd.client.migration import Migration

    client, source = context.resolve(args.source)
    instance, _, snapshot = source.partition("/")
    path = path_of("instances", instance, "snapshots", snapshot) if snapshot else path_of("instances", instance)
    ask: dict[str, Any] = {"migration": True, "live": live}
    if not snapshot:
        ask |= {"instance_only": args.instance_only, "container_only": args.instance_only}
        ask["allow_inconsistent"] = args.allow_inconsistent
    base = {
        "base-image": found["config"].get("volatile.base_image", ""),
        "instance_only": args.instance_only or bool(snapshot),
        "refresh": getattr(args, "refresh", False),
        "live": live,
    }
    query = {"project": args.target_project} if args.target_project else None

    def wait(server: Client, operation: str) -> Any:
        return context.wait(server, operation, f"Sending {source}")

    migration = Migration(client, path, context.client(new_remote), wait)
    return migration.run(args.mode, ask, "/1.0/instances", {**body, "source": base}, query)
