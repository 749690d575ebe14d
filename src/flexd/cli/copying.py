# SPDX-License-Identifier: Apache-2.0
"""What `copy` and `move` share."""

from __future__ import annotations

from flexd.cli.command import Option
from flexd.cli.errors import CliError, UsageError
from flexd.cli.keyvalue import parse_devices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context

COMMON_OPTIONS = (
    Option("--allow-inconsistent", action="store_true", help="Go on when files change while they are copied"),
    Option("-c", "--config", action="append", default=[], help="Configuration key=value of the new instance"),
    Option("-d", "--device", action="append", default=[], help="Change of a device: name,key=value…"),
    Option("--instance-only", action="store_true", help="Without its snapshots"),
    Option("--no-profiles", action="store_true", help="Use no profile, not even default"),
    Option("-p", "--profile", action="append", default=[], help="Profile to apply instead", completes="profile"),
    Option("--stateless", action="store_true", help="Without the running state"),
    Option("-s", "--storage", default="", help="Storage pool of the root disk", completes="pool"),
    Option("--target-project", default="", help="Into another project"),
)


def check_same_server(context: Context, source: str, target: str) -> str:
    """The new name; an error if it is to be on another server."""
    remote, name = context.split(source)
    new_remote, new_name = context.split(target)
    if target and new_remote != remote:
        raise CliError(
            f"Instances can be copied and moved within one server only. Take it to the other one with: "
            f"flexc export {remote}:{name} - | flexc import {new_remote}: -"
        )
    if "/" in new_name:
        raise UsageError(f'Invalid name "{new_name}": an instance can\'t become a snapshot')
    return new_name


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
