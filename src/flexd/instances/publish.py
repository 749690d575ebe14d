# SPDX-License-Identifier: Apache-2.0
"""`POST /1.0/images` with an instance or a snapshot as the source: its files become an image."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import msgspec
import yaml

from flexd.api.architectures import package_architecture
from flexd.api.errors import BadRequest
from flexd.api.image import ImageMetadata, ImagesPost
from flexd.host.contract import Host
from flexd.images.applications import application_of, render_application
from flexd.images.compress import SQUASHFS, Compressor, find_compressor
from flexd.images.depot import Known
from flexd.images.images import Images
from flexd.images.incoming import Incoming
from flexd.images.meter import PackMeter
from flexd.images.pack import Folder, Packer, Part, Text, Tree
from flexd.images.sources import Fetched
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.metadata import MetadataDocuments, MetadataRecord
from flexd.instances.registry import Registry
from flexd.instances.spec import is_application
from flexd.instances.stills import Still, Stills
from flexd.operations.contract import Progress
from flexd.operations.operations import Operation

KINDS = ("instance", "container", "snapshot")
_PROGRESS = "create_image_from_container_pack"


class Publishing:
    def __init__(
        self,
        *,
        host: Host,
        registry: Registry,
        lifecycle: Lifecycle,
        images: Images,
        metadata: MetadataDocuments,
        stills: Stills,
        packer: Packer,
        setting: Callable[[str, str], str],
    ) -> None:
        self._host = host
        self._registry = registry
        self._lifecycle = lifecycle
        self._images = images
        self._metadata = metadata
        self._stills = stills
        self._packer = packer
        self._setting = setting

    async def publish(self, project: str, owner: str, post: ImagesPost) -> Operation:
        """`project`: the instance's; `owner`: the one that gets the image."""
        assert post.source is not None
        if not post.source.name:
            raise BadRequest("No source provided")
        algorithm = post.compression_algorithm or self._setting(owner, "images.compression_algorithm")
        program = await asyncio.to_thread(find_compressor, algorithm, squashfs=True)
        name, _, snapshot = post.source.name.partition("/")
        if (post.source.type == "snapshot") != bool(snapshot):
            raise BadRequest(f'Invalid image source: "{post.source.name}" is not the name of a {post.source.type}')
        if snapshot:
            self._registry.find_snapshot(project, name, snapshot)
        else:
            self._check_stopped(project, name)
        return self._images.create_from(owner, post, _Publication(self, project, name, snapshot, post, program))

    def _check_stopped(self, project: str, name: str) -> None:
        if self._lifecycle.running(self._registry.instance(project, name)) is not None:
            raise BadRequest("Cannot export a running instance as an image")

    def still(self, project: str, name: str, snapshot: str) -> AbstractAsyncContextManager[Still]:
        if snapshot:
            return self._stills.hold_snapshot(project, name, snapshot)
        self._check_stopped(project, name)
        return self._stills.hold(project, name)

    async def write(
        self, still: Still, post: ImagesPost, program: Compressor, incoming: Incoming, progress: Progress
    ) -> Known:
        """Write the files of the image; returns what they say."""
        assert still.tree is not None
        kept = self._metadata.of(still.record) or MetadataRecord()
        metadata = _image_metadata(kept.metadata, still.record.architecture, post)
        total_bytes = await self._host.files.disk_usage(still.tree)
        about: list[Part] = [Text("metadata.yaml", render_metadata(metadata), mtime=metadata.creation_date)]
        about += template_parts(kept, metadata.creation_date)
        application = application_of(still.record.config) if is_application(still.record.config) else None
        if application is not None:
            about.append(Text("config.json", render_application(application), mtime=metadata.creation_date))
        if program.name == SQUASHFS:
            progress({f"{_PROGRESS}_progress": "Image pack: squashfs"})
            await self._packer.squash(still.tree, incoming.rootfs)
            small = await asyncio.to_thread(find_compressor, "gzip")
            await self._packer.pack(about, incoming.metadata, small, lambda _bytes: None)
            await incoming.adopt()
        else:
            tick = PackMeter(progress, _PROGRESS, "Image pack", total_bytes).tick
            parts = [*about, Tree(still.tree, "rootfs")]
            packed = await self._packer.pack(parts, incoming.metadata, program, tick)
            incoming.packed(packed.fingerprint, packed.size_bytes)
        return Known(metadata, kept.templates, total_bytes, application)


class _Publication:
    """The `Fetch` of one image."""

    description = "Publishing instance"

    def __init__(
        self, publishing: Publishing, project: str, name: str, snapshot: str, post: ImagesPost, program: Compressor
    ) -> None:
        self._publishing, self._where = publishing, (project, name, snapshot)
        self._post, self._program = post, program

    async def into(self, incoming: Incoming, progress: Progress) -> Fetched:
        async with self._publishing.still(*self._where) as still:
            known = await self._publishing.write(still, self._post, self._program, incoming, progress)
        return Fetched(_PROGRESS, known=known)


def template_parts(kept: MetadataRecord, mtime: int) -> list[Part]:
    """The folder templates/, if there are any."""
    if not kept.templates:
        return []
    texts = [Text(f"templates/{name}", text.encode(), mtime=mtime) for name, text in sorted(kept.templates.items())]
    return [Folder("templates", mtime=mtime), *texts]


def _image_metadata(kept: ImageMetadata, architecture: str, post: ImagesPost) -> ImageMetadata:
    """What the instance kept of its image, as of today, with the properties asked for in place of its own."""
    properties = post.properties or kept.properties
    if not properties:
        properties = {"architecture": package_architecture(architecture)}
    return msgspec.structs.replace(
        kept,
        architecture=architecture,
        creation_date=int(time.time()),
        expiry_date=int(post.expires_at.timestamp()) if post.expires_at and post.expires_at.year > 1 else 0,
        properties=properties,
    )


def render_metadata(metadata: ImageMetadata) -> bytes:
    """metadata.yaml."""
    document = msgspec.to_builtins(metadata)
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode()
