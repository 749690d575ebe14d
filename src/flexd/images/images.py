# SPDX-License-Identifier: Apache-2.0
"""The image store: what `/1.0/images` shows and does.

Reads come from the mirror and never wait. Long work is an operation; what it makes is placed and recorded by a
journalled plan, so that a crash leaves either the whole image or nothing.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from flexd.api.errors import BadRequest, Conflict
from flexd.api.image import (
    Image,
    ImageAlias,
    ImageAliasesEntry,
    ImageAliasesEntryPost,
    ImageAliasesEntryPut,
    ImageAliasesPost,
    ImageMetadata,
    ImagePut,
    ImagesPost,
)
from flexd.api.times import ZERO_TIME, now
from flexd.host.contract import Host
from flexd.images.aliases import Aliases
from flexd.images.archive import Archives, UnpackFailed, free_space_fault
from flexd.images.contract import AliasRecord, BadImage, ExportFiles, ImageNotFound, ImageRecord
from flexd.images.depot import Depot, Known
from flexd.images.formats import parse_metadata, unix_time
from flexd.images.incoming import Incoming, UploadHeaders, UploadPart, check_fingerprint
from flexd.images.sources import Fetched, Sources
from flexd.images.survey import Limits, Survey
from flexd.images.urls import image_url
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.events import Events
from flexd.operations.journal import Journal, ignore_progress
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.store.contract import Delete, If, Put, RevisionConflict
from flexd.store.documents import Document, Documents, Mirror

Args = dict[str, Any]
Unlink = Callable[[str], Awaitable[None]]
UsedBy = Callable[[str], Iterable[str]]


class AmbiguousFingerprint(BadRequest):
    def __init__(self) -> None:
        super().__init__("Partial fingerprint matches more than one image")


class Images:
    """`directory`: `$FLEXD_DIR/images`. `delete_unpacked`: removes the copies that pools made of an image.
    `max_expanded_bytes`: a limit below that of the free space, 0 for none. Call `prepare` before anything else."""

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
        max_expanded_bytes: int = 0,
    ) -> None:
        self._host, self._journal, self._operations = host, journal, operations
        self._locks, self._events = locks, events
        self._delete_unpacked, self._max_expanded_bytes = delete_unpacked, max_expanded_bytes
        self._documents = Documents(mirror, "images", ImageRecord)
        self._aliases = Aliases(mirror, events, self._documents)
        self._depot = Depot(directory)
        self._archives = Archives(host, self._depot.stage)
        self._sources = Sources(host)
        journal.register("images.place", self._place, self._unplace)
        journal.register("images.record", self._record, self._unrecord)
        journal.register("images.delete_unpacked", self._drop_unpacked)
        journal.register("images.delete_record", self._delete_record)
        journal.register("images.delete_files", self._delete_files)

    async def prepare(self) -> None:
        """After `journal.recover()`, before any request."""
        await self._depot.prepare()

    # --- reading ---

    def fingerprints(self, project: str) -> list[str]:
        return [found.value.fingerprint for found in self._documents.list(project)]

    def show_all(self, project: str, public_only: bool = False) -> list[Image]:
        aliases = self._aliases.by_target(project)
        records = (found.value for found in self._documents.list(project))
        return [_shown(r, aliases.get(r.fingerprint, [])) for r in records if r.public or not public_only]

    def show(self, project: str, fingerprint: str) -> Image:
        """By fingerprint or a prefix of it that only one image has."""
        record = self._find(project, fingerprint).value
        return _shown(record, self._aliases.by_target(project).get(record.fingerprint, []))

    def resolve(self, project: str, name: str) -> ImageRecord:
        """By alias, fingerprint or unique prefix, as `lxc launch` names images."""
        return self._find(project, self._aliases.target(project, name) or name).value

    async def metadata(self, fingerprint: str) -> ImageMetadata:
        """What metadata.yaml said when the image came in."""
        return (await self._known(fingerprint)).metadata

    async def templates(self, fingerprint: str) -> dict[str, str]:
        """The texts that `ImageMetadata.templates` refer to, by file name."""
        return (await self._known(fingerprint)).templates

    async def export_files(self, project: str, fingerprint: str) -> ExportFiles:
        return await self._depot.export_files(self._find(project, fingerprint).value.fingerprint)

    # --- unpacking ---

    async def unpack(self, fingerprint: str, target: Path, progress: Progress) -> None:
        """Fill an empty directory with the image's root file system, ids as the image has them; empty again if it
        fails."""
        known = await self._known(fingerprint)
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
        self, project: str, body: AsyncIterator[bytes] | AsyncIterator[UploadPart], headers: UploadHeaders,
        *, multipart: bool,
    ) -> Operation:  # fmt: skip
        """Store the body (of parts if it is `multipart`, a split image), then check it in an operation."""
        self._aliases.check_free(project, headers.aliases)
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
        post = ImagesPost(
            aliases=[ImageAlias(name=name) for name in headers.aliases],
            profiles=headers.profiles or [],
            properties=headers.properties,
            public=headers.public,
        )

        async def run(operation: Operation) -> Mapping[str, Any]:
            return await self._admit(project, post, Fetched("import_progress"), incoming, operation.progress)

        return self._operations.start("task", "Importing image", project, {}, run, may_cancel=True)

    async def create_from_source(self, project: str, post: ImagesPost) -> Operation:
        """From a URL, another server, or built here (`build`, API extension `image_build`)."""
        if post.source is None:
            raise BadRequest("Invalid image: a source is required")
        self._aliases.check_free(project, [alias.name for alias in post.aliases])
        fetch = await self._sources.prepare(post)

        async def run(operation: Operation) -> Mapping[str, Any]:
            incoming = await self._depot.incoming()
            try:
                fetched = await fetch.into(incoming, operation.progress)
            except BaseException:
                await incoming.discard()
                raise
            return await self._admit(project, post, fetched, incoming, operation.progress)

        return self._operations.start("task", fetch.description, project, {}, run, may_cancel=True)

    async def _admit(
        self, project: str, post: ImagesPost, fetched: Fetched, incoming: Incoming, progress: Progress
    ) -> Mapping[str, Any]:
        """Check what came in, and keep it under its fingerprint; whatever goes wrong, it is gone."""
        try:
            progress({fetched.progress_key: "Checking image"})
            known = await self._check(incoming)
            await self._depot.write_known(incoming, known)
            record = _new_record(project, post, incoming, known.metadata)
            record.update_source = fetched.update_source
            fingerprint = record.fingerprint
            plan = _import_plan(record, incoming.directory, post.aliases, fetched.aliases)
            async with self._locks.hold(f"image/{fingerprint}", "create"):
                if self._documents.get(project, fingerprint) is None:
                    await self._journal.run(plan, progress)
                elif fetched.aliases:  # built again of the same packages: it is there, perhaps without its names
                    names = {*(alias.name for alias in post.aliases), *fetched.aliases}
                    await self._name_again(project, fingerprint, sorted(names))
                else:
                    raise Conflict("Image with same fingerprint already exists")
        finally:
            await incoming.discard()
        self._events.lifecycle("image-created", image_url(project, fingerprint), project, {"type": record.type})
        return {"fingerprint": fingerprint, "size": str(record.size)}

    async def _check(self, incoming: Incoming) -> Known:
        name = f'"{incoming.filename or incoming.fingerprint[:12]}"'
        limits = await self._limits()
        _, survey = await self._archives.survey(incoming.metadata, name, limits, rootfs=False)
        root = survey
        if incoming.has_rootfs:
            _, root = await self._archives.survey(incoming.rootfs, name, limits, rootfs=True)
        if not root.rootfs_members:
            raise BadImage(f"Invalid image {name}: it has no root file system (rootfs/)")
        return known_of(survey, root.expanded_bytes, name)

    async def _limits(self) -> Limits:
        usage = await self._host.files.filesystem(self._depot.directory)
        free_bytes = usage.total_bytes - usage.used_bytes
        return Limits(min(free_bytes, self._max_expanded_bytes or free_bytes))

    async def _known(self, fingerprint: str) -> Known:
        known = await self._depot.known(fingerprint)
        if known is not None:
            return known
        if not any(found.value.fingerprint == fingerprint for found in self._documents.list()):
            raise ImageNotFound("Image not found")
        name = f'"{fingerprint[:12]}"'
        file = self._depot.metadata_file(fingerprint)
        _, survey = await self._archives.survey(file, name, await self._limits(), rootfs=False)
        return known_of(survey, survey.expanded_bytes, name)

    # --- changing ---

    async def update(self, project: str, fingerprint: str, put: ImagePut) -> None:
        found = self._find(project, fingerprint)
        changed = msgspec.structs.replace(
            found.value,
            auto_update=put.auto_update,
            expires_at=put.expires_at,
            profiles=put.profiles or ["default"],
            properties=put.properties,
            public=put.public,
        )
        await self._documents.update(found.path, changed, found.revision)
        self._events.lifecycle("image-updated", image_url(project, found.value.fingerprint), project)

    async def touch(self, project: str, fingerprint: str) -> None:
        """An instance was made from it: remember when."""
        found = self._find(project, fingerprint)
        changed = msgspec.structs.replace(found.value, last_used_at=now())
        await self._documents.update(found.path, changed, found.revision)

    async def delete(self, project: str, fingerprint: str) -> Operation:
        fingerprint = self._find(project, fingerprint).value.fingerprint

        async def run(operation: Operation) -> None:
            args = {"project": project, "fingerprint": fingerprint}
            steps = tuple(Step(f"images.delete_{what}", args) for what in ("unpacked", "record", "files"))
            async with self._locks.hold(f"image/{fingerprint}", "delete"):
                self._find(project, fingerprint)
                plan = Plan(f'Deleting image "{fingerprint}"', steps, on_crash="finish")
                await self._journal.run(plan, operation.progress)
            self._events.lifecycle("image-deleted", image_url(project, fingerprint), project)

        resources = {"images": [image_url(project, fingerprint)]}
        return self._operations.start("task", "Deleting image", project, resources, run)

    # --- aliases ---

    def aliases(self, project: str) -> list[ImageAliasesEntry]:
        return self._aliases.all(project)

    def alias_names(self, project: str) -> list[str]:
        return self._aliases.names(project)

    def show_alias(self, project: str, name: str) -> ImageAliasesEntry:
        return self._aliases.show(project, name)

    async def create_alias(self, project: str, post: ImageAliasesPost) -> None:
        await self._aliases.create(project, post)

    async def update_alias(self, project: str, name: str, put: ImageAliasesEntryPut) -> None:
        await self._aliases.update(project, name, put)

    async def rename_alias(self, project: str, name: str, post: ImageAliasesEntryPost) -> None:
        await self._aliases.rename(project, name, post.name)

    async def delete_alias(self, project: str, name: str) -> None:
        await self._aliases.delete(project, name)

    # --- the steps of plans ---

    async def _place(self, args: Args, _progress: Progress) -> None:
        await self._depot.place(Path(args["incoming"]), args["fingerprint"])

    async def _unplace(self, args: Args) -> None:
        # Another project may have the same image: its files are these.
        if not self._recorded(args["fingerprint"]):
            await self._depot.remove(args["fingerprint"])

    async def _record(self, args: Args, _progress: Progress) -> None:
        record = msgspec.convert(args["record"], ImageRecord)
        path = (record.project, record.fingerprint)
        known = self._documents.get(*path)
        if known is not None and known.value == record:
            return  # a repeated step
        operations: list[Put | Delete] = [self._documents.put(path, record)]
        conditions: list[If] = [self._documents.unchanged(path, 0)]
        for raw in args["aliases"]:
            self._name(msgspec.convert(raw, AliasRecord), operations, conditions, replace=False)
        for name in args["replaced"]:
            alias = AliasRecord(name, record.fingerprint, "", record.type, record.project)
            self._name(alias, operations, conditions, replace=True)
        try:
            await self._documents.txn(operations, conditions)
        except RevisionConflict as error:
            raise Conflict(f'Failed importing image "{record.fingerprint}": "{error.key}" is there already') from error

    async def _name_again(self, project: str, fingerprint: str, names: list[str]) -> None:
        operations: list[Put | Delete] = []
        for name in names:
            self._name(AliasRecord(name, fingerprint, project=project), operations, [], replace=True)
        await self._documents.txn(operations)

    def _name(self, alias: AliasRecord, operations: list[Put | Delete], conditions: list[If], *, replace: bool) -> None:
        puts, free = self._aliases.creation(alias, replace=replace)
        operations += puts
        conditions += free

    async def _unrecord(self, args: Args) -> None:
        record = msgspec.convert(args["record"], ImageRecord)
        known = self._documents.get(record.project, record.fingerprint)
        if known is not None and known.value == record:
            await self._delete_record({"project": record.project, "fingerprint": record.fingerprint}, ignore_progress)

    async def _drop_unpacked(self, args: Args, _progress: Progress) -> None:
        if len(self._recorded(args["fingerprint"])) <= 1:
            await self._delete_unpacked(args["fingerprint"])

    async def _delete_record(self, args: Args, _progress: Progress) -> None:
        project, fingerprint = args["project"], args["fingerprint"]
        gone = self._documents.delete_op((project, fingerprint))
        await self._documents.txn([gone, *self._aliases.deletion(project, fingerprint)])

    async def _delete_files(self, args: Args, _progress: Progress) -> None:
        if not self._recorded(args["fingerprint"]):
            await self._depot.remove(args["fingerprint"])

    def _recorded(self, fingerprint: str) -> list[Document[ImageRecord]]:
        """The image's documents in all projects."""
        return [found for found in self._documents.list() if found.value.fingerprint == fingerprint]

    def _find(self, project: str, prefix: str) -> Document[ImageRecord]:
        exact = self._documents.get(project, prefix)
        if exact is not None:
            return exact
        found = [d for d in self._documents.list(project) if prefix and d.value.fingerprint.startswith(prefix)]
        if len(found) > 1:
            raise AmbiguousFingerprint
        if not found:
            raise ImageNotFound("Image not found")
        return found[0]


def _shown(record: ImageRecord, aliases: list[ImageAlias]) -> Image:
    fields = {name: getattr(record, name) for name in ImageRecord.__struct_fields__ if name != "project"}
    return Image(aliases=aliases, **fields)


def known_of(survey: Survey, expanded_bytes: int, name: str) -> Known:
    """The parts of a survey that are kept; `BadImage` if metadata.yaml is missing or wrong, or a template it names."""
    if survey.metadata is None:
        raise BadImage(f"Invalid image {name}: metadata.yaml is missing")
    metadata = parse_metadata(survey.metadata, name)
    for path, template in metadata.templates.items():
        if template.template not in survey.templates:
            raise BadImage(f'Invalid image {name}: templates/{template.template} for "{path}" is missing')
    texts = {file: text.decode("utf-8", "replace") for file, text in survey.templates.items()}
    return Known(metadata, texts, expanded_bytes)


def _import_plan(record: ImageRecord, incoming: Path, aliases: list[ImageAlias], replaced: list[str]) -> Plan:
    """`aliases` must be free; those in `replaced` are taken over from older images."""
    named = {alias.name: alias.description for alias in aliases}
    records = [
        AliasRecord(name, record.fingerprint, description, record.type, record.project)
        for name, description in named.items()
    ]
    document = {
        "record": msgspec.to_builtins(record),
        "aliases": [msgspec.to_builtins(alias) for alias in records],
        "replaced": [name for name in replaced if name not in named],
    }
    place = Step("images.place", {"incoming": str(incoming), "fingerprint": record.fingerprint})
    # "finish": all of the image is here and checked when the plan begins.
    return Plan(f'Importing image "{record.fingerprint}"', (place, Step("images.record", document)), on_crash="finish")


def _new_record(project: str, post: ImagesPost, incoming: Incoming, metadata: ImageMetadata) -> ImageRecord:
    return ImageRecord(
        fingerprint=incoming.fingerprint,
        project=project,
        architecture=metadata.architecture,
        filename=post.filename or incoming.filename,
        size=incoming.size_bytes,
        public=post.public,
        auto_update=post.auto_update,
        properties=metadata.properties | post.properties,
        profiles=post.profiles or ["default"],
        created_at=unix_time(metadata.creation_date),
        expires_at=post.expires_at or unix_time(metadata.expiry_date),
        uploaded_at=now(),
        last_used_at=ZERO_TIME,
    )
