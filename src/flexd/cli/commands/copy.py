# SPDX-License-Identifier: Apache-2.0
"""`flexc copy`."""

from __future__ import annotations

from flexd.cli.command import Command, Option, Positional
from flexd.cli.copying import COMMON_OPTIONS, changed_devices, check_same_server
from flexd.cli.keyvalue import parse_pairs
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    client, source = context.resolve(args.source)
    target = check_same_server(context, args.source, args.target_name)
    instance, _, snapshot = source.partition("/")
    path = path_of("instances", instance, "snapshots", snapshot) if snapshot else path_of("instances", instance)
    found = client.get(path)
    config = {key: value for key, value in found["config"].items() if _is_copied(key)}
    body: dict[str, Any] = {
        "name": target,
        "architecture": found["architecture"],
        "type": found.get("type") or "container",
        "description": found.get("description", ""),
        "config": {**config, **parse_pairs(args.config)},
        "devices": changed_devices(found, args),
        "profiles": _profiles(args, found),
        "ephemeral": args.ephemeral,
        "source": {
            "type": "copy",
            "source": source,
            "base-image": found["config"].get("volatile.base_image", ""),
            "instance_only": args.instance_only,
            "live": not args.stateless and bool(found.get("stateful")),
            "refresh": args.refresh,
            "allow_inconsistent": args.allow_inconsistent,
            "project": client.project,
        },
    }
    query = {"project": args.target_project} if args.target_project else None
    operation = context.perform(client, "POST", "/1.0/instances", body, query=query, label=f"Copying {source}")
    if not target:
        created = ((operation.get("resources") or {}).get("instances") or [""])[0]
        context.say(f"Instance name is: {created.partition('?')[0].rpartition('/')[2]}")


def _is_copied(key: str) -> bool:
    """`volatile.*` describes the original alone, but for the image that it was made from."""
    return not key.startswith("volatile.") or key == "volatile.base_image"


def _profiles(args: Arguments, found: dict[str, Any]) -> list[str]:
    if args.no_profiles:
        return []
    profiles: list[str] = args.profile or found["profiles"]
    return profiles


COMMAND = Command(
    "copy",
    "Copy an instance",
    _run,
    "[<remote>:]<source>[/<snapshot>] [[<remote>:]<destination>]",
    [Positional("source", completes="instance"), Positional("target_name", "?")],
    [
        *COMMON_OPTIONS,
        Option("-e", "--ephemeral", action="store_true", help="Delete the copy when it stops"),
        Option("--refresh", action="store_true", help="Update a copy made before"),
    ],
    details="Within one server. To another one: flexc export, then flexc import.",
    examples=[
        ("flexc copy web web2", "With all its data"),
        ("flexc copy web/before web3", "A snapshot"),
    ],
    aliases=["cp"],
)
