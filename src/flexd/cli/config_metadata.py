# SPDX-License-Identifier: Apache-2.0
"""`flexc config metadata` and `flexc config template`: what an instance keeps of its image's metadata."""

from __future__ import annotations

import sys

from flexd.cli.command import Group, Positional
from flexd.cli.errors import CliError
from flexd.cli.instance import INSTANCE
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

_ORDER = ("architecture", "creation_date", "expiry_date", "properties", "templates")


def _metadata_path(context: Context, args: Arguments) -> tuple[Client, str]:
    client, name = context.resolve(args.instance)
    return client, path_of("instances", name, "metadata")


def _show_metadata(context: Context, args: Arguments) -> None:
    from flexd.cli.yamltext import dump

    client, path = _metadata_path(context, args)
    metadata = client.get(path)
    print(dump({key: metadata[key] for key in _ORDER if key in metadata}), end="")


def _edit_metadata(context: Context, args: Arguments) -> None:
    from flexd.cli.edit import edit_document

    client, path = _metadata_path(context, args)
    reply = client.request("GET", path)
    document = {key: reply.metadata[key] for key in _ORDER if key in reply.metadata}

    def apply(changed: dict[str, object]) -> None:
        for key in ("creation_date", "expiry_date"):
            if isinstance(changed.get(key), str):
                changed[key] = int(str(changed[key]) or 0)
        client.request("PUT", path, changed, etag=reply.etag)

    edit_document(document, "The image metadata that this instance was made with, as YAML.", apply)


def _list_templates(context: Context, args: Arguments) -> None:
    client, path = _metadata_path(context, args)
    print("\n".join(sorted(client.get(f"{path}/templates"))))


def _show_template(context: Context, args: Arguments) -> None:
    sys.stdout.write(_read_template(context, args))


def _read_template(context: Context, args: Arguments) -> str:
    client, path = _metadata_path(context, args)
    return client.open("GET", f"{path}/templates", query={"path": args.template}).read().decode(errors="replace")


def _write_template(context: Context, args: Arguments, text: str) -> None:
    client, path = _metadata_path(context, args)
    client.request("POST", f"{path}/templates", text.encode(), query={"path": args.template})


def _create_template(context: Context, args: Arguments) -> None:
    client, path = _metadata_path(context, args)
    if args.template in client.get(f"{path}/templates"):
        raise CliError(f"A template with the name {args.template} exists already")
    _write_template(context, args, "")


def _edit_template(context: Context, args: Arguments) -> None:
    from flexd.cli.edit import edit_text

    text = edit_text(_read_template(context, args), ".tpl") if sys.stdin.isatty() else sys.stdin.read()
    _write_template(context, args, text)


def _delete_template(context: Context, args: Arguments) -> None:
    client, path = _metadata_path(context, args)
    client.request("DELETE", f"{path}/templates", query={"path": args.template})


_TEMPLATE_NAME = [Positional("template")]

METADATA = Group(
    "metadata",
    "Manage the image metadata of an instance",
    [
        INSTANCE.command("edit", "Edit it as YAML", _edit_metadata),
        INSTANCE.command("show", "Show it as YAML", _show_metadata),
    ],
)
TEMPLATE = Group(
    "template",
    "Manage the file templates of an instance",
    [
        INSTANCE.command("create", "Create an empty template", _create_template, "<template>", _TEMPLATE_NAME),
        INSTANCE.command("delete", "Delete a template", _delete_template, "<template>", _TEMPLATE_NAME, aliases=["rm"]),
        INSTANCE.command("edit", "Edit a template", _edit_template, "<template>", _TEMPLATE_NAME),
        INSTANCE.command("list", "List templates", _list_templates, aliases=["ls"]),
        INSTANCE.command("show", "Print a template", _show_template, "<template>", _TEMPLATE_NAME),
    ],
)
