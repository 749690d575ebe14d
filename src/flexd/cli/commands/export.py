# SPDX-License-Identifier: Apache-2.0
"""`flexc export`: an instance as a backup file."""

from __future__ import annotations

import os

from flexd.cli.command import Command, Option, Positional
from flexd.cli.download import download
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    client, instance = context.resolve(args.instance)
    backups = path_of("instances", instance, "backups")
    body = {
        "name": "",
        "instance_only": args.instance_only,
        "optimized_storage": args.optimized_storage,
        "compression_algorithm": args.compression,
    }
    operation = context.perform(client, "POST", backups, body, label="Backing up the instance")
    paths = (operation.get("resources") or {}).get("backups") or ["backup0"]
    backup = f"{backups}/{paths[0].partition('?')[0].rpartition('/')[2]}"
    target = args.target or f"{instance}.tar.gz"
    if os.path.isdir(target):
        target = os.path.join(target, f"{instance}.tar.gz")
    try:
        download(context, client, f"{backup}/export", target, "Downloading the backup")
    finally:
        context.perform(client, "DELETE", backup)
    if target != "-":
        context.say("Backup exported successfully!")


COMMAND = Command(
    "export",
    "Save an instance as a backup file",
    _run,
    "[<remote>:]<instance> [<target>]",
    [Positional("instance", completes="instance"), Positional("target", "?", completes="file")],
    [
        Option("--compression", default="", help="Compression algorithm, or none"),
        Option("--instance-only", action="store_true", help="Without its snapshots"),
        Option("--optimized-storage", action="store_true", help="The storage driver's own format"),
    ],
    examples=[("flexc export web web.tar.gz", "Then, anywhere: flexc import web.tar.gz")],
)
