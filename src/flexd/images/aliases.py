# SPDX-License-Identifier: Apache-2.0
"""Names of images: `debian/12` points to a fingerprint."""

import re

import msgspec

from flexd.api.errors import BadRequest, Conflict, NotFound
from flexd.api.image import ImageAlias, ImageAliasesEntry, ImageAliasesEntryPut, ImageAliasesPost
from flexd.images.contract import AliasRecord, ImageNotFound, ImageRecord
from flexd.images.urls import alias_url
from flexd.operations.events import Events
from flexd.store.contract import Delete, If, Put, RevisionConflict
from flexd.store.documents import Document, Documents, Mirror

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class AliasNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Image alias not found")


def check_alias_name(name: str) -> None:
    if not name:
        raise BadRequest("Invalid image alias: a name is required")
    if len(name) > 255 or _CONTROL.search(name) or name != name.strip() or name.startswith("/") or name.endswith("/"):
        raise BadRequest(f"Invalid image alias {name!r}: at most 255 characters, none of them a control character, "
                         "no blank or slash at the ends")  # fmt: skip


class Aliases:
    """Aliases of all projects; targets are checked against the images' documents."""

    def __init__(self, mirror: Mirror, events: Events, images: Documents[ImageRecord]) -> None:
        self._documents = Documents(mirror, "image-aliases", AliasRecord)
        self._images = images
        self._events = events

    def all(self, project: str) -> list[ImageAliasesEntry]:
        return [_entry(found.value) for found in self._documents.list(project)]

    def names(self, project: str) -> list[str]:
        return [found.value.name for found in self._documents.list(project)]

    def show(self, project: str, name: str) -> ImageAliasesEntry:
        return _entry(self._find(project, name).value)

    def target(self, project: str, name: str) -> str | None:
        found = self._documents.get(project, name)
        return None if found is None else found.value.target

    def by_target(self, project: str) -> dict[str, list[ImageAlias]]:
        """The aliases of each image of a project."""
        grouped: dict[str, list[ImageAlias]] = {}
        for found in self._documents.list(project):
            alias = ImageAlias(description=found.value.description, name=found.value.name)
            grouped.setdefault(found.value.target, []).append(alias)
        return grouped

    async def create(self, project: str, post: ImageAliasesPost) -> None:
        check_alias_name(post.name)
        self._check_target(project, post.target)
        record = AliasRecord(post.name, post.target, post.description, post.type or "container", project)
        try:
            await self._documents.create((project, post.name), record)
        except RevisionConflict as error:
            raise _exists(post.name) from error
        self._events.lifecycle("image-alias-created", alias_url(project, post.name), project, {"target": post.target})

    async def update(self, project: str, name: str, put: ImageAliasesEntryPut) -> None:
        found = self._find(project, name)
        self._check_target(project, put.target)
        changed = msgspec.structs.replace(found.value, description=put.description, target=put.target)
        await self._documents.update(found.path, changed, found.revision)
        self._events.lifecycle("image-alias-updated", alias_url(project, name), project, {"target": put.target})

    async def rename(self, project: str, name: str, new_name: str) -> None:
        check_alias_name(new_name)
        found = self._find(project, name)
        path = (project, new_name)
        renamed = msgspec.structs.replace(found.value, name=new_name)
        try:
            await self._documents.txn(
                [self._documents.put(path, renamed), self._documents.delete_op(found.path)],
                [self._documents.unchanged(path, 0), self._documents.unchanged(found.path, found.revision)],
            )
        except RevisionConflict as error:
            raise _exists(new_name) from error
        self._events.lifecycle("image-alias-renamed", alias_url(project, new_name), project, {"old_name": name})

    async def delete(self, project: str, name: str) -> None:
        self._find(project, name)
        await self._documents.delete((project, name))
        self._events.lifecycle("image-alias-deleted", alias_url(project, name), project)

    def creation(self, record: AliasRecord, *, replace: bool) -> tuple[list[Put | Delete], list[If]]:
        """The part of an image's transaction that names it; without `replace` the name must be free."""
        path = (record.project, record.name)
        conditions = [] if replace else [self._documents.unchanged(path, 0)]
        return [self._documents.put(path, record)], conditions

    def deletion(self, project: str, fingerprint: str) -> list[Put | Delete]:
        """The part of an image's transaction that removes its names."""
        return [
            self._documents.delete_op(found.path)
            for found in self._documents.list(project)
            if found.value.target == fingerprint
        ]

    def check_free(self, project: str, names: list[str]) -> None:
        """Before the long work of an import: every name valid and not taken."""
        for name in names:
            check_alias_name(name)
            if self._documents.get(project, name) is not None:
                raise _exists(name)

    def _find(self, project: str, name: str) -> Document[AliasRecord]:
        found = self._documents.get(project, name)
        if found is None:
            raise AliasNotFound
        return found

    def _check_target(self, project: str, target: str) -> None:
        if self._images.get(project, target) is None:
            raise ImageNotFound("Image not found")


def _entry(record: AliasRecord) -> ImageAliasesEntry:
    return ImageAliasesEntry(description=record.description, name=record.name, target=record.target, type=record.type)


def _exists(name: str) -> Conflict:
    return Conflict(f'Alias "{name}" already exists')
