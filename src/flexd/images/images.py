# SPDX-License-Identifier: Apache-2.0
"""The image store: what `/1.0/images` shows and does.

Reads come from the mirror and never wait. Long work is an operation; what it makes is placed and recorded by a
journalled plan, so that a crash leaves either the whole image or nothing.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from flexd.api.errors import BadRequest
from flexd.api.image import (
    Image,
    ImageAlias,
    ImageAliasesEntry,
    ImageAliasesEntryPost,
    ImageAliasesEntryPut,
    ImageAliasesPost,
    ImageExportPost,
    ImageMetadata,
    ImagePut,
    ImagesPost,
    ImagesPostSource,
)
from flexd.api.times import now
from flexd.host.contract import Host
from flexd.images.aliases import AliasNotFound
from flexd.images.applications import Application
from flexd.images.archive import Archives, UnpackFailed, free_space_fault
from flexd.images.contract import ExportFiles, ImageNotFound, ImageRecord
from flexd.images.depot import Depot
from flexd.images.downloads import Downloads
from flexd.images.incoming import UploadHeaders, UploadPart, check_fingerprint
from flexd.images.intake import Check, Intake
from flexd.images.keys import Settings, default_settings
from flexd.images.push import check_push, push
from flexd.images.registry import ImageRegistry
from flexd.images.removal import Removal, Unlink
from flexd.images.sources import Fetch, Fetched, RemoteFetch, Sources
from flexd.images.tokens import Tokens
from flexd.images.transfer import Patience, Web
from flexd.images.urls import image_url
from flexd.operations.contract import Progress
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.projects.projects import Projects
from flexd.store.documents import Mirror

Body = AsyncIterator[bytes] | AsyncIterator[UploadPart]


class Images:
    """`directory`: `$FLEXD_DIR/images`. `delete_unpacked`: removes the copies that pools made of an image.
    `max_expanded_bytes`: a limit below that of the free space, 0 for none. Call `prepare` before anything else.

    A project, wherever one is named, is one that owns images (`Projects.owner`)."""

    def __init__(
        self,
        *,
        host: Host,
        mirror: Mirror,
        journal: Journal,
        operations: Operations,
        locks: Locks,
        events: Events,
        directory: Path,
        delete_unpacked: Unlink,
        projects: Projects,
        settings: Settings = default_settings,
        patience: Patience | None = None,
        max_expanded_bytes: int = 0,
    ) -> None:
        self._host, self._operations, self._events = host, operations, events
        self._registry = ImageRegistry(mirror, events)
        self._aliases = self._registry.aliases
        self._depot = Depot(directory)
        self._archives = Archives(host, self._depot.stage)
        self._web = Web(settings, patience)
        self._sources = Sources(host, self._web, self._depot, settings)
        self._tokens = Tokens(operations)
        self._intake = Intake(
            host=host,
            registry=self._registry,
            depot=self._depot,
            archives=self._archives,
            journal=journal,
            locks=locks,
            events=events,
            projects=projects,
            max_expanded_bytes=max_expanded_bytes,
        )
        self._removal = Removal(
            registry=self._registry,
            depot=self._depot,
            journal=journal,
            locks=locks,
            events=events,
            delete_unpacked=delete_unpacked,
        )
        self._projects = projects
        self._downloads = Downloads(
            registry=self._registry,
            sources=self._sources,
            intake=self._intake,
            depot=self._depot,
            removal=self._removal,
            locks=locks,
            setting=lambda project, key: projects.value(project, key) or settings(key),
        )

    def set_check(self, check: Check) -> None:
        """Raises if an image is more than its project may have."""
        self._intake.set_check(check)

    async def prepare(self) -> None:
        """After `journal.recover()`, before any request."""
        await self._depot.prepare()

    # --- reading ---

    def fingerprints(self, project: str, *, public_only: bool = False) -> list[str]:
        return [record.fingerprint for record in self._records(project, public_only)]

    def show_all(self, project: str, *, public_only: bool = False) -> list[Image]:
        aliases = self._aliases.by_target(project)
        return [_shown(record, aliases.get(record.fingerprint, [])) for record in self._records(project, public_only)]

    def _records(self, project: str, public_only: bool) -> Iterable[ImageRecord]:
        records = (found.value for found in self._registry.documents.list(project))
        return (record for record in records if record.public or not public_only)

    def show(self, project: str, fingerprint: str) -> Image:
        """By fingerprint or a prefix of it that only one image has."""
        record = self._registry.find(project, fingerprint).value
        return _shown(record, self._aliases.by_target(project).get(record.fingerprint, []))

    def check_readable(self, project: str, fingerprint: str, secret: str) -> None:
        """Whether somebody who is not trusted may see an image: a public one, or with its secret."""
        record = self._registry.find(project, fingerprint).value
        if not record.public and not self._tokens.may_read(project, record.fingerprint, secret):
            raise ImageNotFound("Image not found")

    def was_exported(self, secret: str) -> None:
        """An image went out, whole: its secret is spent."""
        self._tokens.spend(secret)

    def resolve(self, project: str, name: str) -> ImageRecord:
        """By alias, fingerprint or unique prefix, as `lxc launch` names images."""
        return self._registry.resolve(project, name)

    def known(self, project: str, fingerprint: str) -> ImageRecord | None:
        """An image of this project by its whole fingerprint."""
        return self._registry.get(project, fingerprint)

    def all(self) -> list[ImageRecord]:
        """Of every project."""
        return self._registry.all()

    async def metadata(self, fingerprint: str) -> ImageMetadata:
        """What metadata.yaml said when the image came in."""
        return (await self._intake.known(fingerprint)).metadata

    async def templates(self, fingerprint: str) -> dict[str, str]:
        """The texts that `ImageMetadata.templates` refer to, by file name."""
        return (await self._intake.known(fingerprint)).templates

    async def application(self, fingerprint: str) -> Application | None:
        """The program that an OCI image is for; None for a system."""
        return (await self._intake.known(fingerprint)).application

    async def export_files(self, project: str, fingerprint: str) -> ExportFiles:
        return await self._depot.export_files(self._registry.find(project, fingerprint).value.fingerprint)

    # --- unpacking ---

    async def unpack(self, fingerprint: str, target: Path, progress: Progress) -> None:
        """Fill an empty directory with the image's root file system, ids as the image has them; empty again if it
        fails."""
        known = await self._intake.known(fingerprint)
        usage = await self._host.files.filesystem(target)
        fault = free_space_fault(usage.total_bytes - usage.used_bytes, known.expanded_bytes)
        if fault is not None:
            raise UnpackFailed(f'Failed unpacking image "{fingerprint[:12]}": {fault}')

        def percent(number: int) -> None:
            progress({"create_instance_from_image_unpack_progress": f"Unpack: {min(number, 100)}%"})

        split = await self._depot.is_split(fingerprint)
        file = self._depot.rootfs_file(fingerprint) if split else self._depot.metadata_file(fingerprint)
        await self._archives.unpack(file, f'"{fingerprint[:12]}"', target, percent, unified=not split)

    # --- creating ---

    async def create_from_upload(
        self, project: str, body: Body, headers: UploadHeaders, *, multipart: bool, post: ImagesPost | None = None
    ) -> Operation:
        """Store the body (of parts if it is `multipart`, a split image), then check it in an operation. `post`: what
        a token said of the image that comes, in place of the headers."""
        wanted = post or ImagesPost(
            aliases=[ImageAlias(name=name) for name in headers.aliases],
            profiles=headers.profiles or [],
            properties=headers.properties,
            public=headers.public,
        )
        self._aliases.check_free(project, [alias.name for alias in wanted.aliases])
        incoming = await self._depot.incoming()
        incoming.filename = headers.filename
        try:
            if multipart:
                await incoming.write_parts(body)  # type: ignore[arg-type]
            else:
                await incoming.write_metadata(body)  # type: ignore[arg-type]
            check_fingerprint(headers.fingerprint, incoming.fingerprint)
        except BaseException:
            await incoming.discard()
            raise
        incoming.filename = headers.filename or incoming.filename

        async def run(operation: Operation) -> Mapping[str, Any]:
            return await self._intake.admit(project, wanted, Fetched("import_progress"), incoming, operation.progress)

        return self._operations.start("task", "Importing image", project, {}, run, may_cancel=True)

    async def create_from_push(
        self, project: str, body: Body, headers: UploadHeaders, *, multipart: bool
    ) -> tuple[Operation, str]:
        """As an upload, by a server that is not trusted but has the secret of a push token; also the secret."""
        post = self._tokens.take_push(project, headers.fingerprint, headers.secret)
        post = msgspec.structs.replace(post, properties=post.properties or headers.properties)
        operation = await self.create_from_upload(project, body, headers, multipart=multipart, post=post)
        return operation, headers.secret

    def of_project(self, project: str) -> list[ImageRecord]:
        return list(self._records(project, public_only=False))

    async def create_from_source(self, project: str, post: ImagesPost) -> Operation:
        """From a URL, another server, or built here (`build`, API extension `image_build`)."""
        if post.source is None:
            raise BadRequest("Invalid image: a source is required")
        self._aliases.check_free(project, [alias.name for alias in post.aliases])
        if post.source.mode == "push":
            if not post.source.fingerprint:
                raise BadRequest("Invalid image source: mode push needs the fingerprint of the image that will come")
            return self._tokens.issue_push(project, post)
        if post.source.type == "image":
            architecture = self._projects.value(project, "images.default_architecture")
            return self._copy(project, post, await self._sources.remote(post.source, architecture))
        return self.create_from(project, post, await self._sources.prepare(post.source))

    def create_from(self, project: str, post: ImagesPost, fetch: Fetch) -> Operation:
        """From whatever can write an image's files."""
        self._aliases.check_free(project, [alias.name for alias in post.aliases])

        async def run(operation: Operation) -> Mapping[str, Any]:
            incoming = await self._depot.incoming()
            try:
                fetched = await fetch.into(incoming, operation.progress)
            except BaseException:
                await incoming.discard()
                raise
            return await self._intake.admit(project, post, fetched, incoming, operation.progress)

        return self._operations.start("task", fetch.description, project, {}, run, may_cancel=True)

    def _copy(self, project: str, post: ImagesPost, fetch: RemoteFetch) -> Operation:
        async def run(operation: Operation) -> Mapping[str, Any]:
            record = await self._downloads.copy(project, post, fetch, operation.progress)
            return {"fingerprint": record.fingerprint, "size": str(record.size)}

        return self._operations.start("task", fetch.description, project, {}, run, may_cancel=True)

    # --- images of other servers ---

    async def remote(self, source: ImagesPostSource, architecture: str = "") -> RemoteFetch:
        """A server's image, for `cache`; checked as far as that needs no network."""
        return await self._sources.remote(source, architecture)

    async def cache(self, project: str, fetch: RemoteFetch, progress: Progress) -> ImageRecord:
        """Have a server's image here, to make an instance from it."""
        return await self._downloads.cache(project, fetch, progress)

    async def replace_by_newer(self, project: str, fingerprint: str, progress: Progress) -> ImageRecord | None:
        """The newer version that its server has, in its place; None if there is none."""
        return await self._downloads.refresh(project, fingerprint, progress)

    def refresh(self, project: str, fingerprint: str) -> Operation:
        """Fetch the newer version, if its server has one; the old image is then replaced."""
        fingerprint = self._registry.find(project, fingerprint).value.fingerprint

        async def run(operation: Operation) -> Mapping[str, Any]:
            newer = await self.replace_by_newer(project, fingerprint, operation.progress)
            return {"refreshed": newer is not None, **({"fingerprint": newer.fingerprint} if newer else {})}

        resources = {"images": [image_url(project, fingerprint)]}
        return self._operations.start("task", "Refreshing image", project, resources, run, may_cancel=True)

    def issue_secret(self, project: str, fingerprint: str) -> Operation:
        """A token whose secret lets another server fetch the image."""
        return self._tokens.issue_read(project, self._registry.find(project, fingerprint).value.fingerprint)

    async def push(self, project: str, fingerprint: str, post: ImageExportPost) -> Operation:
        """Send the image to a server that gave out a push token for it."""
        check_push(post)
        record = self._registry.find(project, fingerprint).value
        files = await self._depot.export_files(record.fingerprint)

        async def run(operation: Operation) -> None:
            await push(self._web, record, files, post, operation.progress)

        resources = {"images": [image_url(project, record.fingerprint)]}
        return self._operations.start("task", "Exporting image", project, resources, run, may_cancel=True)

    # --- changing ---

    async def update(self, project: str, fingerprint: str, put: ImagePut) -> None:
        found = self._registry.find(project, fingerprint)
        changed = msgspec.structs.replace(
            found.value,
            auto_update=put.auto_update,
            expires_at=put.expires_at,
            profiles=put.profiles or ["default"],
            properties=put.properties,
            public=put.public,
        )
        await self._registry.documents.update(found.path, changed, found.revision)
        self._events.lifecycle("image-updated", image_url(project, found.value.fingerprint), project)

    async def touch(self, project: str, fingerprint: str) -> None:
        """An instance was made from it: remember when."""
        await self._registry.change(
            project, fingerprint, lambda record: msgspec.structs.replace(record, last_used_at=now())
        )

    async def delete(self, project: str, fingerprint: str) -> Operation:
        fingerprint = self._registry.find(project, fingerprint).value.fingerprint

        async def run(operation: Operation) -> None:
            await self._removal.remove(project, fingerprint, operation.progress)

        resources = {"images": [image_url(project, fingerprint)]}
        return self._operations.start("task", "Deleting image", project, resources, run)

    # --- aliases ---

    def aliases(self, project: str) -> list[ImageAliasesEntry]:
        return self._aliases.all(project)

    def alias_names(self, project: str) -> list[str]:
        return self._aliases.names(project)

    def show_alias(self, project: str, name: str, *, public_only: bool = False) -> ImageAliasesEntry:
        alias = self._aliases.show(project, name)
        if public_only and not self._registry.find(project, alias.target).value.public:
            raise AliasNotFound
        return alias

    async def create_alias(self, project: str, post: ImageAliasesPost) -> None:
        await self._aliases.create(project, post)

    async def update_alias(self, project: str, name: str, put: ImageAliasesEntryPut) -> None:
        await self._aliases.update(project, name, put)

    async def rename_alias(self, project: str, name: str, post: ImageAliasesEntryPost) -> None:
        await self._aliases.rename(project, name, post.name)

    async def delete_alias(self, project: str, name: str) -> None:
        await self._aliases.delete(project, name)


def _shown(record: ImageRecord, aliases: list[ImageAlias]) -> Image:
    fields = {name: getattr(record, name) for name in ImageRecord.__struct_fields__}
    return Image(aliases=aliases, **fields)
