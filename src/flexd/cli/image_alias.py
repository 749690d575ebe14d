# SPDX-License-Identifier: Apache-2.0
"""`flexc image alias`, and pointing aliases at new images."""

from __future__ import annotations

from flexd.cli.command import FORMAT, Command, Group, Positional
from flexd.cli.image_remotes import find_image, images_of, protocol_of
from flexd.cli.table import natural_key, print_list
from flexd.client.client import path_of
from flexd.client.errors import NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def point_aliases(client: Client, names: Iterable[str], fingerprint: str) -> None:
    """Let every name stand for that image; names that stood for another one are moved."""
    for name in names:
        path = path_of("images", "aliases", name)
        try:
            alias = client.get(path)
        except NotFoundError:
            client.request("POST", "/1.0/images/aliases", {"name": name, "description": "", "target": fingerprint})
            continue
        if alias["target"] != fingerprint:
            client.request("PUT", path, {"description": alias["description"], "target": fingerprint})


def _create(context: Context, args: Arguments) -> None:
    client, name = context.resolve(args.alias)
    target = find_image(client, args.fingerprint)
    client.request("POST", "/1.0/images/aliases", {"name": name, "description": "", "target": target})


def _delete(context: Context, args: Arguments) -> None:
    client, name = context.resolve(args.alias)
    client.request("DELETE", path_of("images", "aliases", name))


def _rename(context: Context, args: Arguments) -> None:
    client, name = context.resolve(args.alias)
    client.request("POST", path_of("images", "aliases", name), {"name": args.new_name})


def _list(context: Context, args: Arguments) -> None:
    words = list(args.filter)
    remote = context.split(words.pop(0))[0] if words and words[0].endswith(":") else ""
    aliases = _aliases(context, remote or context.default_remote)
    wanted = [each for each in aliases if all(word in each["name"] or word in each["target"] for word in words)]
    rows = [[each["name"], each["target"][:12], each["type"].upper(), each["description"]] for each in wanted]
    print_list(args.format, ["alias", "fingerprint", "type", "description"], sorted(rows, key=natural_key), wanted)


def _aliases(context: Context, remote: str) -> list[dict[str, Any]]:
    if protocol_of(context, remote) == "lxd":
        aliases: list[dict[str, Any]] = context.client(remote).get("/1.0/images/aliases", {"recursion": "1"})
        return aliases
    return [
        {**alias, "target": image["fingerprint"], "type": image["type"]}
        for image in images_of(context, remote)
        for alias in image["aliases"]
    ]


_ALIAS = Positional("alias", completes="alias")
_USAGE = "[<remote>:]<alias>"

ALIAS_GROUP = Group(
    "alias",
    "Manage names of images",
    [
        Command(
            "create",
            "Give an image a name",
            _create,
            f"{_USAGE} <fingerprint>",
            [Positional("alias"), Positional("fingerprint", completes="image")],
        ),
        Command("delete", "Remove a name", _delete, _USAGE, [_ALIAS], aliases=["rm"]),
        Command(
            "list",
            "List names",
            _list,
            "[<remote>:] [<filters>...]",
            [Positional("filter", "*", completes="alias")],
            [FORMAT],
            aliases=["ls"],
        ),
        Command(
            "rename",
            "Change a name",
            _rename,
            f"{_USAGE} <new-name>",
            [_ALIAS, Positional("new_name")],
            aliases=["mv"],
        ),
    ],
)
