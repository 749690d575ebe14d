# SPDX-License-Identifier: Apache-2.0
"""`flexc publish`: an image of an instance."""

from __future__ import annotations

from flexd.cli.command import Command, Option, Positional
from flexd.cli.errors import CliError
from flexd.cli.image_alias import point_aliases
from flexd.cli.keyvalue import parse_pairs
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    client, name = context.resolve(args.instance)
    stopped = "/" not in name and _stop_if_running(context, client, name, args.force)
    body: dict[str, Any] = {
        "source": {"type": "snapshot" if "/" in name else "instance", "name": name},
        "properties": parse_pairs(args.setting),
        "public": args.public,
        "compression_algorithm": args.compression,
    }
    if args.expire:
        body["expires_at"] = args.expire
    try:
        operation = context.perform(client, "POST", "/1.0/images", body, label="Publishing the instance")
    finally:
        if stopped:
            _set_state(context, client, name, "start")
    fingerprint = operation["metadata"]["fingerprint"]
    point_aliases(client, args.alias, fingerprint)
    context.say(f"Instance published with fingerprint: {fingerprint}")


def _stop_if_running(context: Context, client: Any, name: str, force: bool) -> bool:
    """True if it ran and was stopped, so that it has to be started again."""
    if client.get(path_of("instances", name))["status"].lower() == "stopped":
        return False
    if not force:
        raise CliError("The instance is currently running. Use --force to have it stopped and restarted")
    _set_state(context, client, name, "stop")
    return True


def _set_state(context: Context, client: Any, name: str, action: str) -> None:
    body = {"action": action, "timeout": -1, "force": action == "stop"}
    context.perform(client, "PUT", path_of("instances", name, "state"), body)


COMMAND = Command(
    "publish",
    "Make an image of an instance",
    _run,
    "[<remote>:]<instance>[/<snapshot>] [key=value...]",
    [Positional("instance", completes="instance"), Positional("setting", "*")],
    [
        Option("--alias", action="append", default=[], help="Name to give to the image"),
        Option("--compression", default="", help="Compression algorithm, or none"),
        Option("--expire", default="", help="When the image expires (RFC 3339)"),
        Option("-f", "--force", action="store_true", help="Stop the instance meanwhile if it is running"),
        Option("--public", action="store_true", help="Let everybody fetch it, without being trusted"),
    ],
    examples=[("flexc publish web --alias webserver description='My web server'", "Then: flexc launch webserver web2")],
)
