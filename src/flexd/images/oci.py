# SPDX-License-Identifier: Apache-2.0
"""OCI images as registries describe them: names, indexes, manifests (image-spec; Docker's schema 2 is alike). Pure."""

import hashlib
import re
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct, field

from flexd.api.architectures import canonical_architecture
from flexd.api.errors import BadRequest
from flexd.images.contract import BadImage, ImageNotFound
from flexd.images.urls import is_loopback

T = TypeVar("T")

MANIFEST_BYTES = 4 << 20
"""The largest manifest that registries take (distribution-spec, "Pushing Manifests")."""

# distribution-spec, "Pulling manifests"; the host is not part of it.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"({_PART}(?:/{_PART})*)(?::([A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?(?:@(sha256:[0-9a-f]{{64}}))?"
)
_PATH = re.compile(rf"(?:/{_PART})*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LAYERS = 1000
_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_ARM = {"v6": "armv6l", "v7": "armv7l", "": "armv7l", "v8": "aarch64"}


class Reference(Struct, frozen=True):
    """`place` is what follows docker:// (`docker.io/library/nginx`); `plain`: by http, without TLS."""

    place: str
    tag: str
    digest: str
    plain: bool

    def __str__(self) -> str:
        return f"{self.place}@{self.digest}" if self.digest else f"{self.place}:{self.tag}"

    def at(self, digest: str) -> "Reference":
        return msgspec.structs.replace(self, digest=digest)


def parse_reference(server: str, alias: str) -> Reference:
    """An image of a registry: `https://ghcr.io`, `owner/name:tag`. Without TLS only on this machine."""
    parts = urlsplit(server.rstrip("/"))
    if parts.query or parts.fragment or "@" in parts.netloc or not _PATH.fullmatch(parts.path):
        raise BadRequest(f'Invalid image source URL "{server}": expected https://HOST[:PORT][/PATH]')
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise BadRequest(f'Invalid image source URL "{server}": registries other than this machine\'s need https://')
    match = _REFERENCE.fullmatch(alias)
    if match is None:
        raise BadRequest(f'Invalid image name "{alias}": expected NAME[:TAG] or NAME@sha256:DIGEST, as nginx:latest')
    name, tag, digest = match[1], match[2] or "latest", match[3] or ""
    return Reference(f"{parts.netloc}{parts.path}/{name}", tag, digest, plain=parts.scheme == "http")


class Descriptor(Struct, rename="camel"):
    digest: str
    size: int
    media_type: str = ""


class Platform(Struct):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class _Entry(Descriptor):
    platform: Platform | None = None


class _Index(Struct):
    manifests: list[_Entry]


class Manifest(Struct):
    config: Descriptor
    layers: list[Descriptor]

    @property
    def total_bytes(self) -> int:
        return self.config.size + sum(layer.size for layer in self.layers)


class _Kind(Struct, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    manifests: msgspec.Raw = field(default_factory=msgspec.Raw)


def digest_of(text: bytes) -> str:
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def check_digest(text: bytes, reference: Reference) -> None:
    """Of what was asked for by its digest; skopeo shows it unchecked."""
    found = digest_of(text)
    if reference.digest and found != reference.digest:
        raise BadImage(f'Invalid image "{reference}": its manifest\'s digest is {found}, expected {reference.digest}')


def choose_digest(text: bytes, reference: Reference, architecture: str) -> str:
    """Which manifest holds the image for an architecture: one of an index's, or this text itself."""
    kind = _decode(text, _Kind, reference)
    if kind.schema_version != 2:
        raise BadImage(
            f'Invalid image "{reference}": manifests of schema {kind.schema_version} are not supported, 2 is'
        )
    if kind.media_type not in _INDEXES and not bytes(kind.manifests):
        return digest_of(text)
    entries = _decode(text, _Index, reference).manifests
    found = [entry for entry in entries if entry.platform and _architecture(entry.platform) == architecture]
    if not found:
        known = sorted({_architecture(entry.platform) for entry in entries if entry.platform} - {""})
        raise ImageNotFound(f'Image "{reference}" for {architecture} not found (it is there for {", ".join(known)})')
    return _checked(found[0], reference).digest


def _architecture(platform: Platform) -> str:
    """The kernel's word, "" for other systems' and attestations (unknown/unknown)."""
    if platform.os != "linux":
        return ""
    if platform.architecture == "arm":
        return _ARM.get(platform.variant, "")
    return canonical_architecture(platform.architecture) or ""


def parse_manifest(text: bytes, reference: Reference) -> Manifest:
    """Of one image; every digest is one, so that it may be used as a file name."""
    manifest = _decode(text, Manifest, reference)
    if len(manifest.layers) > _LAYERS:
        raise BadImage(f'Invalid image "{reference}": {len(manifest.layers)} layers, more than {_LAYERS}')
    for descriptor in (manifest.config, *manifest.layers):
        _checked(descriptor, reference)
    return manifest


def _checked(descriptor: Descriptor, reference: Reference) -> Descriptor:
    if not _DIGEST.fullmatch(descriptor.digest) or descriptor.size < 0:
        shown = f"{descriptor.digest[:80]!r}, {descriptor.size} bytes"
        raise BadImage(f'Invalid image "{reference}": strange entry in its manifest: {shown}')
    return descriptor


class ImageConfig(Struct):
    """The parts of an image's configuration that are not the runtime's."""

    architecture: str = ""
    variant: str = ""
    os: str = ""
    created: datetime | None = None


def parse_image_config(text: bytes, reference: Reference, architecture: str) -> ImageConfig:
    config = _decode(text, ImageConfig, reference)
    found = _architecture(Platform(config.architecture, config.os, config.variant))
    if found != architecture:
        said = f"{config.os or '?'}/{config.architecture or '?'}"
        raise ImageNotFound(f'Image "{reference}" for {architecture} not found (it is for {said})')
    return config


def created_at(config: ImageConfig) -> int:
    """Seconds; images built reproducibly say 1970 or nothing."""
    return max(1, int(config.created.astimezone(UTC).timestamp())) if config.created else 1


def _decode(text: bytes, kind: type[T], reference: Reference) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadImage(f'Invalid image "{reference}": {error}') from error
