# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: image."""

from datetime import datetime

from msgspec import Struct, field

from flexd.api.times import ZERO_TIME


class ImageSource(Struct):
    alias: str = ""
    certificate: str = ""
    image_type: str = ""
    protocol: str = ""
    server: str = ""


class ImageAlias(Struct):
    description: str = ""
    name: str = ""


class Image(Struct):
    aliases: list[ImageAlias] = field(default_factory=list)
    architecture: str = ""
    auto_update: bool = False
    cached: bool = False
    created_at: datetime = ZERO_TIME
    expires_at: datetime = ZERO_TIME
    filename: str = ""
    fingerprint: str = ""
    last_used_at: datetime = ZERO_TIME
    profiles: list[str] = field(default_factory=list)
    project: str = ""
    properties: dict[str, str] = field(default_factory=dict)
    public: bool = False
    size: int = 0
    type: str = ""
    update_source: ImageSource | None = None
    uploaded_at: datetime = ZERO_TIME


class ImageAliasesEntry(Struct):
    description: str = ""
    name: str = ""
    target: str = ""
    type: str = ""


class ImageAliasesEntryPost(Struct):
    name: str = ""


class ImageAliasesEntryPut(Struct):
    description: str = ""
    target: str = ""


class ImageAliasesPost(Struct):
    description: str = ""
    name: str = ""
    target: str = ""
    type: str = ""


class ImageExportPost(Struct):
    aliases: list[ImageAlias] = field(default_factory=list)
    certificate: str = ""
    profiles: list[str] = field(default_factory=list)
    project: str = ""
    secret: str = ""
    target: str = ""


class ImageMetadataTemplate(Struct):
    create_only: bool = False
    properties: dict[str, str] = field(default_factory=dict)
    template: str = ""
    when: list[str] = field(default_factory=list)


class ImageMetadata(Struct):
    architecture: str = ""
    creation_date: int = 0
    expiry_date: int = 0
    properties: dict[str, str] = field(default_factory=dict)
    templates: dict[str, ImageMetadataTemplate] = field(default_factory=dict)


class ImagePut(Struct):
    auto_update: bool = False
    expires_at: datetime = ZERO_TIME
    profiles: list[str] = field(default_factory=list)
    properties: dict[str, str] = field(default_factory=dict)
    public: bool = False


class ImagesPostSource(Struct):
    alias: str = ""
    certificate: str = ""
    fingerprint: str = ""
    image_type: str = ""
    mode: str = ""
    name: str = ""
    project: str = ""
    protocol: str = ""
    secret: str = ""
    server: str = ""
    type: str = ""
    url: str = ""


class ImagesPost(Struct):
    aliases: list[ImageAlias] = field(default_factory=list)
    auto_update: bool = False
    compression_algorithm: str = ""
    expires_at: datetime | None = None
    filename: str = ""
    profiles: list[str] = field(default_factory=list)
    properties: dict[str, str] = field(default_factory=dict)
    public: bool = False
    source: ImagesPostSource | None = None
