# SPDX-License-Identifier: Apache-2.0
"""The documents of a simplestreams image server, and the images that they describe.

Pure: bytes in, values out. Whatever a server says is checked here: hashes and paths above all. What describes no image
of a container that can be verified is left out.
"""

import re
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct, field

from flexd.api.architectures import canonical_architecture
from flexd.api.errors import BadRequest
from flexd.api.image import Image, ImageAlias
from flexd.api.times import ZERO_TIME

INDEX_PATH = "streams/v1/index.json"
_DATATYPE = "image-downloads"
_SHA256 = re.compile(r"[0-9a-f]{64}")
# File types of the two halves of a split image, as servers for LXD and for Incus call them, best first.
_METADATA = ("lxd.tar.xz", "incus.tar.xz")
_COMBINED = ("lxd_combined.tar.gz", "incus_combined.tar.gz")
_ROOTS = {
    "squashfs": ("combined_squashfs_sha256",),
    "root.tar.xz": ("combined_rootxz_sha256", "combined_sha256"),
}
# What LXD's property `type` says of them.
_TYPES = {"squashfs": "squashfs", "root.tar.xz": "tar.xz"}
# No distribution has more; a name that is longer is no name.
_ALIASES_LIMIT, _ALIAS_LENGTH = 100, 255


class BadStream(BadRequest):
    def __init__(self, url: str, reason: object) -> None:
        super().__init__(f'Invalid simplestreams server: "{url}": {reason}')


class IndexEntry(Struct):
    datatype: str = ""
    path: str = ""
    format: str = ""
    products: list[str] = field(default_factory=list)


class Index(Struct):
    index: dict[str, IndexEntry]
    format: str = "index:1.0"


class Item(Struct, omit_defaults=True):
    """One file of a version. `combined_*`: the fingerprint of the image that this metadata makes with that root."""

    ftype: str = ""
    path: str = ""
    sha256: str = ""
    size: int = 0
    combined_sha256: str = ""
    combined_rootxz_sha256: str = ""
    combined_squashfs_sha256: str = ""


class Version(Struct, omit_defaults=True):
    items: dict[str, Item] = field(default_factory=dict)
    label: str = ""


class Product(Struct, omit_defaults=True):
    """`aliases` are separated by commas; `versions` are named by date: `20261123_06:00`."""

    aliases: str = ""
    arch: str = ""
    os: str = ""
    release: str = ""
    release_title: str = ""
    variant: str = ""
    version: str = ""
    support_eol: str | None = None
    requirements: dict[str, Any] | None = None
    versions: dict[str, Version] = field(default_factory=dict)


class Products(Struct):
    products: dict[str, msgspec.Raw]
    content_id: str = "images"
    datatype: str = _DATATYPE
    format: str = "products:1.0"


class StreamFile(Struct, frozen=True):
    """`path` is relative to the server's address."""

    path: str
    sha256: str
    size_bytes: int


class StreamImage(Struct, frozen=True):
    """One image that can be fetched; without `rootfs` one file holds all."""

    image: Image
    metadata: StreamFile
    rootfs: StreamFile | None = None


def parse_index(text: bytes, url: str) -> list[str]:
    """Paths of the documents that list images."""
    try:
        index = msgspec.json.decode(text, type=Index, strict=False)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadStream(url, error) from error
    paths = [entry.path for entry in index.index.values() if entry.datatype == _DATATYPE and entry.products]
    for path in paths:
        if not _is_inside(path):
            raise BadStream(url, f'the path "{path}" leads out of the server')
    return paths


def parse_products(text: bytes, url: str) -> list[StreamImage]:
    """The images of a products document, those of a product newest first; aliases are on the newest of each kind."""
    try:
        document = msgspec.json.decode(text, type=Products, strict=False)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadStream(url, error) from error
    found: list[StreamImage] = []
    for raw in document.products.values():
        try:
            found += _images_of(msgspec.json.decode(raw, type=Product, strict=False))
        except (msgspec.DecodeError, RecursionError):
            continue  # one that cannot be read is none of ours; the others may well be
    return found


def find_image(images: list[StreamImage], name: str, architecture: str) -> StreamImage | None:
    """By alias (`debian/12`, `debian/12/arm64`), fingerprint or unique beginning of it."""
    named = [found for found in images if any(alias.name == name for alias in found.image.aliases)]
    for found in named:
        if found.image.architecture == architecture or name.endswith(f"/{found.image.properties['architecture']}"):
            return found
    fitting = [found for found in images if len(name) >= 8 and found.image.fingerprint.startswith(name)]
    return fitting[0] if len({found.image.fingerprint for found in fitting}) == 1 else None


def _images_of(product: Product) -> list[StreamImage]:
    architecture = canonical_architecture(product.arch)
    if architecture is None:
        return []
    found: list[StreamImage] = []
    aliases = _aliases(product)
    for name in sorted(product.versions, reverse=True):
        created_at = _date(name)
        images = _images_of_version(product, name, architecture) if created_at != ZERO_TIME else []
        for image in images:
            image.image.created_at = image.image.uploaded_at = created_at
            image.image.aliases = [ImageAlias(name=alias) for alias in aliases] if not found else []
            found.append(image)
    return found


def _images_of_version(product: Product, name: str, architecture: str) -> list[StreamImage]:
    items = product.versions[name].items
    by_type = {item.ftype: item for item in items.values() if _is_sound(item)}
    metadata = next((by_type[kind] for kind in _METADATA if kind in by_type), None)
    found = []
    for kind, keys in _ROOTS.items():
        fingerprint = next((value for key in keys if metadata and (value := getattr(metadata, key))), "")
        if metadata is not None and kind in by_type and _SHA256.fullmatch(fingerprint):
            image = _image(product, name, architecture, fingerprint, kind)
            found.append(_complete(image, metadata, by_type[kind]))
    for kind in _COMBINED:
        if kind in by_type:
            image = _image(product, name, architecture, by_type[kind].sha256, kind)
            found.append(_complete(image, by_type[kind], None))
    return found


def _complete(image: Image, metadata: Item, root: Item | None) -> StreamImage:
    image.size = metadata.size + (root.size if root else 0)
    image.filename = metadata.path.rpartition("/")[2]
    return StreamImage(image, _file(metadata), _file(root) if root else None)


def _file(item: Item) -> StreamFile:
    return StreamFile(item.path, item.sha256, item.size)


def _image(product: Product, serial: str, architecture: str, fingerprint: str, kind: str) -> Image:
    version = product.versions[serial]
    title = product.release_title or product.release
    label = f" ({version.label})" if version.label else ""
    properties = {
        "os": product.os,
        "release": product.release,
        "version": product.version,
        "variant": product.variant,
        "architecture": product.arch,
        "label": version.label,
        "serial": serial,
        "type": _TYPES.get(kind, "tar.gz"),
        "description": f"{product.os} {title} {product.arch}{label} ({serial})",
        **{f"requirements.{key}": str(value) for key, value in (product.requirements or {}).items()},
    }
    return Image(
        architecture=architecture,
        fingerprint=fingerprint,
        properties={key: value for key, value in properties.items() if value},
        expires_at=_date((product.support_eol or "").replace("-", "")),
        public=True,
        type="container",
    )


def _is_sound(item: Item) -> bool:
    return bool(_SHA256.fullmatch(item.sha256)) and item.size > 0 and _is_inside(item.path)


def _is_inside(path: str) -> bool:
    """A plain relative path: no other server, no way up, nothing that a URL gives a meaning to."""
    parts = path.split("/")
    return (
        bool(path) and ".." not in parts and not path.startswith("/") and not re.search(r"[\x00-\x20\x7f?#\\%]", path)
        and ":" not in parts[0]
    )  # fmt: skip


def _aliases(product: Product) -> list[str]:
    """Each name, and with it the architecture, under which it can be had on every machine."""
    names = [name.strip() for name in product.aliases.split(",")][:_ALIASES_LIMIT]
    names = [name for name in names if name and len(name) <= _ALIAS_LENGTH]
    return [alias for name in names for alias in (name, f"{name}/{product.arch}")]


def _date(text: str) -> datetime:
    """`20261123_06:00` and the like: its day."""
    try:
        return datetime.strptime(text[:8], "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return ZERO_TIME
