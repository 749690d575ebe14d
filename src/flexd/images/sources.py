# SPDX-License-Identifier: Apache-2.0
"""Where an image can come from other than an upload: one row per source type of `POST /1.0/images`."""

import re
from datetime import datetime
from typing import Protocol

from msgspec import Struct, field

from flexd.api.architectures import canonical_architecture
from flexd.api.errors import BadRequest
from flexd.api.image import ImageSource, ImagesPostSource
from flexd.host.contract import Host
from flexd.images.depot import Depot, Known
from flexd.images.incoming import Incoming
from flexd.images.keys import Settings
from flexd.images.transfer import Web, check_url
from flexd.operations.contract import Progress

# Or the beginning of one; what is shorter is a name ("12").
_FINGERPRINT = re.compile(r"[0-9a-f]{8,64}")


class Fetched(Struct):
    """What is known of an image besides its files. `aliases` are taken over from older images. `progress_key`: the
    metadata key under which its progress was told, and still is while it is checked. `properties`: in place of those
    in metadata.yaml. `cached`: nobody asked for the image itself, only for an instance of it. `known`: what is in the
    files, if we made them ourselves; others are checked."""

    progress_key: str
    aliases: list[str] = field(default_factory=list)
    update_source: ImageSource | None = None
    properties: dict[str, str] = field(default_factory=dict)
    expires_at: datetime | None = None
    cached: bool = False
    known: Known | None = None


class Fetch(Protocol):
    """An image about to be got; `into` writes its files and is cancelled like any task."""

    description: str

    async def into(self, incoming: Incoming, progress: Progress) -> Fetched: ...


class Offer(Struct, frozen=True):
    """What a server says of an image before it is fetched."""

    fingerprint: str
    origin: ImageSource
    properties: dict[str, str] = {}
    filename: str = ""
    expires_at: datetime | None = None


class RemoteFetch(Protocol):
    """An image of a server, named by alias or fingerprint. `origin`: where newer versions of it will be; its alias is
    "" if there will be none."""

    description: str
    architecture: str
    name: str
    origin: ImageSource

    async def locate(self) -> Offer: ...
    async def receive(self, offer: Offer, incoming: Incoming, progress: Progress) -> None: ...


def alias_of(source: ImagesPostSource) -> str:
    """The alias that a source names, "" if it names a fingerprint. Debian's lxc sends aliases as fingerprints too."""
    if source.alias or _FINGERPRINT.fullmatch(source.fingerprint):
        return source.alias
    return source.fingerprint


class Sources:
    """What `POST /1.0/images` and `POST /1.0/instances` name as a source."""

    def __init__(self, host: Host, web: Web, depot: Depot, settings: Settings) -> None:
        from flexd.images.simplestreams import Streams

        self._host, self._web, self._depot, self._settings = host, web, depot, settings
        self._streams = Streams(web, host.processes, settings)

    async def prepare(self, source: ImagesPostSource) -> Fetch:
        """Check a request as far as that needs no network; BadRequest says what is wrong."""
        if source.type == "url":
            from flexd.images.remote import UrlFetch

            return UrlFetch(self._web, source, (await self._host.machine.features()).architectures)
        if source.type == "build":
            from flexd.images.build import prepare_build

            return await prepare_build(self._host, source)
        raise BadRequest(f'Invalid image source type "{source.type}" (expected one of url, image, build)')

    async def remote(self, source: ImagesPostSource, architecture: str = "") -> RemoteFetch:
        """An image of another server; `architecture`: which is meant where several have the name."""
        if source.mode not in ("", "pull"):
            raise BadRequest(f'Invalid image source: mode "{source.mode}" is not known (expected one of pull, push)')
        if not source.server:
            raise BadRequest("Invalid image source: a server is required; images of this server need no copy")
        if not (source.fingerprint or source.alias):
            raise BadRequest("Invalid image source: Must specify one of alias or fingerprint")
        check_url(source.server)
        architecture = architecture or await self._default_architecture()
        if source.protocol == "simplestreams":
            from flexd.images.simplestreams import StreamFetch

            return StreamFetch(self._streams, self._web, source, architecture)
        if source.protocol == "oci":
            from flexd.images.registries import prepare_oci

            return await prepare_oci(self._host, self._depot, self._settings, self._web.patience, source, architecture)
        if source.protocol in ("", "lxd", "incus", "flexd"):
            from flexd.images.remote import ServerFetch

            return ServerFetch(self._web, source, architecture)
        raise BadRequest(
            f'Invalid image source: protocol "{source.protocol}" is not known (expected one of lxd, simplestreams, oci)'
        )

    async def _default_architecture(self) -> str:
        wanted = canonical_architecture(self._settings("images.default_architecture"))
        return wanted or (await self._host.machine.features()).architectures[0]
