# SPDX-License-Identifier: Apache-2.0
"""`flexc profile`."""

from __future__ import annotations

from flexd.cli import entity as verbs
from flexd.cli.command import ALL_PROJECTS, FORMAT, Command, Group, Option, Positional
from flexd.cli.context import only_remote
from flexd.cli.devices import device_group
from flexd.cli.errors import CliError
from flexd.cli.instance import INSTANCE
from flexd.cli.table import natural_key, print_list
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def _locate(context: Context, args: Arguments) -> tuple[Client, str, str]:
    client, name = context.resolve(args.profile)
    return client, path_of("profiles", name), name


PROFILE = verbs.Entity(
    "profile",
    "[<remote>:]<profile>",
    [Positional("profile", completes="profile")],
    _locate,
    ("config", "description", "devices"),
    ("config", "description", "devices", "name", "used_by"),
)


def _list(context: Context, args: Arguments) -> None:
    query = {"recursion": "1", **({"all-projects": "true"} if args.all_projects else {})}
    profiles = only_remote(context, args.remote).get("/1.0/profiles", query)
    header = ["name", "description", "used by"]
    rows = [[each["name"], each["description"], str(len(each["used_by"] or ()))] for each in profiles]
    if args.all_projects:
        header = ["project", *header]
        rows = [[each.get("project", ""), *row] for each, row in zip(profiles, rows, strict=True)]
    print_list(args.format, header, sorted(rows, key=natural_key), profiles)


def _create(context: Context, args: Arguments) -> None:
    client, name = context.resolve(args.profile)
    client.request("POST", "/1.0/profiles", {"name": name, "description": "", "config": {}, "devices": {}})
    context.say(f"Profile {name} created")


def _copy(context: Context, args: Arguments) -> None:
    source, name = context.resolve(args.profile)
    target, new_name = context.resolve(args.new_profile)
    profile = source.get(path_of("profiles", name))
    body = {"name": new_name or name, **{key: profile[key] for key in PROFILE.writable}}
    query = {"project": args.target_project} if args.target_project else None
    target.request("POST", "/1.0/profiles", body, query=query)


def _assign(context: Context, args: Arguments) -> None:
    profiles = [name for name in args.profiles.split(",") if name]
    label = INSTANCE.change(context, args, lambda value, _: value.update(profiles=profiles))
    context.say(f"Profiles {args.profiles or '(none)'} applied to {label}")


def _add(context: Context, args: Arguments) -> None:
    def change(value: dict[str, Any], label: str) -> None:
        if args.profile in value["profiles"]:
            raise CliError(f"Profile {args.profile} is applied to {label} already")
        value["profiles"] = [*value["profiles"], args.profile]

    label = INSTANCE.change(context, args, change)
    context.say(f"Profile {args.profile} added to {label}")


def _remove(context: Context, args: Arguments) -> None:
    def change(value: dict[str, Any], label: str) -> None:
        if args.profile not in value["profiles"]:
            raise CliError(f"Profile {args.profile} isn't currently applied to {label}")
        value["profiles"] = [name for name in value["profiles"] if name != args.profile]

    label = INSTANCE.change(context, args, change)
    context.say(f"Profile {args.profile} removed from {label}")


_ONE_PROFILE = [Positional("profile", completes="profile")]
_REMOTE = [Positional("remote", "?", completes="remote")]

COMMAND = Group(
    "profile",
    "Manage profiles: configuration and devices that instances share",
    [
        INSTANCE.command("add", "Add a profile to an instance", _add, "<profile>", _ONE_PROFILE),
        INSTANCE.command(
            "assign",
            "Give an instance exactly these profiles",
            _assign,
            "<profiles>",
            [Positional("profiles", completes="profile")],
            examples=[("flexc profile assign web default,big", "Two"), ("flexc profile assign web ''", "None at all")],
            aliases=["apply"],
        ),
        PROFILE.command(
            "copy",
            "Copy a profile",
            _copy,
            "[<remote>:]<profile>",
            [Positional("new_profile")],
            [Option("--target-project", default="", help="Copy to another project")],
            aliases=["cp"],
        ),
        PROFILE.command("create", "Create an empty profile", _create),
        verbs.delete(PROFILE),
        device_group(PROFILE),
        verbs.edit(PROFILE),
        verbs.get(PROFILE),
        Command("list", "List profiles", _list, "[<remote>:]", _REMOTE, [ALL_PROJECTS, FORMAT], aliases=["ls"]),
        INSTANCE.command("remove", "Take a profile from an instance", _remove, "<profile>", _ONE_PROFILE),
        verbs.rename(PROFILE),
        verbs.set_(PROFILE, [("flexc profile set big limits.memory=8GiB limits.cpu=4", "Two keys at once")]),
        verbs.show(PROFILE),
        verbs.unset(PROFILE),
    ],
    examples=[
        ("flexc profile show default", "What every new instance gets"),
        ("flexc profile create big && flexc profile set big limits.memory=8GiB", "A profile of your own"),
        ("flexc launch debian/12 web -p default -p big", "An instance with both"),
    ],
)
