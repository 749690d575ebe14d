# SPDX-License-Identifier: Apache-2.0
"""What an instance keeps of its image: metadata.yaml and the templates. They are a document named by its content, so
that instances of one image share it, and copies, snapshots and renames take it along by its name alone.
"""

import hashlib
from collections.abc import Mapping

import msgspec
from msgspec import Struct, field

from flexd.api.errors import BadRequest, NotFound, TooLarge
from flexd.api.image import ImageMetadata
from flexd.images.formats import parse_metadata
from flexd.images.images import Images
from flexd.instances.record import InstanceRecord
from flexd.instances.registry import Registry
from flexd.operations.events import Events
from flexd.operations.locks import Locks
from flexd.store.documents import Documents, Mirror

# A document of the store; those of real images have 1-4 KiB.
_DOCUMENT_BYTES = 1 << 20


class MetadataRecord(Struct, frozen=True):
    """The document `/instance-metadata/SHA256`; never changed. `templates` are texts by file name."""

    metadata: ImageMetadata = field(default_factory=ImageMetadata)
    templates: dict[str, str] = field(default_factory=dict)


class MetadataDocuments:
    """Reads are from memory."""

    def __init__(self, mirror: Mirror, registry: Registry, images: Images) -> None:
        self._documents = Documents(mirror, "instance-metadata", MetadataRecord)
        self._registry = registry
        self._images = images

    def of(self, record: InstanceRecord) -> MetadataRecord | None:
        """None for an instance made from nothing."""
        return self.get(record.metadata)

    def get(self, name: str) -> MetadataRecord | None:
        found = self._documents.get(name) if name else None
        return None if found is None else found.value

    async def of_image(self, fingerprint: str) -> str:
        """Keep an image's; returns the name."""
        metadata = await self._images.metadata(fingerprint)
        return await self.keep(MetadataRecord(metadata, await self._images.templates(fingerprint)))

    async def keep(self, record: MetadataRecord) -> str:
        """Write it if it is new; returns its name."""
        encoded = msgspec.json.encode(record)
        if len(encoded) > _DOCUMENT_BYTES:
            raise TooLarge(f"Failed keeping an instance's metadata: it has more than {_DOCUMENT_BYTES} bytes")
        name = hashlib.sha256(encoded).hexdigest()
        if self._documents.get(name) is None:
            await self._documents.txn([self._documents.put((name,), record)])
        return name

    async def sweep(self) -> None:
        """Drop what no instance or snapshot has any more. At the daemon's start, while nothing else happens."""
        used = {record.metadata for record in self._registry.all_instances()}
        used |= {document.value.instance.metadata for document in self._registry.snapshots.list()}
        unused = [self._documents.delete_op(d.path) for d in self._documents.list() if d.path[0] not in used]
        if unused:
            await self._documents.txn(unused)


class Metadata:
    """The service behind `/1.0/instances/NAME/metadata` and `…/metadata/templates`."""

    def __init__(self, *, registry: Registry, documents: MetadataDocuments, locks: Locks, events: Events) -> None:
        self._registry = registry
        self._documents = documents
        self._locks = locks
        self._events = events

    def show(self, project: str, name: str) -> ImageMetadata:
        return self._find(project, name).metadata

    async def update(self, project: str, name: str, metadata: ImageMetadata) -> None:
        checked = parse_metadata(msgspec.json.encode(metadata), f'"{name}"')  # JSON is YAML
        async with self._locks.hold(f"instance/{project}/{name}", "update metadata"):
            record = self._registry.instance(project, name)
            known = self._documents.of(record) or MetadataRecord()
            await self._write(record, msgspec.structs.replace(known, metadata=checked))
        self._events.lifecycle("instance-metadata-updated", record.url, project)

    def templates(self, project: str, name: str) -> list[str]:
        return sorted(self._find(project, name).templates)

    def template(self, project: str, name: str, template: str) -> str:
        return _text(self._find(project, name).templates, template)

    async def write_template(self, project: str, name: str, template: str, text: bytes) -> None:
        if not template or "/" in template or template in (".", ".."):
            raise BadRequest(f'Invalid template filename "{template}"')
        try:
            decoded = text.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f'Invalid template "{template}": {error}') from error
        async with self._locks.hold(f"instance/{project}/{name}", "update template"):
            record = self._registry.instance(project, name)
            known = self._documents.of(record) or MetadataRecord()
            await self._write(record, msgspec.structs.replace(known, templates={**known.templates, template: decoded}))
        self._events.lifecycle("instance-metadata-template-created", record.url, project, {"path": template})

    async def delete_template(self, project: str, name: str, template: str) -> None:
        async with self._locks.hold(f"instance/{project}/{name}", "delete template"):
            record = self._registry.instance(project, name)
            known = self._find(project, name)
            _text(known.templates, template)
            rest = {file: text for file, text in known.templates.items() if file != template}
            await self._write(record, msgspec.structs.replace(known, templates=rest))
        self._events.lifecycle("instance-metadata-template-deleted", record.url, project, {"path": template})

    def _find(self, project: str, name: str) -> MetadataRecord:
        found = self._documents.of(self._registry.instance(project, name))
        if found is None:
            raise NotFound(f'Instance "{name}" has no metadata: it was not made from an image')
        return found

    async def _write(self, record: InstanceRecord, changed: MetadataRecord) -> None:
        kept = await self._documents.keep(changed)
        found = self._registry.find(record.project, record.name)
        renewed = msgspec.structs.replace(found.value, metadata=kept)
        await self._registry.instances.update(found.path, renewed, found.revision)


def _text(templates: Mapping[str, str], name: str) -> str:
    if not name:
        raise BadRequest("missing path argument")
    if name not in templates:
        raise NotFound(f'Template "{name}" not found')
    return templates[name]
