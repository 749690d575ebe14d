# SPDX-License-Identifier: Apache-2.0
"""Instances as a kind of thing with configuration; `config`, `profile`, `network` and `storage volume` change them."""

from __future__ import annotations

from flexd.cli.command import Positional
from flexd.cli.entity import Entity
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def instance_path(name: str) -> str:
    """The path of an instance or, for `c1/before`, of a snapshot."""
    instance, slash, snapshot = name.partition("/")
    return path_of("instances", instance, "snapshots", snapshot) if slash else path_of("instances", instance)


def _locate(context: Context, args: Arguments) -> tuple[Client, str, str]:
    client, name = context.resolve(args.instance)
    return client, instance_path(name), name


INSTANCE = Entity(
    "instance",
    "[<remote>:]<instance>",
    [Positional("instance", completes="instance")],
    _locate,
    ("architecture", "config", "description", "devices", "ephemeral", "profiles", "stateful"),
    ("architecture", "config", "devices", "ephemeral", "profiles", "stateful", "description"),
)
