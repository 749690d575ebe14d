# SPDX-License-Identifier: Apache-2.0
"""ETag and If-Match (RFC 9110 13.1.1) as LXD uses them (extension: etag): a hash of what PUT may change."""

import hashlib

import msgspec
from msgspec import Struct

from flexd.api.errors import PreconditionFailed


def etag_of(editable: Struct) -> str:
    """The bare tag; on the wire it stands in double quotes."""
    return hashlib.sha256(msgspec.json.encode(editable, order="deterministic")).hexdigest()


def check_etag(if_match: str | None, editable: Struct) -> None:
    """Refuse an edit of something that was changed meanwhile; without If-Match nothing is checked."""
    if not if_match:
        return
    sent = if_match.strip().removeprefix("W/").strip('"')
    current = etag_of(editable)
    if sent not in (current, "*"):
        raise PreconditionFailed(f"ETag doesn't match: {current} vs {sent}")
