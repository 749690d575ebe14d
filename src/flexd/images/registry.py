# SPDX-License-Identifier: Apache-2.0
"""The documents of images and what finds one: by fingerprint, by alias, by where it was fetched from."""

from collections.abc import Callable

from flexd.api.errors import BadRequest
from flexd.api.image import ImageSource
from flexd.images.aliases import Aliases
from flexd.images.contract import ImageNotFound, ImageRecord
from flexd.operations.events import Events
from flexd.store.documents import Document, Documents, Mirror


class AmbiguousFingerprint(BadRequest):
    def __init__(self) -> None:
        super().__init__("Partial fingerprint matches more than one image")


class ImageRegistry:
    """Reads are from memory; `documents` is written by whoever holds the image's lock."""

    def __init__(self, mirror: Mirror, events: Events) -> None:
        self.documents = Documents(mirror, "images", ImageRecord)
        self.aliases = Aliases(mirror, events, self.documents)

    def find(self, project: str, prefix: str) -> Document[ImageRecord]:
        """By fingerprint, or a beginning of it that only one image has."""
        exact = self.documents.get(project, prefix)
        if exact is not None:
            return exact
        found = [d for d in self.documents.list(project) if prefix and d.value.fingerprint.startswith(prefix)]
        if len(found) > 1:
            raise AmbiguousFingerprint
        if not found:
            raise ImageNotFound("Image not found")
        return found[0]

    def get(self, project: str, fingerprint: str) -> ImageRecord | None:
        found = self.documents.get(project, fingerprint)
        return None if found is None else found.value

    def resolve(self, project: str, name: str) -> ImageRecord:
        """By alias, fingerprint or unique beginning, as `lxc launch` names images."""
        return self.find(project, self.aliases.target(project, name) or name).value

    def recorded(self, fingerprint: str) -> list[Document[ImageRecord]]:
        """The image's documents in all projects."""
        return [found for found in self.documents.list() if found.value.fingerprint == fingerprint]

    def all(self) -> list[ImageRecord]:
        return [found.value for found in self.documents.list()]

    def fetched_from(self, project: str, source: ImageSource, architecture: str) -> ImageRecord | None:
        """The newest image that came from there under this alias."""
        fitting = [
            found.value
            for found in self.documents.list(project)
            if found.value.architecture == architecture and _same_origin(found.value.update_source, source)
        ]
        return max(fitting, key=lambda record: record.uploaded_at, default=None)

    async def change(self, project: str, fingerprint: str, change: Callable[[ImageRecord], ImageRecord]) -> ImageRecord:
        """Read, change, write."""
        found = self.find(project, fingerprint)
        changed = change(found.value)
        if changed != found.value:
            await self.documents.update(found.path, changed, found.revision)
        return changed

    async def forget(self, project: str, fingerprint: str) -> None:
        """Remove the document and its aliases."""
        gone = self.documents.delete_op((project, fingerprint))
        await self.documents.txn([gone, *self.aliases.deletion(project, fingerprint)])


def _same_origin(known: ImageSource | None, wanted: ImageSource) -> bool:
    if known is None or not wanted.alias:
        return False
    return (known.server.rstrip("/"), known.protocol, known.alias) == (
        wanted.server.rstrip("/"),
        wanted.protocol,
        wanted.alias,
    )
