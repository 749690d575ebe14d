# SPDX-License-Identifier: Apache-2.0
"""How files become an image: checked from end to end, then placed and recorded by a journalled plan.

A crash leaves either the whole image or nothing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from flexd.api.errors import Conflict
from flexd.api.image import ImageAlias, ImageMetadata, ImagesPost
from flexd.api.times import ZERO_TIME, now
from flexd.host.contract import Host
from flexd.images.applications import parse_application
from flexd.images.archive import Archives
from flexd.images.contract import AliasRecord, BadImage, ImageNotFound, ImageRecord
from flexd.images.depot import Depot, Known
from flexd.images.formats import parse_metadata, unix_time
from flexd.images.incoming import Incoming
from flexd.images.registry import ImageRegistry
from flexd.images.sources import Fetched
from flexd.images.survey import Limits, Survey
from flexd.images.urls import image_url
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.projects.projects import Projects
from flexd.store.contract import Delete, If, Put, RevisionConflict

Args = dict[str, Any]
Check = Callable[[ImageRecord], None]


class Intake:
    """`max_expanded_bytes`: a limit below that of the free space, 0 for none."""

    def __init__(
        self,
        *,
        host: Host,
        registry: ImageRegistry,
        depot: Depot,
        archives: Archives,
        journal: Journal,
        locks: Locks,
        events: Events,
        projects: Projects,
        max_expanded_bytes: int = 0,
    ) -> None:
        self._host, self._registry, self._depot, self._archives = host, registry, depot, archives
        self._journal, self._locks, self._events = journal, locks, events
        self._projects = projects
        self._check: Check = lambda _record: None
        self._max_expanded_bytes = max_expanded_bytes
        journal.register("images.place", self._place, self._unplace)
        journal.register("images.record", self._record, self._unrecord)

    def set_check(self, check: Check) -> None:
        self._check = check

    async def admit(
        self, project: str, post: ImagesPost, fetched: Fetched, incoming: Incoming, progress: Progress
    ) -> Mapping[str, Any]:
        """Check what came in, and keep it under its fingerprint; whatever goes wrong, it is gone."""
        try:
            if fetched.known is None:
                progress({fetched.progress_key: "Checking image"})
            known = fetched.known or await self.check(incoming)
            await self._depot.write_known(incoming, known)
            record = _new_record(project, post, incoming, fetched, known.metadata)
            self._check(record)
            fingerprint = record.fingerprint
            plan = _import_plan(record, incoming.directory, post.aliases, fetched.aliases)
            async with self._locks.hold(f"image/{fingerprint}", "create"):
                if self._registry.get(project, fingerprint) is None:
                    await self._journal.run(plan, progress)
                elif fetched.aliases:  # built again of the same packages: it is there, perhaps without its names
                    names = {*(alias.name for alias in post.aliases), *fetched.aliases}
                    await self.name_again(project, fingerprint, sorted(names))
                else:
                    raise Conflict("Image with same fingerprint already exists")
        finally:
            await incoming.discard()
        self._announce(record)
        return {"fingerprint": fingerprint, "size": str(record.size)}

    async def adopt(self, project: str, post: ImagesPost, fetched: Fetched, fingerprint: str) -> bool:
        """Record an image whose files another project has brought here; False if none has."""
        async with self._locks.hold(f"image/{fingerprint}", "create"):
            known = self._registry.recorded(fingerprint)
            if not known or self._registry.get(project, fingerprint) is not None:
                return bool(known)
            record = _adopted(known[0].value, project, post, fetched)
            plan = _import_plan(record, None, post.aliases, fetched.aliases)
            await self._journal.run(plan, lambda _metadata: None)
        self._announce(record)
        return True

    def _announce(self, record: ImageRecord) -> None:
        url = image_url(record.project, record.fingerprint)
        self._events.lifecycle("image-created", url, record.project, {"type": record.type})

    async def check(self, incoming: Incoming) -> Known:
        name = f'"{incoming.filename or incoming.fingerprint[:12]}"'
        limits = await self._limits()
        _, survey = await self._archives.survey(incoming.metadata, name, limits, rootfs=False)
        root = survey
        if incoming.has_rootfs:
            _, root = await self._archives.survey(incoming.rootfs, name, limits, rootfs=True)
        if not root.rootfs_members:
            raise BadImage(f"Invalid image {name}: it has no root file system (rootfs/)")
        return known_of(survey, root.expanded_bytes, name)

    async def known(self, fingerprint: str) -> Known:
        """What was read of an image when it came in; read again where that was not kept."""
        known = await self._depot.known(fingerprint)
        if known is not None:
            return known
        if not self._registry.recorded(fingerprint):
            raise ImageNotFound("Image not found")
        name = f'"{fingerprint[:12]}"'
        file = self._depot.metadata_file(fingerprint)
        _, survey = await self._archives.survey(file, name, await self._limits(), rootfs=False)
        return known_of(survey, survey.expanded_bytes, name)

    async def _limits(self) -> Limits:
        usage = await self._host.files.filesystem(self._depot.directory)
        free_bytes = usage.total_bytes - usage.used_bytes
        return Limits(min(free_bytes, self._max_expanded_bytes or free_bytes))

    # --- the steps of plans ---

    async def _place(self, args: Args, _progress: Progress) -> None:
        await self._depot.place(Path(args["incoming"]), args["fingerprint"])

    async def _unplace(self, args: Args) -> None:
        # Another project may have the same image: its files are these.
        if not self._registry.recorded(args["fingerprint"]):
            await self._depot.remove(args["fingerprint"])

    async def _record(self, args: Args, _progress: Progress) -> None:
        record = msgspec.convert(args["record"], ImageRecord)
        documents = self._registry.documents
        path = (record.project, record.fingerprint)
        if self._registry.get(*path) == record:
            return  # a repeated step
        operations: list[Put | Delete] = [documents.put(path, record)]
        conditions: list[If] = [documents.unchanged(path, 0)]
        for raw in args["aliases"]:
            self._name(msgspec.convert(raw, AliasRecord), operations, conditions, replace=False)
        for name in args["replaced"]:
            alias = AliasRecord(name, record.fingerprint, "", record.type, record.project)
            self._name(alias, operations, conditions, replace=True)
        try:
            await self._projects.write([record.project], operations, conditions, lambda: self._check(record))
        except RevisionConflict as error:
            raise Conflict(f'Failed importing image "{record.fingerprint}": "{error.key}" is there already') from error

    async def _unrecord(self, args: Args) -> None:
        record = msgspec.convert(args["record"], ImageRecord)
        if self._registry.get(record.project, record.fingerprint) == record:
            await self._registry.forget(record.project, record.fingerprint)

    async def name_again(self, project: str, fingerprint: str, names: list[str]) -> None:
        """Let these aliases stand for an image, whatever they stood for."""
        operations: list[Put | Delete] = []
        for name in names:
            self._name(AliasRecord(name, fingerprint, project=project), operations, [], replace=True)
        await self._registry.documents.txn(operations)

    def _name(self, alias: AliasRecord, operations: list[Put | Delete], conditions: list[If], *, replace: bool) -> None:
        puts, free = self._registry.aliases.creation(alias, replace=replace)
        operations += puts
        conditions += free


def known_of(survey: Survey, expanded_bytes: int, name: str) -> Known:
    """The parts of a survey that are kept; `BadImage` if metadata.yaml is missing or wrong, or a template it names."""
    if survey.metadata is None:
        raise BadImage(f"Invalid image {name}: metadata.yaml is missing")
    metadata = parse_metadata(survey.metadata, name)
    for path, template in metadata.templates.items():
        if template.template not in survey.templates:
            raise BadImage(f'Invalid image {name}: templates/{template.template} for "{path}" is missing')
    texts = {file: text.decode("utf-8", "replace") for file, text in survey.templates.items()}
    application = parse_application(survey.application, name) if survey.application is not None else None
    return Known(metadata, texts, expanded_bytes, application)


def _import_plan(record: ImageRecord, incoming: Path | None, aliases: list[ImageAlias], replaced: list[str]) -> Plan:
    """`aliases` must be free; those in `replaced` are taken over from older images. No `incoming`: the files are here
    already."""
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
    steps = [Step("images.record", document)]
    if incoming is not None:
        steps.insert(0, Step("images.place", {"incoming": str(incoming), "fingerprint": record.fingerprint}))
    # "finish": all of the image is here and checked when the plan begins.
    return Plan(f'Importing image "{record.fingerprint}"', tuple(steps), on_crash="finish")


def _new_record(
    project: str, post: ImagesPost, incoming: Incoming, fetched: Fetched, metadata: ImageMetadata
) -> ImageRecord:
    return ImageRecord(
        fingerprint=incoming.fingerprint,
        project=project,
        architecture=metadata.architecture,
        filename=post.filename or incoming.filename,
        size=incoming.size_bytes,
        public=post.public,
        auto_update=post.auto_update,
        cached=fetched.cached,
        properties=(fetched.properties or metadata.properties) | post.properties,
        profiles=post.profiles or ["default"],
        created_at=unix_time(metadata.creation_date),
        expires_at=post.expires_at or fetched.expires_at or unix_time(metadata.expiry_date),
        uploaded_at=now(),
        last_used_at=ZERO_TIME,
        update_source=fetched.update_source,
    )


def _adopted(known: ImageRecord, project: str, post: ImagesPost, fetched: Fetched) -> ImageRecord:
    return msgspec.structs.replace(
        known,
        project=project,
        public=post.public,
        auto_update=post.auto_update,
        cached=fetched.cached,
        properties=(fetched.properties or known.properties) | post.properties,
        profiles=post.profiles or ["default"],
        uploaded_at=now(),
        last_used_at=ZERO_TIME,
        update_source=fetched.update_source,
    )
