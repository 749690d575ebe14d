# SPDX-License-Identifier: Apache-2.0
"""`flexc storage volume`."""

from __future__ import annotations

from flexd.cli import entity as verbs
from flexd.cli.attaching import DEVICE, OWNER_INSTANCE, OWNER_PROFILE, attach, detach
from flexd.cli.command import ALL_PROJECTS, FORMAT, Command, Group, Option, Positional
from flexd.cli.errors import UsageError
from flexd.cli.keyvalue import parse_pairs
from flexd.cli.show import size_iec, utc_time
from flexd.cli.storage_volume_transfer import TRANSFER_COMMANDS
from flexd.cli.table import natural_key, print_list
from flexd.cli.volume_name import VOLUME, split_volume, volume_path
from flexd.client.client import path_of
from flexd.client.errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

_COLUMNS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "c": ("content-type", lambda each: each["content_type"]),
    "d": ("description", lambda each: each["description"]),
    "e": ("project", lambda each: each.get("project", "")),
    "L": ("location", lambda each: each["location"]),
    "n": ("name", lambda each: each["name"]),
    "t": ("type", lambda each: f"{each['type']} (snapshot)" if "/" in each["name"] else each["type"]),
    "u": ("used by", lambda each: str(len(each["used_by"] or ()))),
    "U": ("usage", lambda each: each["usage"]),
}
_DEFAULT_COLUMNS = "tndcu"


def _list(context: Context, args: Arguments) -> None:
    letters = args.columns.replace(",", "")
    unknown = set(letters) - set(_COLUMNS)
    if unknown:
        raise UsageError(f'Unknown column shorthand char "{min(unknown)}" in "{args.columns}"')
    client, pool = context.resolve(args.pool)
    query = {"recursion": "1", **({"all-projects": "true"} if args.all_projects else {})}
    volumes = client.get(path_of("storage-pools", pool, "volumes"), query)
    wanted = [each for each in volumes if all(_fits(each, text) for text in args.filter)]
    shown = [{**each, "usage": _usage(client, pool, each)} for each in wanted] if "U" in letters else wanted
    columns = [_COLUMNS[letter] for letter in letters]
    rows = sorted(([value(each) for _, value in columns] for each in shown), key=natural_key)
    print_list(args.format, [title for title, _ in columns], rows, wanted)


def _fits(volume: Mapping[str, Any], text: str) -> bool:
    key, equals, value = text.partition("=")
    if not equals:
        return text in volume["name"]
    return str(volume.get(key, (volume["config"] or {}).get(key, ""))) == value


def _usage(client: Client, pool: str, volume: Mapping[str, Any]) -> str:
    """Space used; empty where the driver can't tell."""
    try:
        state = client.get(f"{volume_path(pool, volume['type'], volume['name'])}/state")
    except ClientError:
        return ""
    return size_iec((state.get("usage") or {}).get("used", 0))


def _create(context: Context, args: Arguments) -> None:
    client, pool = context.resolve(args.pool)
    body = {"name": args.volume, "description": "", "content_type": args.type, "config": parse_pairs(args.setting)}
    context.perform(client, "POST", path_of("storage-pools", pool, "volumes", "custom"), body, query=_target(args))
    context.say(f"Storage volume {args.volume} created")


def _target(args: Arguments) -> dict[str, str] | None:
    return {"target": args.target} if args.target else None


def _info(context: Context, args: Arguments) -> None:
    client, path, _ = VOLUME.locate(context, args)
    volume = client.get(path)
    print(f"Name: {volume['name']}")
    if volume["description"]:
        print(f"Description: {volume['description']}")
    print(f"Type: {volume['type']}\nContent type: {volume['content_type']}")
    try:
        usage = client.get(f"{path}/state").get("usage") or {}
    except ClientError:
        usage = {}
    if usage.get("used"):
        print(f"Usage: {size_iec(usage['used'])}")
    if utc_time(volume.get("created_at", "")):
        print(f"Created: {utc_time(volume['created_at'])}")


def _rename(context: Context, args: Arguments) -> None:
    client, path, label = VOLUME.locate(context, args)
    kind, old = split_volume(args.volume)
    new_kind, new = split_volume(args.new_name)
    if ("/" in old) != ("/" in new) or new_kind != kind or ("/" in old and old.split("/")[0] != new.split("/")[0]):
        raise UsageError("Invalid new name: a snapshot stays a snapshot of its volume, and a volume a volume")
    context.perform(client, "POST", path, {"name": new.rpartition("/")[2]})
    context.say(f'Renamed storage volume from "{label}" to "{args.new_name}"')


def _attach(context: Context, args: Arguments) -> None:
    """`[<device>] [<path>]`: with one word only, that is the path, and the device has the volume's name."""
    client, pool = context.resolve(args.pool)
    device, path = (args.device, args.path) if args.path else (args.volume, args.device)
    volume = client.get(volume_path(pool, *split_volume(args.volume)))
    if volume["content_type"] == "filesystem" and not path:
        raise UsageError("A path inside the instance is needed for a volume with a file system")
    disk = {"type": "disk", "pool": pool, "source": volume["name"], **({"path": path} if path else {})}
    attach(context, args, args.pool, device, disk)


def _detach(context: Context, args: Arguments) -> None:
    _, pool = context.resolve(args.pool)
    wanted = {"type": "disk", "pool": pool, "source": args.volume}

    def is_of(entry: dict[str, str]) -> bool:
        return all(entry.get(key) == value for key, value in wanted.items())

    detach(context, args, args.pool, is_of, "storage volume", "this volume")


_PATH = Positional("path", "?")
_POOL = [Positional("pool", completes="pool")]

VOLUME_GROUP = Group(
    "volume",
    "Manage storage volumes",
    [
        VOLUME.command(
            "attach",
            "Attach a volume to an instance",
            _attach,
            "<instance> [<device name>] [<path>]",
            [OWNER_INSTANCE, DEVICE, _PATH],
            examples=[("flexc storage volume attach default data web /srv/data", "At that path inside")],
        ),
        VOLUME.command(
            "attach-profile",
            "Attach a volume to all instances of a profile",
            _attach,
            "<profile> [<device name>] [<path>]",
            [OWNER_PROFILE, DEVICE, _PATH],
        ),
        VOLUME.command(
            "create",
            "Create a custom volume",
            _create,
            "[key=value...]",
            [Positional("setting", "*")],
            [
                Option(
                    "--type",
                    default="filesystem",
                    choices=("filesystem", "block"),
                    help="Content: filesystem (default) or block",
                )
            ],
            examples=[("flexc storage volume create default data size=20GiB", "Data that outlives instances")],
        ),
        verbs.delete(VOLUME),
        VOLUME.command("detach", "Detach a volume", _detach, "<instance> [<device name>]", [OWNER_INSTANCE, DEVICE]),
        VOLUME.command(
            "detach-profile",
            "Detach a volume from a profile",
            _detach,
            "<profile> [<device name>]",
            [OWNER_PROFILE, DEVICE],
        ),
        verbs.edit(VOLUME),
        verbs.get(VOLUME),
        VOLUME.command("info", "Show a volume and its usage", _info),
        Command(
            "list",
            "List volumes of a pool",
            _list,
            "[<remote>:]<pool> [<filter>...]",
            [*_POOL, Positional("filter", "*")],
            [
                ALL_PROJECTS,
                Option("-c", "--columns", default=_DEFAULT_COLUMNS, help=f'Columns (default "{_DEFAULT_COLUMNS}")'),
                FORMAT,
            ],
            details="Columns: c content type, d description, e project, L location, n name, t type, u used by, U usage",
            aliases=["ls"],
        ),
        VOLUME.command(
            "rename",
            "Rename a volume or a snapshot of one",
            _rename,
            "<new name>[/<new snapshot name>]",
            [Positional("new_name")],
            aliases=["mv"],
        ),
        verbs.set_(VOLUME),
        verbs.show(VOLUME),
        verbs.unset(VOLUME),
        *TRANSFER_COMMANDS,
    ],
    details='Names are of custom volumes unless they begin with a type: "container/first", "image/<fingerprint>".',
)
