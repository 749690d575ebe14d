# SPDX-License-Identifier: Apache-2.0
"""`flexc image build|import|export`: images come and go."""

from __future__ import annotations

import os

from flexd.cli.command import Command, Option, Positional
from flexd.cli.errors import CliError, UsageError
from flexd.cli.image_alias import point_aliases
from flexd.cli.image_remotes import find_image
from flexd.cli.keyvalue import parse_pairs
from flexd.client.client import path_of, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

_ALIAS = Option("--alias", action="append", default=[], help="Name to give to the image")
_PUBLIC = Option("--public", action="store_true", help="Let everybody fetch it, without being trusted")


def _fingerprint(operation: Any) -> str:
    metadata = (operation or {}).get("metadata") or {}
    return str(metadata.get("fingerprint", ""))


def _build(context: Context, args: Arguments) -> None:
    remote, name = context.split(args.name)
    client = context.client(remote)
    # The server takes these as parts of the name.
    name = "/".join(filter(None, (name, args.variant, args.arch)))
    names = args.alias or [name]
    source = {"type": "build", "name": name}
    # A name that stands for an older build is moved once the new one is there; until then that one stays in use.
    fresh = [alias for alias in names if not client.exists(path_of("images", "aliases", alias))]
    body = {
        "source": source,
        "aliases": [{"name": alias, "description": ""} for alias in fresh],
        "public": args.public,
        "properties": parse_pairs(args.property),
    }
    context.say(f"Building {name}")
    operation = context.perform(client, "POST", "/1.0/images", body, label=f"Building {name}")
    fingerprint = _fingerprint(operation)
    if fingerprint:
        point_aliases(client, names, fingerprint)
    context.say(f"Image built with fingerprint: {fingerprint}")
    context.say(f"Launch it with: flexc launch {names[0]} first")


def _import(context: Context, args: Arguments) -> None:
    rootfs, client, properties = _import_words(context, args.word)
    if args.file.startswith(("https://", "http://")):
        operation = _import_url(context, client, args, properties)
    elif os.path.isdir(args.file):
        operation = _import_directory(context, client, args, properties)
    else:
        operation = _import_files(context, client, args.file, rootfs, args, properties)
    fingerprint = _fingerprint(operation)
    context.say(f"Image imported with fingerprint: {fingerprint}")
    point_aliases(client, args.alias, fingerprint)


def _import_words(context: Context, words: list[str]) -> tuple[str, Client, dict[str, str]]:
    """What follows the first file: a root file system, a remote, properties."""
    rootfs, remote, pairs = "", "", []
    for word in words:
        if word.endswith(":") and "=" not in word:
            remote = context.split(word)[0]
        elif "=" in word and not os.path.exists(word):
            pairs.append(word)
        elif rootfs:
            raise UsageError(f'"{word}" not expected: a second root file system, or key=value without "="')
        else:
            rootfs = word
    return rootfs, context.client(remote), parse_pairs(pairs)


def _import_url(context: Context, client: Client, args: Arguments, properties: dict[str, str]) -> Any:
    body = {
        "source": {"type": "url", "mode": "pull", "url": args.file},
        "public": args.public,
        "properties": properties,
    }
    return context.perform(client, "POST", "/1.0/images", body, label="Importing the image")


def _import_directory(context: Context, client: Client, args: Arguments, properties: dict[str, str]) -> Any:
    import subprocess
    import tempfile

    if os.geteuid() != 0:
        raise CliError("Importing a directory needs root, to read every file with its owner")
    with tempfile.TemporaryDirectory(prefix="flexc-") as scratch:
        archive = os.path.join(scratch, f"{os.path.basename(os.path.abspath(args.file))}.tar.gz")
        argv = ["tar", "-C", args.file, "--numeric-owner", "--xattrs", "-czf", archive, "metadata.yaml", "rootfs"]
        if os.path.isdir(os.path.join(args.file, "templates")):
            argv.append("templates")
        packed = subprocess.run(argv, capture_output=True, text=True)
        if packed.returncode:
            raise CliError(f"Failed packing {args.file}: {packed.stderr.strip()[-500:]}")
        return _import_files(context, client, archive, "", args, properties)


def _import_files(
    context: Context, client: Client, file: str, rootfs: str, args: Arguments, properties: dict[str, str]
) -> Any:
    from flexd.cli.upload import Multipart, send, upload_file

    headers = {
        "X-LXD-public": "true" if args.public else "false",
        "X-LXD-filename": os.path.basename(file),
        "X-LXD-properties": "&".join(f"{quote(key)}={quote(value)}" for key, value in properties.items()),
    }
    label = "Transferring the image"
    if not rootfs:
        return upload_file(context, client, "/1.0/images", file, headers, label)
    parts = Multipart([("metadata", file), ("rootfs", rootfs)])
    headers["Content-Type"] = parts.content_type
    # `read` is all that the client uses of the stream.
    return send(context, client, "/1.0/images", parts, parts.size, headers, label)  # type: ignore[arg-type]


def _export(context: Context, args: Arguments) -> None:
    from flexd.cli.image_export import export_image

    client, name = context.resolve(args.image)
    fingerprint = find_image(client, name, "virtual-machine" if args.vm else "")
    export_image(context, client, fingerprint, args.target)
    context.say("Image exported successfully!")


BUILD = Command(
    "build",
    "Build an image from a distribution's packages",
    _build,
    "[<remote>:]<name>",
    [Positional("name", completes="buildable")],
    [
        Option("--alias", action="append", default=[], help="Name to give to the image (default: what was built)"),
        Option("--property", action="append", default=[], help="Property key=value"),
        _PUBLIC,
        Option("--arch", default="", help="Architecture, as arm64, if the server can run its programs"),
        Option("--variant", default="", help="Variant of it: default, or cloud, with cloud-init and ssh"),
    ],
    details="""
Known: debian/11, debian/12, debian/13, debian/sid, ubuntu/22.04, ubuntu/24.04, ubuntu/26.04.
The server needs mmdebstrap, squashfs-tools and the distribution's keyring; for a foreign architecture also arch-test
and qemu-user-static. The same packages make the same image, with the same fingerprint.
""",
    examples=[
        ("flexc image build debian/12", "Then: flexc launch debian/12 first"),
        ("flexc image build debian/13 --variant cloud", "For configuration by cloud-init.user-data"),
    ],
)
IMPORT = Command(
    "import",
    "Import an image from files, a directory or a URL",
    _import,
    "<tarball>|<directory>|<URL> [<rootfs tarball>] [<remote>:] [key=value...]",
    [Positional("file", completes="file"), Positional("word", "*", completes="file")],
    [_ALIAS, _PUBLIC],
    examples=[
        ("flexc image import alpine.tar.xz --alias alpine", "One file with everything"),
        ("flexc image import meta.tar.xz rootfs.squashfs --alias mine", "Metadata and root file system apart"),
    ],
)
EXPORT = Command(
    "export",
    "Save an image as files",
    _export,
    "[<remote>:]<image> [<target>]",
    [Positional("image", completes="image"), Positional("target", "?", completes="file")],
    [Option("--vm", action="store_true", help="An image of a virtual machine")],
    details="The target is a directory (default: this one) or a file name; - is standard output.",
)
