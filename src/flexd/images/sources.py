# SPDX-License-Identifier: Apache-2.0
"""Where an image can come from other than an upload: one row per source type of `POST /1.0/images`."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct, field

from flexd.api.errors import BadRequest
from flexd.api.image import ImageSource, ImagesPost
from flexd.host.contract import Host
from flexd.images.incoming import Incoming
from flexd.operations.contract import Progress


class Fetched(Struct):
    """What is known of an image besides its files. `aliases` are taken over from older images. `progress_key`: the
    metadata key under which its progress was told, and still is while it is checked."""

    progress_key: str
    aliases: list[str] = field(default_factory=list)
    update_source: ImageSource | None = None


class Fetch(Protocol):
    """An image about to be got; `into` writes its files and is cancelled like any task."""

    description: str

    async def into(self, incoming: Incoming, progress: Progress) -> Fetched: ...


class Sources:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._kinds: dict[str, Callable[[ImagesPost], Awaitable[Fetch]]] = {
            "url": self._url,
            "image": self._image,
            "build": self._build,
        }

    async def prepare(self, post: ImagesPost) -> Fetch:
        """Check a request as far as that needs no network; BadRequest says what is wrong."""
        kind = post.source.type if post.source else ""
        if kind in ("instance", "container", "virtual-machine", "snapshot"):
            raise BadRequest(f'Invalid image source: publishing from type "{kind}" is not supported here')
        prepare = self._kinds.get(kind)
        if prepare is None:
            raise BadRequest(f'Invalid image source type "{kind}" (expected one of {", ".join(self._kinds)})')
        return await prepare(post)

    async def _url(self, post: ImagesPost) -> Fetch:
        from flexd.images.remote import UrlFetch

        assert post.source is not None
        return UrlFetch(post.source, (await self._host.machine.features()).architectures)

    async def _image(self, post: ImagesPost) -> Fetch:
        from flexd.images.remote import ServerFetch

        assert post.source is not None
        return ServerFetch(post.source)

    async def _build(self, post: ImagesPost) -> Fetch:
        from flexd.images.build import prepare_build

        assert post.source is not None
        return await prepare_build(self._host, post.source)
