# SPDX-License-Identifier: Apache-2.0
"""Images: the data shared with the rest. `flexd.images.images.Images` is the service."""

from datetime import datetime
from pathlib import Path

from msgspec import Struct, field

from flexd.api.errors import BadRequest, NotFound
from flexd.api.image import ImageSource
from flexd.api.times import ZERO_TIME


class ImageNotFound(NotFound):
    pass


class BadImage(BadRequest):
    """An archive that is not an image, is damaged, or tries to leave its directory."""


class ImageRecord(Struct):
    """The document `/images/PROJECT/FINGERPRINT`."""

    fingerprint: str
    project: str = "default"
    type: str = "container"
    architecture: str = ""
    filename: str = ""
    size: int = 0
    public: bool = False
    auto_update: bool = False
    cached: bool = False
    properties: dict[str, str] = field(default_factory=dict)
    profiles: list[str] = field(default_factory=lambda: ["default"])
    created_at: datetime = ZERO_TIME
    expires_at: datetime = ZERO_TIME
    uploaded_at: datetime = ZERO_TIME
    last_used_at: datetime = ZERO_TIME
    update_source: ImageSource | None = None


class AliasRecord(Struct):
    """The document `/image-aliases/PROJECT/NAME` (slashes in names are stored as they are)."""

    name: str
    target: str
    description: str = ""
    type: str = "container"
    project: str = "default"


class ExportFiles(Struct, frozen=True):
    """One file (unified) or two (split: metadata, then root file system), with the names to offer."""

    metadata: Path
    metadata_name: str
    rootfs: Path | None = None
    rootfs_name: str = ""
