# SPDX-License-Identifier: Apache-2.0
"""`flexc image tree`: a directory that any web server makes into a simplestreams server of images."""

from __future__ import annotations

import os
import re
import shutil
from functools import partial

from flexd.api.architectures import canonical_architecture, package_architecture
from flexd.cli.command import Command, Option, Positional
from flexd.cli.context import only_remote
from flexd.cli.errors import CliError, UsageError
from flexd.cli.image_export import export_files
from flexd.cli.image_remotes import find_image
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import hashlib
    from collections.abc import Callable, Iterator
    from typing import Any

    from flexd.api.simplestreams import Item, Product
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

    # Puts an image's file or files into a directory, and returns their paths in order.
    Export = Callable[[str], list[str]]

_INDEX, _PRODUCTS = "streams/v1/index.json", "streams/v1/images.json"
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_BLOCK_BYTES = 1 << 20


def _tree(context: Context, args: Arguments) -> None:
    if args.keep < 1:
        raise UsageError("--keep must be 1 or more")
    tree = _Tree(args.directory, args.keep)
    for image, export in _images(context, args):
        if tree.has(image):
            context.say(f"{image['fingerprint'][:12]}: there already")
            continue
        context.say(f"{image['fingerprint'][:12]}: writing {image['properties'].get('description', '')}")
        tree.add(image, export)
    tree.write()
    context.say(f"{args.directory} holds {len(tree.products)} products. Serve it over https; then:")
    context.say("  flexc remote add mine https://<server>/<path> --protocol simplestreams")


def _images(context: Context, args: Arguments) -> Iterator[tuple[dict[str, Any], Export]]:
    """Each image with what puts its files into a directory."""
    for names in args.file:
        files = names.split(",")
        yield describe(files), partial(_copied, files)
    if args.file and not args.image:
        return
    client = only_remote(context, args.remote) if args.remote else context.client()
    chosen = _chosen(client, args.image)
    if not chosen:
        raise CliError("No public images to write. Name some with --image, or: flexc image edit <image>, public: true")
    for image in chosen:
        yield image, partial(export_files, client, image["fingerprint"])


def describe(files: list[str]) -> dict[str, Any]:
    """An image in files as the API would show it, by its metadata.yaml."""
    import hashlib
    import tarfile
    from datetime import UTC, datetime

    from flexd.cli.yamltext import load

    if len(files) not in (1, 2):
        raise UsageError("--file takes one file, or the metadata and the root file system with a comma between")
    digest = hashlib.sha256()
    try:
        for file in files:
            _feed(digest, file)
        with tarfile.open(files[0]) as archive:
            member = next((m for m in archive if m.name.removeprefix("./") == "metadata.yaml"), None)
            content = archive.extractfile(member) if member else None
            metadata = load(content.read().decode(), f"metadata.yaml of {files[0]}") if content else None
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise CliError(f"Failed reading {files[0]}: {error}") from error
    if not isinstance(metadata, dict) or not metadata.get("architecture"):
        raise CliError(f"Failed reading {files[0]}: no metadata.yaml with an architecture")
    made = datetime.fromtimestamp(int(metadata.get("creation_date") or 0), UTC)
    return {
        "fingerprint": digest.hexdigest(),
        "architecture": canonical_architecture(metadata["architecture"]) or metadata["architecture"],
        "properties": {key: str(value) for key, value in (metadata.get("properties") or {}).items()},
        "aliases": [],
        "created_at": made.isoformat(),
        "uploaded_at": datetime.now(UTC).isoformat(),
    }


def _copied(files: list[str], directory: str) -> list[str]:
    return [shutil.copyfile(file, os.path.join(directory, f"part.{index}")) for index, file in enumerate(files)]


def _chosen(client: Client, names: list[str]) -> list[dict[str, Any]]:
    """The images that were named, or all public ones."""
    if names:
        return [client.get(path_of("images", find_image(client, name))) for name in names]
    images: list[dict[str, Any]] = client.get("/1.0/images", {"recursion": "1"})
    return [image for image in images if image["public"]]


class _Tree:
    """A directory with what it holds; `keep`: how many versions of each product stay."""

    def __init__(self, directory: str, keep: int) -> None:
        self.products: dict[str, Product] = {}
        self._directory, self._keep = directory, keep
        self._load()

    def _load(self) -> None:
        import msgspec

        from flexd.api.simplestreams import Product, Products

        try:
            with open(os.path.join(self._directory, _PRODUCTS), "rb") as file:
                document = msgspec.json.decode(file.read(), type=Products)
            self.products = {name: msgspec.json.decode(raw, type=Product) for name, raw in document.products.items()}
        except FileNotFoundError:
            return
        except msgspec.DecodeError as error:
            raise CliError(f"Failed reading {self._directory}/{_PRODUCTS}: {error}") from error

    def has(self, image: dict[str, Any]) -> bool:
        name, serial = _product_name(image), _serial(image)
        product = self.products.get(name)
        items = product.versions[serial].items if product and serial in product.versions else {}
        return any(image["fingerprint"] in _fingerprints(item) for item in items.values())

    def add(self, image: dict[str, Any], export: Export) -> None:
        """Put its files into place, and describe them."""
        from flexd.api.simplestreams import Product, Version

        name, serial = _product_name(image), _serial(image)
        place = "/".join(("images", *name.split(":"), serial))
        product = self.products.setdefault(name, Product())
        properties = image["properties"] or {}
        product.os, product.release = properties.get("os", ""), properties.get("release", "")
        product.version, product.variant = properties.get("version", ""), name.split(":")[3]
        product.arch = name.split(":")[2]
        product.release_title = product.release
        product.aliases = ",".join(sorted({alias["name"] for alias in image["aliases"] or ()} | _names(product)))
        product.versions[serial] = Version(self._export(export, image["fingerprint"], place))
        for old in sorted(product.versions)[: -self._keep]:
            del product.versions[old]
            shutil.rmtree(os.path.join(self._directory, "images", *name.split(":"), old), ignore_errors=True)

    def _export(self, export: Export, fingerprint: str, place: str) -> dict[str, Item]:
        directory = os.path.join(self._directory, place)
        os.makedirs(directory, exist_ok=True)
        paths = export(directory)
        if len(paths) == 1:
            return _items([(_renamed(paths[0], "lxd_combined.tar.gz"), "lxd_combined.tar.gz")], place, fingerprint)
        with open(paths[1], "rb") as file:
            kind = "squashfs" if file.read(4) == b"hsqs" else "root.tar.xz"
        root = _renamed(paths[1], "rootfs.squashfs" if kind == "squashfs" else "root.tar.xz")
        return _items([(_renamed(paths[0], "lxd.tar.xz"), "lxd.tar.xz"), (root, kind)], place, fingerprint)

    def write(self) -> None:
        """The documents last and in one piece each: what they name is there."""
        import msgspec

        from flexd.api.simplestreams import Index, IndexEntry, Products

        entry = IndexEntry("image-downloads", _PRODUCTS, "products:1.0", sorted(self.products))
        encode = msgspec.json.encode
        products = Products({name: msgspec.Raw(encode(self.products[name])) for name in sorted(self.products)})
        os.makedirs(os.path.join(self._directory, "streams/v1"), exist_ok=True)
        for path, document in ((_PRODUCTS, products), (_INDEX, Index({"images": entry}))):
            target = os.path.join(self._directory, path)
            with open(f"{target}.new", "wb") as file:
                file.write(msgspec.json.format(encode(document), indent=1) + b"\n")
            os.replace(f"{target}.new", target)


def _renamed(path: str, name: str) -> str:
    target = os.path.join(os.path.dirname(path), name)
    os.replace(path, target)
    return target


def _items(files: list[tuple[str, str]], place: str, fingerprint: str) -> dict[str, Item]:
    """Descriptions of one or two files; the first of two names the image that both make."""
    from flexd.api.simplestreams import Item

    items = {}
    for path, kind in files:
        name = os.path.basename(path)
        items[name] = Item(kind, f"{place}/{name}", _sha256(path), os.path.getsize(path))
    if len(files) == 2:
        metadata = items[os.path.basename(files[0][0])]
        if files[1][1] == "squashfs":
            metadata.combined_squashfs_sha256 = fingerprint
        else:
            metadata.combined_rootxz_sha256 = metadata.combined_sha256 = fingerprint
    return items


def _sha256(path: str) -> str:
    import hashlib

    digest = hashlib.sha256()
    _feed(digest, path)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, path: str) -> None:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)


def _fingerprints(item: Item) -> Iterator[str]:
    yield from (item.combined_squashfs_sha256, item.combined_rootxz_sha256)
    if item.ftype.endswith("_combined.tar.gz"):
        yield item.sha256


def _product_name(image: dict[str, Any]) -> str:
    """`debian:bookworm:amd64:default`, of the image's properties; also where its files lie."""
    properties = image["properties"] or {}
    parts = (
        properties.get("os") or "image",
        properties.get("release") or image["fingerprint"][:12],
        package_architecture(image["architecture"]),
        properties.get("variant") or "default",
    )
    return ":".join(_UNSAFE.sub("-", part.lower()).strip(".-") or "image" for part in parts)


def _serial(image: dict[str, Any]) -> str:
    """Versions are sorted by name: `20261123_0600`, else the day that it was made."""
    serial = _UNSAFE.sub("-", str((image["properties"] or {}).get("serial", "")))
    if re.match(r"20[0-9]{6}", serial):
        return serial
    day = str(image["created_at"])
    day = day if day > "1971" else str(image["uploaded_at"])
    return re.sub(r"[^0-9]", "", day)[:8] + "_" + re.sub(r"[^0-9]", "", day)[8:12]


def _names(product: Product) -> set[str]:
    """How people call it: `debian/bookworm`, `debian/12`, and with a variant other than the default one's name."""
    end = "" if product.variant == "default" else f"/{product.variant}"
    base = product.os.lower()
    return {f"{base}/{name}{end}" for name in (product.release, product.version) if base and name}


TREE = Command(
    "tree",
    "Write images as a directory for any web server (simplestreams)",
    _tree,
    "<directory> [<remote>:]",
    [Positional("directory", completes="file"), Positional("remote", "?", completes="remote")],
    [
        Option("--image", action="append", default=[], help="Image to write (default: all public ones)"),
        Option(
            "--file",
            action="append",
            default=[],
            help="Image in files of this machine: <image>, or <metadata>,<root file system>",
            completes="file",
        ),
        Option("--keep", type=int, default=2, help="Versions of each product that stay (default 2)"),
    ],
    details="What is in the directory already stays; run it again to add newer versions.",
    examples=[("flexc image tree /srv/www/images --image debian/12", "Then serve /srv/www over https")],
)
