# SPDX-License-Identifier: Apache-2.0
"""`flexc storage volume copy|move|snapshot|restore|export|import`."""

from __future__ import annotations

import os

from flexd.cli.command import Command, Option, Positional
from flexd.cli.download import download
from flexd.cli.errors import UsageError
from flexd.cli.upload import upload_file
from flexd.cli.volume_name import VOLUME, split_volume, volume_path
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def _split(context: Context, word: str) -> tuple[str, str, str]:
    """Remote, pool and volume of `[<remote>:]<pool>/<volume>`."""
    remote, rest = context.split(word)
    pool, slash, volume = rest.partition("/")
    if not slash:
        raise UsageError(f'"{word}" is not <pool>/<volume>')
    return remote, pool, volume


def _copy(context: Context, args: Arguments) -> None:
    remote, pool, volume = _split(context, args.source)
    new_remote, new_pool, new_volume = _split(context, args.target_volume)
    client = context.client(remote)
    if new_remote != remote:
        _send(context, args, client, pool, volume)
        context.say("Storage volume copied successfully!")
        return
    source = {"type": "copy", "name": volume, "pool": pool, "volume_only": args.volume_only, "refresh": args.refresh}
    found = client.get(volume_path(pool, *split_volume(volume)))
    body: dict[str, Any] = {
        "name": new_volume,
        "type": "custom",
        "config": found["config"],
        "description": found["description"],
        "content_type": found["content_type"],
        "source": source,
    }
    query = {"project": args.target_project} if args.target_project else None
    path = path_of("storage-pools", new_pool, "volumes", "custom")
    context.perform(client, "POST", path, body, label=f"Copying {volume}", query=query)
    context.say("Storage volume copied successfully!")


def _send(context: Context, args: Arguments, client: Client, pool: str, volume: str) -> None:
    """Copy to another server."""
    from flexd.client.migration import Migration

    if "/" in volume:
        raise UsageError(f'"{volume}" is a snapshot: make a volume of it here first, with storage volume copy')
    new_remote, new_pool, new_volume = _split(context, args.target_volume)
    path = volume_path(pool, *split_volume(volume))
    found = client.get(path)
    body: dict[str, Any] = {
        "name": new_volume,
        "type": "custom",
        "config": {key: value for key, value in found["config"].items() if not key.startswith("volatile.")},
        "description": found["description"],
        "content_type": found["content_type"],
        "source": {"name": volume, "volume_only": args.volume_only, "refresh": args.refresh},
    }
    ask = {"name": volume, "migration": True, "volume_only": args.volume_only}
    query = {"project": args.target_project} if args.target_project else None

    def wait(server: Client, operation: str) -> Any:
        return context.wait(server, operation, f"Sending {volume}")

    migration = Migration(client, path, context.client(new_remote), wait)
    migration.run(args.mode, ask, path_of("storage-pools", new_pool, "volumes", "custom"), body, query)


def _move(context: Context, args: Arguments) -> None:
    remote, pool, volume = _split(context, args.source)
    new_remote, new_pool, new_volume = _split(context, args.target_volume)
    client = context.client(remote)
    if new_remote != remote:
        args.volume_only = args.refresh = False
        _send(context, args, client, pool, volume)
        context.perform(client, "DELETE", volume_path(pool, *split_volume(volume)))
        context.say("Storage volume moved successfully!")
        return
    body = {"name": new_volume, "pool": new_pool, **({"project": args.target_project} if args.target_project else {})}
    context.perform(client, "POST", volume_path(pool, *split_volume(volume)), body, label=f"Moving {volume}")
    context.say("Storage volume moved successfully!")


def _snapshot(context: Context, args: Arguments) -> None:
    client, path, _ = VOLUME.locate(context, args)
    if args.reuse and args.snapshot and client.exists(f"{path}/snapshots/{args.snapshot}"):
        context.perform(client, "DELETE", f"{path}/snapshots/{args.snapshot}")
    body: dict[str, Any] = {"name": args.snapshot, "description": ""}
    if args.no_expiry:
        body["expires_at"] = "0001-01-01T00:00:00Z"
    context.perform(client, "POST", f"{path}/snapshots", body)


def _restore(context: Context, args: Arguments) -> None:
    client, path, _ = VOLUME.locate(context, args)
    reply = client.request("GET", path)
    context.perform(client, "PUT", path, {"restore": args.snapshot}, etag=reply.etag)


def _export(context: Context, args: Arguments) -> None:
    client, path, label = VOLUME.locate(context, args)
    body = {
        "name": "",
        "volume_only": args.volume_only,
        "optimized_storage": args.optimized_storage,
        "compression_algorithm": args.compression,
    }
    operation = context.perform(client, "POST", f"{path}/backups", body, label="Backing up the volume")
    paths = (operation.get("resources") or {}).get("backups") or [f"{path}/backups/backup0"]
    backup = f"{path}/backups/{paths[0].partition('?')[0].rpartition('/')[2]}"
    try:
        download(context, client, f"{backup}/export", args.path or f"{label}.tar.gz", "Downloading the backup")
    finally:
        context.perform(client, "DELETE", backup)
    context.say("Backup exported successfully!")


def _import(context: Context, args: Arguments) -> None:
    client, pool = context.resolve(args.pool)
    name = args.name or os.path.basename(args.file).split(".")[0]
    path = path_of("storage-pools", pool, "volumes", "custom")
    upload_file(context, client, path, args.file, {"X-LXD-name": name}, "Importing the volume")


_MODE = Option("--mode", default="pull", choices=("pull", "push", "relay"), help='Transfer mode (default "pull")')
_PROJECT = Option("--target-project", default="", help="Into another project")
_ALONE = Option("--volume-only", action="store_true", help="Without its snapshots")
_TWO = [Positional("source"), Positional("target_volume")]
_PAIR = "[<remote>:]<pool>/<volume> [<remote>:]<pool>/<volume>"

TRANSFER_COMMANDS = (
    Command(
        "copy",
        "Copy a volume",
        _copy,
        "[<remote>:]<pool>/<volume>[/<snapshot>] [<remote>:]<pool>/<volume>",
        _TWO,
        [_MODE, Option("--refresh", action="store_true", help="Update a copy made before"), _PROJECT, _ALONE],
        aliases=["cp"],
    ),
    VOLUME.command(
        "export",
        "Save a volume as a backup file",
        _export,
        "[<path>]",
        [Positional("path", "?", completes="file")],
        [
            Option("--compression", default="", help="Compression algorithm, or none"),
            Option("--optimized-storage", action="store_true", help="The storage driver's own format"),
            _ALONE,
        ],
    ),
    Command(
        "import",
        "Make a volume of a backup file",
        _import,
        "[<remote>:]<pool> <backup file> [<volume name>]",
        [Positional("pool", completes="pool"), Positional("file", completes="file"), Positional("name", "?")],
    ),
    Command("move", "Move a volume to another pool or server", _move, _PAIR, _TWO, [_MODE, _PROJECT]),
    VOLUME.command("restore", "Restore a snapshot of a volume", _restore, "<snapshot>", [Positional("snapshot")]),
    VOLUME.command(
        "snapshot",
        "Take a snapshot of a volume",
        _snapshot,
        "[<snapshot>]",
        [Positional("snapshot", "?")],
        [
            Option("--no-expiry", action="store_true", help="Keep it, whatever the volume's snapshots.expiry says"),
            Option("--reuse", action="store_true", help="Replace one of that name"),
        ],
    ),
)
