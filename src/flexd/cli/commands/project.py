# SPDX-License-Identifier: Apache-2.0
"""`flexc project`."""

from __future__ import annotations

from flexd.cli import entity as verbs
from flexd.cli.command import FORMAT, Command, Group, Option, Positional
from flexd.cli.context import only_remote
from flexd.cli.keyvalue import parse_pairs
from flexd.cli.show import size_iec, yes_no
from flexd.cli.table import natural_key, print_list
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

_FEATURES = ("images", "profiles", "storage.volumes", "networks")


def _locate(context: Context, args: Arguments) -> tuple[Client, str, str]:
    client, name = context.resolve(args.name)
    return client, path_of("projects", name), name


_PROJECT = verbs.Entity(
    "project",
    "[<remote>:]<project>",
    [Positional("name", completes="project")],
    _locate,
    ("config", "description"),
    ("config", "description", "name", "used_by"),
)


def _list(context: Context, args: Arguments) -> None:
    client = only_remote(context, args.remote)
    projects = client.get("/1.0/projects", {"recursion": "1"})
    current = client.project or "default"
    rows = [
        [
            f"{each['name']} (current)" if each["name"] == current else each["name"],
            *(yes_no((each["config"] or {}).get(f"features.{name}") == "true").upper() for name in _FEATURES),
            each["description"],
            str(len(each["used_by"] or ())),
        ]
        for each in projects
    ]
    header = ["name", "images", "profiles", "storage volumes", "networks", "description", "used by"]
    print_list(args.format, header, sorted(rows, key=natural_key), projects)


def _create(context: Context, args: Arguments) -> None:
    client, name = context.resolve(args.name)
    body = {"name": name, "description": args.description, "config": parse_pairs(args.config)}
    client.request("POST", "/1.0/projects", body)
    context.say(f"Project {name} created")


def _info(context: Context, args: Arguments) -> None:
    """Limits and use, as `lxc project info` shows them."""
    client, path, _ = _locate(context, args)
    resources: dict[str, dict[str, int]] = client.get(f"{path}/state")["resources"]
    rows = [
        [name.upper(), *(_amount(name, value) for value in (each["Limit"], each["Usage"]))]
        for name, each in sorted(resources.items())
    ]
    print_list(args.format, ["resource", "limit", "usage"], rows, resources)


def _amount(resource: str, value: int) -> str:
    if value < 0:
        return "UNLIMITED"
    return size_iec(value) if resource.partition(".")[0] in ("disk", "memory") else str(value)


def _switch(context: Context, args: Arguments) -> None:
    remote, name = context.split(args.name)
    context.client(remote).get(path_of("projects", name))
    context.config.remotes.setdefault(remote, {})["project"] = name
    context.config.save()


COMMAND = Group(
    "project",
    "Manage projects",
    [
        _PROJECT.command(
            "create",
            "Create a project",
            _create,
            options=[
                Option("-c", "--config", action="append", default=[], help="Configuration key=value"),
                Option("--description", default="", help="What it is for"),
            ],
        ),
        verbs.delete(_PROJECT),
        verbs.edit(_PROJECT),
        verbs.get(_PROJECT),
        _PROJECT.command("info", "Show what a project may use, and uses", _info, options=[FORMAT]),
        Command(
            "list",
            "List projects",
            _list,
            "[<remote>:]",
            [Positional("remote", "?", completes="remote")],
            [FORMAT],
            aliases=["ls"],
        ),
        verbs.rename(_PROJECT),
        verbs.set_(_PROJECT),
        verbs.show(_PROJECT),
        _PROJECT.command("switch", "Work in a project from now on", _switch),
        verbs.unset(_PROJECT),
    ],
    examples=[
        ("flexc project create web -c limits.instances=5 -c restricted=true", "For others to use"),
        ("flexc project info web", "What it uses of what it may"),
        ("flexc list --project web", "One command in another project"),
    ],
)
