# SPDX-License-Identifier: Apache-2.0
"""Images of other servers, fetched once however many ask, and used again when the server is away."""

import logging
from typing import Any

import msgspec

from flexd.api.image import ImageSource, ImagesPost, ImagesPostSource
from flexd.api.times import now
from flexd.api.units import is_true
from flexd.images.contract import ImageRecord
from flexd.images.depot import Depot
from flexd.images.intake import Intake
from flexd.images.keys import ProjectSettings
from flexd.images.registry import ImageRegistry
from flexd.images.removal import Removal
from flexd.images.sources import Fetched, Offer, RemoteFetch, Sources
from flexd.images.transfer import Unreachable
from flexd.operations.contract import Progress
from flexd.operations.locks import Locks

log = logging.getLogger(__name__)


class Downloads:
    def __init__(
        self,
        *,
        registry: ImageRegistry,
        sources: Sources,
        intake: Intake,
        depot: Depot,
        removal: Removal,
        locks: Locks,
        setting: ProjectSettings,
    ) -> None:
        self._registry, self._sources, self._intake, self._depot = registry, sources, intake, depot
        self._removal, self._locks, self._setting = removal, locks, setting

    async def copy(self, project: str, post: ImagesPost, fetch: RemoteFetch, progress: Progress) -> ImageRecord:
        """An image that somebody wants to have here (`POST /1.0/images`)."""
        offer = await fetch.locate()
        async with self._one_at_a_time(offer):
            known = self._registry.get(project, offer.fingerprint)
            if known is not None:
                return await self._registry.change(project, known.fingerprint, lambda record: _wanted(record, post))
            return await self._get(project, post, fetch, offer, progress, Fetched("download_progress"))

    async def cache(self, project: str, fetch: RemoteFetch, progress: Progress) -> ImageRecord:
        """An image that an instance is to be made from; it is kept for the next one, until it has long not been used.
        While the daemon keeps it up to date, or when the server is away, what is here serves."""
        known = self._registry.fetched_from(project, fetch.origin, fetch.architecture)
        if known is not None and known.cached and known.auto_update and self._updates(project):
            return await self._used(project, known.fingerprint)
        try:
            offer = await fetch.locate()
        except Unreachable as error:
            if known is None:
                raise
            log.warning('Using image "%s" as it is here: %s', known.fingerprint, error)
            return await self._used(project, known.fingerprint)
        async with self._one_at_a_time(offer):
            if self._registry.get(project, offer.fingerprint) is None:
                update = bool(offer.origin.alias) and is_true(self._setting(project, "images.auto_update_cached"))
                fetched = Fetched("download_progress", cached=True)
                await self._get(project, ImagesPost(auto_update=update), fetch, offer, progress, fetched)
            return await self._used(project, offer.fingerprint)

    async def refresh(self, project: str, fingerprint: str, progress: Progress) -> ImageRecord | None:
        """Replace an image by the newer version that its server has, names and settings kept; None if there is none."""
        old = self._registry.find(project, fingerprint).value
        if old.update_source is None or not old.update_source.alias:
            return None
        fetch = await self._sources.remote(_source_of(old.update_source), old.architecture)
        offer = await fetch.locate()
        if offer.fingerprint == old.fingerprint:
            return None
        async with self._one_at_a_time(offer):
            aliases = [alias.name for alias in self._registry.aliases.by_target(project).get(old.fingerprint, [])]
            if self._registry.get(project, offer.fingerprint) is None:
                post = ImagesPost(auto_update=old.auto_update, public=old.public, profiles=old.profiles)
                fetched = Fetched("download_progress", aliases=aliases, cached=old.cached)
                await self._get(project, post, fetch, offer, progress, fetched)
            else:
                await self._intake.name_again(project, offer.fingerprint, aliases)
        changed = await self._registry.change(
            project, offer.fingerprint, lambda record: msgspec.structs.replace(record, last_used_at=old.last_used_at)
        )
        await self._removal.remove(project, old.fingerprint, progress)
        return changed

    def _updates(self, project: str) -> bool:
        return int(self._setting(project, "images.auto_update_interval")) > 0

    def _one_at_a_time(self, offer: Offer) -> Any:
        return self._locks.hold(f"image-download/{offer.fingerprint}", "download")

    async def _get(
        self,
        project: str,
        post: ImagesPost,
        fetch: RemoteFetch,
        offer: Offer,
        progress: Progress,
        fetched: Fetched,
    ) -> ImageRecord:
        """Bring it here, from another project if one has it."""
        fetched.update_source = offer.origin if offer.origin.alias else None
        fetched.properties, fetched.expires_at = offer.properties, offer.expires_at
        if not await self._intake.adopt(project, post, fetched, offer.fingerprint):
            incoming = await self._depot.incoming()
            try:
                await fetch.receive(offer, incoming, progress)
            except BaseException:
                await incoming.discard()
                raise
            incoming.filename = offer.filename or incoming.filename
            await self._intake.admit(project, post, fetched, incoming, progress)
        return self._registry.find(project, offer.fingerprint).value

    async def _used(self, project: str, fingerprint: str) -> ImageRecord:
        return await self._registry.change(
            project, fingerprint, lambda record: msgspec.structs.replace(record, last_used_at=now())
        )


def _wanted(record: ImageRecord, post: ImagesPost) -> ImageRecord:
    """An image that is copied once more: what is asked for is added; it is not only a cache's any more."""
    return msgspec.structs.replace(
        record,
        cached=False,
        public=record.public or post.public,
        auto_update=post.auto_update or (record.auto_update and not record.cached),
        properties=record.properties | post.properties,
        profiles=post.profiles or record.profiles,
    )


def _source_of(origin: ImageSource) -> ImagesPostSource:
    return ImagesPostSource(
        type="image",
        mode="pull",
        alias=origin.alias,
        certificate=origin.certificate,
        image_type=origin.image_type,
        protocol=origin.protocol,
        server=origin.server,
    )
