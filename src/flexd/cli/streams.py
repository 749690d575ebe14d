# SPDX-License-Identifier: Apache-2.0
"""What a simplestreams server has, for lists. The daemon fetches and checks images itself, signatures included."""

from __future__ import annotations

from flexd.cli.errors import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TIMEOUT_S = 30.0
_DOCUMENT_BYTES = 64 << 20


def list_images(address: str) -> list[dict[str, Any]]:
    """Every image, as the API shows images; `debian/12` is this machine's kind, the others are `debian/12/arm64`."""
    import os

    import msgspec

    from flexd.api.errors import FlexdError
    from flexd.api.simplestreams import INDEX_PATH, parse_index, parse_products

    base = address.rstrip("/")
    try:
        paths = parse_index(_read(f"{base}/{INDEX_PATH}"), base)
        images = [found.image for path in paths for found in parse_products(_read(f"{base}/{path}"), base)]
    except FlexdError as error:
        raise CliError(str(error)) from error
    own = os.uname().machine
    for image in images:
        if image.architecture != own:
            end = f"/{image.properties['architecture']}"
            image.aliases = [alias for alias in image.aliases if alias.name.endswith(end)]
    shown: list[dict[str, Any]] = msgspec.to_builtins(images, str_keys=True)
    return shown


def find_in(images: list[dict[str, Any]], name: str, address: str) -> dict[str, Any]:
    """By alias or by the beginning of the fingerprint."""
    named = [image for image in images if any(alias["name"] == name for alias in image["aliases"])]
    fitting = named or [image for image in images if name and image["fingerprint"].startswith(name)]
    if not fitting:
        raise CliError(f'Image "{name}" not found on {address}')
    return fitting[0]


def _read(url: str) -> bytes:
    import http.client
    import urllib.request

    if not url.startswith(("https://", "http://")):
        raise CliError(f"The address {url} is neither https:// nor http://")
    request = urllib.request.Request(url, headers={"User-Agent": "flexc"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            text: bytes = answer.read(_DOCUMENT_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
        reason = getattr(error, "reason", None) or error
        raise CliError(f"Failed reading {url}: {reason}") from error
    if len(text) > _DOCUMENT_BYTES:
        raise CliError(f"Failed reading {url}: more than {_DOCUMENT_BYTES} bytes")
    return text
