# SPDX-License-Identifier: Apache-2.0
"""Rows of the server's configuration that images and their downloads read."""

from collections.abc import Callable
from functools import partial

from msgspec import structs

from flexd.api.architectures import canonical_architecture
from flexd.api.keys import Key
from flexd.images.compress import algorithm_fault

Settings = Callable[[str], str]
"""A key's value, or its row's default."""
ProjectSettings = Callable[[str, str], str]
"""The same for a project: what it sets (`PROJECT_KEYS`) comes before what the server does."""


def _architecture_fault(value: str) -> str | None:
    return None if canonical_architecture(value) else f'architecture "{value}" is not known'


def _count_fault(value: str) -> str | None:
    return f'invalid value "{value}" (expected 0 or more)' if int(value) < 0 else None


def _proxy_fault(value: str) -> str | None:
    if value.startswith(("http://", "https://")):
        return None
    return f'invalid value "{value}" (expected http:// or https://, a host and a port)'


KEYS = (
    Key("core.proxy_http", description="Proxy for http:// downloads of images", check=_proxy_fault),
    Key("core.proxy_https", description="Proxy for https:// downloads of images", check=_proxy_fault),
    Key(
        "core.proxy_ignore_hosts",
        description="Reached without a proxy: names, `.domains`, addresses and networks, separated by commas",
    ),
    Key("images.auto_update_cached", "bool", "true", "Keep images up to date that were fetched for an instance"),
    Key(
        "images.auto_update_interval",
        "integer",
        "6",
        "Hours between looks for newer versions of images with auto_update; 0 never looks",
        check=_count_fault,
    ),
    Key(
        "images.compression_algorithm",
        default="gzip",
        description="How published images are compressed: a program, with options (`zstd -9`), none, or squashfs",
        check=partial(algorithm_fault, squashfs=True),
    ),
    Key(
        "images.default_architecture",
        description="Which of a server's images is meant where none is named (default: this host's architecture)",
        check=_architecture_fault,
    ),
    Key(
        "images.oci_authfile",
        description="Credentials for OCI registries: a file here, as `skopeo login --authfile` writes it",
    ),
    Key(
        "images.remote_cache_expiry",
        "integer",
        "10",
        "Days after which an image is removed that was fetched for an instance and not used since; 0 keeps it",
        check=_count_fault,
    ),
    Key(
        "images.simplestreams_keyrings",
        description="OpenPGP keyrings (files here) that indexes must be signed with: HOST=FILE, or FILE for all "
        "others, separated by commas",
    ),
)

# Rows of a project's configuration, without defaults: those are what the server says.
_OF_PROJECTS = (
    "images.auto_update_cached",
    "images.auto_update_interval",
    "images.compression_algorithm",
    "images.default_architecture",
    "images.remote_cache_expiry",
)
PROJECT_KEYS = tuple(structs.replace(key, default="") for key in KEYS if key.name in _OF_PROJECTS)

_DEFAULTS = {key.name: key.default for key in KEYS}


def default_settings(name: str) -> str:
    """Settings of a store without a server around it."""
    return _DEFAULTS[name]
