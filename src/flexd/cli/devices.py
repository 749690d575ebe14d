# SPDX-License-Identifier: Apache-2.0
"""`… device add|remove|get|set|unset|list|show`, for instances and profiles alike."""

from __future__ import annotations

from flexd.cli.command import Command, Group, Positional
from flexd.cli.errors import CliError
from flexd.cli.keyvalue import apply_changes, parse_pairs, parse_settings, remove_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.cli.entity import Entity

    Devices = dict[str, dict[str, str]]

_DEVICE = Positional("device", completes="device")
_FROM_PROFILE = "Device from profile(s) cannot be {verb} individual instance. Override device or modify profile instead"


def own_device(value: dict[str, Any], name: str, verb: str) -> dict[str, str]:
    """A device that is the thing's own; one that comes from a profile can't be changed there."""
    devices: Devices = value["devices"]
    if name in devices:
        return devices[name]
    if name in (value.get("expanded_devices") or {}):
        raise CliError(_FROM_PROFILE.format(verb=verb))
    raise CliError(f'Device "{name}" doesn\'t exist')


def device_group(entity: Entity, *more: Command) -> Group:
    """The group of commands on the devices of an instance or a profile."""
    noun = entity.noun
    commands = [_add(entity), _get(entity), _list(entity), *more, _remove(entity), _set(entity), _show(entity)]
    return Group("device", f"Manage the devices of a {noun}", [*commands, _unset(entity)])


def _add(entity: Entity) -> Command:
    def run(context: Context, args: Arguments) -> None:
        def change(value: dict[str, Any], _: str) -> None:
            if args.device in value["devices"]:
                raise CliError("The device already exists")
            value["devices"][args.device] = {"type": args.type, **parse_pairs(args.setting)}

        label = entity.change(context, args, change)
        context.say(f"Device {args.device} added to {label}")

    add = f"flexc {_words(entity)} device add NAME"
    return entity.command(
        "add",
        "Add a device",
        run,
        "<device> <type> [key=value...]",
        [Positional("device"), Positional("type", completes="device-type"), Positional("setting", "*")],
        examples=[
            (f"{add} data disk source=/srv/data path=/data", "A directory of the host"),
            (f"{add} eth1 nic network=flexbr0 name=eth1", "A second network card"),
        ],
    )


def _words(entity: Entity) -> str:
    return "profile" if entity.noun == "profile" else "config"


def _get(entity: Entity) -> Command:
    def run(context: Context, args: Arguments) -> None:
        client, path, _ = entity.locate(context, args)
        print(own_device(client.get(path), args.device, "retrieved for").get(args.key, ""))

    return entity.command("get", "Print a key of a device", run, "<device> <key>", [_DEVICE, Positional("key")])


def _list(entity: Entity) -> Command:
    def run(context: Context, args: Arguments) -> None:
        client, path, _ = entity.locate(context, args)
        print("\n".join(sorted(client.get(path)["devices"])))

    return entity.command("list", "List the names of devices", run, aliases=["ls"])


def _remove(entity: Entity) -> Command:
    def run(context: Context, args: Arguments) -> None:
        def change(value: dict[str, Any], _: str) -> None:
            for name in args.device:
                own_device(value, name, "removed from")
                del value["devices"][name]

        label = entity.change(context, args, change)
        context.say(f"Device {', '.join(args.device)} removed from {label}")

    positionals = [Positional("device", "+", completes="device")]
    return entity.command("remove", "Remove devices", run, "<device>...", positionals, aliases=["rm"])


def _set(entity: Entity) -> Command:
    def run(context: Context, args: Arguments) -> None:
        changes = parse_settings(args.setting)
        entity.change(
            context, args, lambda value, _: apply_changes(own_device(value, args.device, "modified for"), changes)
        )

    positionals = [_DEVICE, Positional("setting", "+")]
    return entity.command("set", "Set keys of a device", run, "<device> <key>=<value>...", positionals)


def _show(entity: Entity) -> Command:
    def run(context: Context, args: Arguments) -> None:
        from flexd.cli.yamltext import dump

        client, path, _ = entity.locate(context, args)
        devices: Devices = client.get(path)["devices"]
        print(dump({name: dict(sorted(device.items())) for name, device in sorted(devices.items())}), end="")

    return entity.command("show", "Show all devices as YAML", run)


def _unset(entity: Entity) -> Command:
    def run(context: Context, args: Arguments) -> None:
        def change(value: dict[str, Any], _: str) -> None:
            remove_key(own_device(value, args.device, "modified for"), args.key, args.device)

        entity.change(context, args, change)

    return entity.command("unset", "Remove a key of a device", run, "<device> <key>", [_DEVICE, Positional("key")])
