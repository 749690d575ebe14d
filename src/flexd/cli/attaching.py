# SPDX-License-Identifier: Apache-2.0
"""Devices given to instances and profiles, and taken from them, by `network attach` and `storage volume attach`."""

from __future__ import annotations

from flexd.cli.command import Positional
from flexd.cli.errors import CliError
from flexd.cli.instance import INSTANCE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.cli.entity import Entity

OWNER_INSTANCE = Positional("instance", completes="instance")
OWNER_PROFILE = Positional("profile", completes="profile")
DEVICE = Positional("device", "?", completes="device")


def attach(context: Context, args: Arguments, source: str, device: str, entry: dict[str, str]) -> None:
    """`source`: the word that stands for the network or pool, and that alone has the remote before it."""

    def change(value: dict[str, Any], _: str) -> None:
        if device in value["devices"]:
            raise CliError("The device already exists")
        value["devices"][device] = entry

    _owner(args, source).change(context, args, change)


def detach(
    context: Context, args: Arguments, source: str, is_of: Callable[[dict[str, str]], bool], what: str, where: str
) -> None:
    """The device that `is_of` tells; which one is to be said where there are several."""

    def change(value: dict[str, Any], _: str) -> None:
        devices = value["devices"]
        attached = [name for name, entry in devices.items() if is_of(entry)]
        if args.device and args.device not in attached:
            raise CliError(f"The device \"{args.device}\" doesn't exist or isn't {where}")
        if not attached:
            raise CliError(f"No device found for this {what}")
        if len(attached) > 1 and not args.device:
            raise CliError(f"More than one device matches, specify the device name: {', '.join(attached)}")
        del devices[args.device or attached[0]]

    _owner(args, source).change(context, args, change)


def _owner(args: Arguments, source: str) -> Entity:
    """The instance or profile that the command names, on the server of `source`."""
    owner: Entity = INSTANCE
    if not hasattr(args, "instance"):
        from flexd.cli.commands.profile import PROFILE

        owner = PROFILE
    remote, colon, _ = source.partition(":")
    name = getattr(args, owner.noun)
    setattr(args, owner.noun, f"{remote}:{name}" if colon else name)
    return owner
