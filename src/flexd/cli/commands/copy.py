# SPDX-License-Identifier: Apache-2.0
"""`flexc copy`."""

from __future__ import annotations

from flexd.cli.command import Command, Option, Positional
from flexd.cli.copying import COMMON_OPTIONS, changed_devices, profiles_of, send_instance, split_target
from flexd.cli.keyvalue import parse_pairs
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    client, source = context.resolve(args.source)
    new_remote, target, elsewhere = split_target(context, args.source, args.target_name)
    instance, _, snapshot = source.partition("/")
    path = path_of("instances", instance, "snapshots", snapshot) if snapshot else path_of("instances", instance)
    found = client.get(path)
    config = {key: value for key, value in found["config"].items() if _is_copied(key)}
    body: dict[str, Any] = {
        "name": target or (instance if elsewhere else ""),
        "architecture": found["architecture"],
        "type": found.get("type") or "container",
        "description": found.get("description", ""),
        "config": {**config, **parse_pairs(args.config)},
        "devices": changed_devices(found, args),
        "profiles": profiles_of(args, found),
        "ephemeral": args.ephemeral,
    }
    if elsewhere:
        send_instance(context, args, new_remote, found, body, live=False)
        return
    body["source"] = {
        "type": "copy",
        "source": source,
        "base-image": found["config"].get("volatile.base_image", ""),
        "instance_only": args.instance_only,
        "live": not args.stateless and bool(found.get("stateful")),
        "refresh": args.refresh,
        "allow_inconsistent": args.allow_inconsistent,
        "project": client.project,
    }
    query = {"project": args.target_project} if args.target_project else None
    operation = context.perform(client, "POST", "/1.0/instances", body, query=query, label=f"Copying {source}")
    if not target:
        created = ((operation.get("resources") or {}).get("instances") or [""])[0]
        context.say(f"Instance name is: {created.partition('?')[0].rpartition('/')[2]}")


def _is_copied(key: str) -> bool:
    """`volatile.*` describes the original alone, but for the image that it was made from."""
    return not key.startswith("volatile.") or key == "volatile.base_image"


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
    details="To another server, too; what is there already (the image, what a --refresh finds unchanged) is not sent.",
    examples=[
        ("flexc copy web web2", "With all its data"),
        ("flexc copy web/before web3", "A snapshot"),
        ("flexc copy web backup: --refresh", "To another server, only what has changed since the last time"),
    ],
    aliases=["cp"],
)
