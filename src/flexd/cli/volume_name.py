# SPDX-License-Identifier: Apache-2.0
"""How volumes are named on the command line, and where they are in the API."""

from __future__ import annotations

from flexd.cli.command import Positional
from flexd.cli.entity import Entity
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

_TYPES = ("container", "virtual-machine", "image", "custom")


def split_volume(word: str) -> tuple[str, str]:
    """Type and name of `data`, `data/snapshot`, `container/first`."""
    kind, slash, name = word.partition("/")
    return (kind, name) if slash and kind in _TYPES else ("custom", word)


def volume_path(pool: str, kind: str, name: str) -> str:
    """The path of a volume, or of a snapshot of it."""
    volume, slash, snapshot = name.partition("/")
    path = path_of("storage-pools", pool, "volumes", kind, volume)
    return f"{path}/snapshots/{snapshot}" if slash else path


def _locate(context: Context, args: Arguments) -> tuple[Client, str, str]:
    client, pool = context.resolve(args.pool)
    return client, volume_path(pool, *split_volume(args.volume)), args.volume


VOLUME = Entity(
    "storage volume",
    "[<remote>:]<pool> <volume>[/<snapshot>]",
    [Positional("pool", completes="pool"), Positional("volume", completes="volume")],
    _locate,
    ("config", "description"),
    ("config", "description", "name", "type", "used_by", "location", "content_type", "project", "created_at"),
    clustered=True,
)
