# SPDX-License-Identifier: Apache-2.0
"""`flexc config`: of instances and of the server."""

from __future__ import annotations

from flexd.cli.command import TARGET, Command, Group, Option, Positional
from flexd.cli.config_metadata import METADATA, TEMPLATE
from flexd.cli.config_trust import TRUST
from flexd.cli.devices import device_group
from flexd.cli.errors import CliError, UsageError
from flexd.cli.instance import INSTANCE, instance_path
from flexd.cli.keyvalue import apply_changes, parse_pairs, parse_settings, remove_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def _is_name(word: str) -> bool:
    """True for `c1` and `remote:`, false for a key of the server: those have a dot, and no name has one."""
    return ":" in word.partition("=")[0] or ("=" not in word and "." not in word)


def _locate(context: Context, word: str) -> tuple[Client, str, str]:
    """The path of an instance, or of the server if only a remote or nothing is named."""
    client, name = context.resolve(word)
    return (client, instance_path(name), name) if name else (client, "/1.0", "the server")


def _put(context: Context, client: Client, path: str, value: dict[str, Any], etag: str) -> None:
    if path == "/1.0":
        context.perform(client, "PUT", path, {"config": value["config"]}, etag=etag)
    else:
        INSTANCE.put(context, client, path, value, etag)


def _get(context: Context, args: Arguments) -> None:
    words = args.word
    if len(words) > 2:
        raise UsageError("Invalid number of arguments: expected [<instance>] <key>")
    client, path, _ = _locate(context, words[0] if len(words) == 2 else "")
    value = client.get(path)
    config = value["expanded_config"] if args.expanded and path != "/1.0" else value["config"]
    print(config.get(words[-1], ""))


def _set(context: Context, args: Arguments) -> None:
    words = list(args.word)
    named = len(words) > 1 and _is_name(words[0])
    target = words.pop(0) if named else ""
    if len(words) == 1 and "=" not in words[0]:
        raise UsageError(f'No value for "{words[0]}": expected {words[0]}=VALUE')
    changes = parse_settings(words)
    client, path, _ = _locate(context, target)
    reply = client.request("GET", path)
    apply_changes(reply.metadata["config"], changes)
    _put(context, client, path, reply.metadata, reply.etag)


def _unset(context: Context, args: Arguments) -> None:
    words = args.word
    if len(words) > 2:
        raise UsageError("Invalid number of arguments: expected [<instance>] <key>")
    client, path, label = _locate(context, words[0] if len(words) == 2 else "")
    reply = client.request("GET", path)
    remove_key(reply.metadata["config"], words[-1], label)
    _put(context, client, path, reply.metadata, reply.etag)


def _show(context: Context, args: Arguments) -> None:
    from flexd.cli.yamltext import dump

    client, path, _ = _locate(context, args.instance)
    value = client.get(path)
    if path == "/1.0":
        print(dump({"config": value["config"]}), end="")
        return
    if args.expanded:
        value = {**value, "config": value["expanded_config"], "devices": value["expanded_devices"]}
    document = INSTANCE.document(value)
    print(dump({key: each for key, each in document.items() if key in (*INSTANCE.writable, "expires_at")}), end="")


def _edit(context: Context, args: Arguments) -> None:
    from flexd.cli.edit import edit_document

    client, path, label = _locate(context, args.instance)
    reply = client.request("GET", path)
    writable = ("config",) if path == "/1.0" else INSTANCE.writable
    document = {key: each for key, each in INSTANCE.document(reply.metadata).items() if key in writable}
    edit_document(
        document,
        f"This is the configuration of {label}, as YAML. Save to apply; lines that begin with # are ignored.",
        lambda changed: _put(context, client, path, changed, reply.etag),
    )


def _override(context: Context, args: Arguments) -> None:
    def change(value: dict[str, Any], _: str) -> None:
        if args.device in value["devices"]:
            raise CliError("The device already exists")
        if args.device not in value["expanded_devices"]:
            raise CliError("The profile device doesn't exist")
        value["devices"][args.device] = {**value["expanded_devices"][args.device], **parse_pairs(args.setting)}

    label = INSTANCE.change(context, args, change)
    context.say(f"Device {args.device} overridden for {label}")


_EXPANDED = Option("-e", "--expanded", action="store_true", help="Include what profiles bring")
_WORDS = [Positional("word", "+", completes="instance")]
_INSTANCE = [Positional("instance", "?", completes="instance")]

COMMAND = Group(
    "config",
    "Manage the configuration of instances and of the server",
    [
        device_group(
            INSTANCE,
            INSTANCE.command(
                "override",
                "Copy a device from the profiles and change it",
                _override,
                "<device> [key=value...]",
                [Positional("device", completes="device"), Positional("setting", "*")],
                examples=[("flexc config device override web root size=20GiB", "A bigger disk for this one")],
            ),
        ),
        Command("edit", "Edit it as YAML", _edit, "[<remote>:][<instance>[/<snapshot>]]", _INSTANCE, [TARGET]),
        Command("get", "Print a key", _get, "[<remote>:][<instance>] <key>", _WORDS, [_EXPANDED, TARGET]),
        METADATA,
        Command(
            "set",
            "Set keys",
            _set,
            "[<remote>:][<instance>] <key>=<value>...",
            _WORDS,
            [TARGET],
            details="An empty value removes a key; key=- reads the value from standard input.",
            examples=[
                ("flexc config set web limits.memory=2GiB limits.cpu=2", "Takes effect at once"),
                ("flexc config set core.https_address=:8443", "Of the server: let it listen on the network"),
                ("flexc config set web user.user-data=- < cloud.yaml", "A long value from a file"),
            ],
        ),
        Command(
            "show", "Show it as YAML", _show, "[<remote>:][<instance>[/<snapshot>]]", _INSTANCE, [_EXPANDED, TARGET]
        ),
        TEMPLATE,
        TRUST,
        Command("unset", "Remove a key", _unset, "[<remote>:][<instance>] <key>", _WORDS, [TARGET]),
    ],
    examples=[
        ("flexc config show web", "All of an instance's own configuration"),
        ("flexc config set web boot.autostart=true", "Start it with the host"),
        ("flexc config device add web data disk source=/srv/data path=/data", "Give it a directory of the host"),
    ],
)
