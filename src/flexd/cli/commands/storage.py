# SPDX-License-Identifier: Apache-2.0
"""`flexc storage`."""

from __future__ import annotations

from flexd.cli import entity as verbs
from flexd.cli.command import FORMAT, Command, Group, Option, Positional
from flexd.cli.context import only_remote
from flexd.cli.keyvalue import parse_pairs
from flexd.cli.show import size_iec
from flexd.cli.storage_volume import VOLUME_GROUP
from flexd.cli.table import natural_key, print_list
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def _locate(context: Context, args: Arguments) -> tuple[Client, str, str]:
    client, name = context.resolve(args.pool)
    return client, path_of("storage-pools", name), name


_POOL = verbs.Entity(
    "storage pool",
    "[<remote>:]<pool>",
    [Positional("pool", completes="pool")],
    _locate,
    ("config", "description"),
    ("config", "description", "name", "driver", "used_by", "status", "locations"),
    clustered=True,
)


def _list(context: Context, args: Arguments) -> None:
    pools = only_remote(context, args.remote).get("/1.0/storage-pools", {"recursion": "1"})
    rows = [
        [
            each["name"],
            each["driver"],
            (each["config"] or {}).get("source", ""),
            each["description"],
            str(len(each["used_by"] or ())),
            each["status"].upper(),
        ]
        for each in pools
    ]
    header = ["name", "driver", "source", "description", "used by", "state"]
    print_list(args.format, header, sorted(rows, key=natural_key), pools)


def _create(context: Context, args: Arguments) -> None:
    client, name = context.resolve(args.pool)
    body = {"name": name, "driver": args.driver, "description": "", "config": parse_pairs(args.setting)}
    query = {"target": args.target} if args.target else None
    context.perform(client, "POST", "/1.0/storage-pools", body, query=query)
    context.say(f"Storage pool {name} created")


def _show(context: Context, args: Arguments) -> None:
    from flexd.cli.yamltext import dump

    client, path, _ = _locate(context, args)
    value = client.get(f"{path}/resources") if args.resources else _POOL.document(client.get(path))
    print(dump(value), end="")


def _info(context: Context, args: Arguments) -> None:
    from flexd.cli.yamltext import dump

    client, path, _ = _locate(context, args)
    pool, space = client.get(path), client.get(f"{path}/resources")["space"]
    shown = str if args.bytes else size_iec
    info = {
        "description": pool["description"],
        "driver": pool["driver"],
        "name": pool["name"],
        "space used": shown(space.get("used", 0)),
        "total space": shown(space.get("total", 0)),
    }
    print(dump({"info": info, "used by": _used_by(pool["used_by"] or [])}), end="")


def _used_by(paths: list[str]) -> dict[str, Any]:
    """`/1.0/instances/c1?project=x` under `instances:` as `c1 (project "x")`."""
    users: dict[str, list[str]] = {}
    for path in paths:
        bare, _, query = path.partition("?")
        kind, _, name = bare.removeprefix("/1.0/").partition("/")
        if kind == "storage-pools":
            kind, name = "volumes", name.rpartition("/")[2]
        project = query.removeprefix("project=")
        users.setdefault(kind, []).append(f'{name} (project "{project}")' if project else name)
    return {kind: sorted(names) for kind, names in sorted(users.items())}


COMMAND = Group(
    "storage",
    "Manage storage pools and volumes",
    [
        _POOL.command(
            "create",
            "Create a storage pool",
            _create,
            "<driver> [key=value...]",
            [Positional("driver", completes="storage-driver"), Positional("setting", "*")],
            examples=[
                ("flexc storage create fast overlay", "Below the daemon's own directory"),
                ("flexc storage create big dir source=/srv/big", "In a directory of yours"),
            ],
        ),
        verbs.delete(_POOL),
        verbs.edit(_POOL),
        verbs.get(_POOL),
        _POOL.command(
            "info",
            "Show space, and who uses a pool",
            _info,
            options=[Option("--bytes", action="store_true", help="Sizes in bytes")],
        ),
        Command(
            "list",
            "List storage pools",
            _list,
            "[<remote>:]",
            [Positional("remote", "?", completes="remote")],
            [FORMAT],
            aliases=["ls"],
        ),
        verbs.set_(_POOL),
        _POOL.command(
            "show",
            "Show a storage pool as YAML",
            _show,
            options=[Option("--resources", action="store_true", help="Its space and inodes instead")],
        ),
        verbs.unset(_POOL),
        VOLUME_GROUP,
    ],
    examples=[("flexc storage list", "Pools"), ("flexc storage volume list default", "What is in one")],
)
