# SPDX-License-Identifier: Apache-2.0
"""`flexc image`."""

from __future__ import annotations

from flexd.cli import entity as verbs
from flexd.cli.command import Command, Group, Option, Positional
from flexd.cli.image_alias import ALIAS_GROUP
from flexd.cli.image_copy import COPY
from flexd.cli.image_list import LIST
from flexd.cli.image_remotes import find_image, image_of
from flexd.cli.image_transfer import BUILD, EXPORT, IMPORT
from flexd.cli.image_tree import TREE
from flexd.cli.keyvalue import remove_key
from flexd.cli.show import is_set, utc_time, yes_no
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def _locate(context: Context, args: Arguments) -> tuple[Client, str, str]:
    client, name = context.resolve(args.image)
    kind = "virtual-machine" if getattr(args, "vm", False) else ""
    return client, path_of("images", find_image(client, name, kind)), name


_IMAGE = verbs.Entity(
    "image",
    "[<remote>:]<image>",
    [Positional("image", completes="image")],
    _locate,
    ("auto_update", "properties", "public", "expires_at", "profiles"),
    ("auto_update", "properties", "public", "expires_at", "profiles"),
)


def _info(context: Context, args: Arguments) -> None:
    remote, name = context.split(args.image)
    print("\n".join(_info_lines(image_of(context, remote, name, "virtual-machine" if args.vm else ""))))


def _info_lines(image: Mapping[str, Any]) -> Iterator[str]:
    yield f"Fingerprint: {image['fingerprint']}"
    yield f"Size: {image['size'] / 1024**2:.2f}MiB"
    yield f"Architecture: {image['architecture']}\nType: {image['type']}\nPublic: {yes_no(image['public'])}"
    yield "Timestamps:"
    if is_set(image["created_at"]):
        yield f"    Created: {utc_time(image['created_at'])}"
    yield f"    Uploaded: {utc_time(image['uploaded_at'])}"
    yield f"    Expires: {utc_time(image['expires_at']) or 'never'}"
    yield f"    Last used: {utc_time(image['last_used_at']) or 'never'}"
    yield "Properties:"
    yield from (f"    {key}: {value}" for key, value in sorted((image["properties"] or {}).items()))
    yield "Aliases:"
    for alias in image["aliases"] or ():
        yield f"    - {alias['name']}" + (f" ({alias['description']})" if alias["description"] else "")
    yield f"Cached: {yes_no(image['cached'])}"
    yield f"Auto update: {'enabled' if image['auto_update'] else 'disabled'}"
    source = image.get("update_source")
    if source:
        yield f"Source:\n    Server: {source['server']}\n    Protocol: {source['protocol']}"
        yield f"    Alias: {source['alias']}"
    yield "Profiles:" + ("" if image["profiles"] else " []")
    yield from (f"    - {profile}" for profile in image["profiles"] or ())


def _delete(context: Context, args: Arguments) -> None:
    for word in args.image:
        client, name = context.resolve(word)
        context.perform(client, "DELETE", path_of("images", find_image(client, name)))


def _refresh(context: Context, args: Arguments) -> None:
    for word in args.image:
        client, name = context.resolve(word)
        path = path_of("images", find_image(client, name), "refresh")
        operation = context.perform(client, "POST", path, label=f"Refreshing {name}")
        refreshed = ((operation or {}).get("metadata") or {}).get("refreshed")
        context.say("Image refreshed successfully!" if refreshed else "Image already up to date.")


def _get_property(context: Context, args: Arguments) -> None:
    client, path, _ = _locate(context, args)
    print(client.get(path)["properties"].get(args.key, ""))


def _set_property(context: Context, args: Arguments) -> None:
    _IMAGE.change(context, args, lambda value, _: value["properties"].update({args.key: args.value}))


def _unset_property(context: Context, args: Arguments) -> None:
    _IMAGE.change(context, args, lambda value, label: remove_key(value["properties"], args.key, label))


_SOME = [Positional("image", "+", completes="image")]
_KEY = Positional("key")
_VM = Option("--vm", action="store_true", help="An image of a virtual machine")

COMMAND = Group(
    "image",
    "Manage images, which instances are made from",
    [
        ALIAS_GROUP,
        BUILD,
        COPY,
        Command(
            "delete", "Delete images", _delete, "[<remote>:]<image> [[<remote>:]<image>...]", _SOME, aliases=["rm"]
        ),
        verbs.edit(_IMAGE),
        EXPORT,
        _IMAGE.command("get-property", "Print a property", _get_property, "<key>", [_KEY]),
        IMPORT,
        _IMAGE.command("info", "Show an image", _info, options=[_VM]),
        LIST,
        Command(
            "refresh", "Fetch newer versions of images", _refresh, "[<remote>:]<image> [[<remote>:]<image>...]", _SOME
        ),
        _IMAGE.command("set-property", "Set a property", _set_property, "<key> <value>", [_KEY, Positional("value")]),
        verbs.show(_IMAGE, only_writable=True),
        TREE,
        _IMAGE.command("unset-property", "Remove a property", _unset_property, "<key>", [_KEY]),
    ],
    details="An image is named by an alias, its fingerprint (SHA-256), or enough of the fingerprint's beginning.",
    examples=[
        ("flexc image build debian/12", "Make one from Debian's packages"),
        ("flexc image list", "What there is"),
        ("flexc image import rootfs.tar.xz --alias mine", "Take one from a file"),
    ],
)
