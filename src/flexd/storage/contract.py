# SPDX-License-Identifier: Apache-2.0
"""Pools and volumes: the data that storage shares with the rest, and what a driver does.

`flexd.storage.pools.Pools` is the service; `drivers/<name>.py` are the drivers, found by scanning the folder.
A driver works below one directory of one pool and knows nothing of documents, projects or the API.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct, field

from flexd.api.errors import BadRequest, Conflict, FlexdError, NotFound, Unavailable
from flexd.api.idmap import IdMap
from flexd.api.keys import Key
from flexd.api.times import ZERO_TIME
from flexd.host.contract import Host

VolumeKind = Literal["container", "virtual-machine", "image", "custom"]
Unpack = Callable[[Path], Awaitable[None]]
"""Fills an empty directory with an image's root file system, ids as the image has them."""
View = Callable[[IdMap], AbstractAsyncContextManager[Path]]
"""Shows a tree, read-only, with ids as host ids under the given map (empty: as the image has them)."""


class PoolNotFound(NotFound):
    pass


class VolumeNotFound(NotFound):
    pass


class SnapshotNotFound(NotFound):
    pass


class VolumeInUse(Conflict):
    pass


class QuotaUnsupported(BadRequest):
    """A size was asked for that this pool cannot enforce; the message says why."""


class IdmapUnsupported(FlexdError):
    """This kernel or file system cannot show a volume under another id map; the message says what would."""


class PoolUnavailable(Unavailable):
    """The pool could not be made usable when the daemon started; the message says why."""


class PoolRecord(Struct):
    """The document `/storage-pools/NAME`. `config.source` and what the driver filled in are kept."""

    name: str
    driver: str
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)
    created_at: datetime = ZERO_TIME


class VolumeRecord(Struct):
    """The document `/storage-volumes/POOL/KIND/PROJECT/NAME`. A snapshot's name is `NAME@SNAPSHOT` here and
    `NAME/SNAPSHOT` in the API; `expires_at` zero: never (only snapshots expire)."""

    name: str
    pool: str
    kind: VolumeKind
    project: str = "default"
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)
    content_type: str = "filesystem"
    created_at: datetime = ZERO_TIME
    expires_at: datetime = ZERO_TIME


class VolumeRef(Struct, frozen=True):
    """A volume by pool, kind and storage name (`c1`; `project_c1` outside the default project)."""

    pool: str
    kind: VolumeKind
    name: str


class Stream(Struct, frozen=True):
    """One subvolume of a volume, or of its snapshot of this name, in a driver's own format; `path`: from the volume's
    top, "/", as it is in a backup, where an instance's root file system is `/rootfs`."""

    snapshot: str = ""
    path: str = "/"
    uuid: str = ""
    readonly: bool = False


Dress = Callable[[str, Path], None]
"""Writes what a backup has beside `rootfs` into a directory, for a snapshot ("": the volume itself). In a thread."""


class Outgoing(Struct, frozen=True):
    """`write` fills a file descriptor, once, in the order of the list it comes in."""

    stream: Stream
    write: Callable[[int], Awaitable[None]]


class Reception(Protocol):
    """Streams that have arrived in a pool and are no volume yet."""

    place: Path

    async def take(self, stream: Stream, source: int) -> None:
        """Read one from a descriptor; what it differs from came before it."""
        ...

    async def beside(self, snapshot: str) -> dict[str, bytes]:
        """The small files beside an instance's `rootfs`, by their paths; `BadRequest` if there is no `rootfs`."""
        ...


class Streams(Protocol):
    """A driver's own format of backups (LXD's `optimized_storage`): a stream for each subvolume, of which what follows
    a snapshot holds what differs from that."""

    def sending(
        self, kind: VolumeKind, name: str, snapshots: Sequence[str], *, live: bool, dress: Dress | None
    ) -> AbstractAsyncContextManager[Sequence[Outgoing]]:
        """What a volume and these snapshots (the oldest first) hold now; the volume comes last. Instance volumes are
        laid out as LXD's, with what `dress` adds."""
        ...

    def receiving(self) -> AbstractAsyncContextManager[Reception]:
        """What arrived and became no volume is gone after the block, or at the next start."""
        ...

    async def create_from_streams(
        self,
        kind: VolumeKind,
        name: str,
        place: Path,
        streams: Sequence[Stream],
        *,
        size_bytes: int,
        owners: Mapping[str, IdMap],
    ) -> None:
        """A new volume with its snapshots of what a reception took, in that order, with `place` as its own. `owners`:
        the maps that owners on disk are under, by snapshot. Whole or not at all; devices are left out."""
        ...


class Driver(Protocol):
    """One pool. Instance volumes hold `rootfs/`; every method is idempotent, so that a journalled step can be repeated
    and undone half-way. Failures are `HostError`/`CommandFailed` or the errors above."""

    name: str
    version: str
    KEYS: tuple[Key, ...]  # pool configuration
    VOLUME_KEYS: tuple[Key, ...]
    optimized_images: bool  # keeps an unpacked image per pool
    shifted_on_disk: bool  # owners on disk are host ids under the container's map, rather than the container's own

    @property
    def streams(self) -> Streams | None:
        """Where the driver has a format of its own for backups."""
        ...

    async def probe(self) -> str | None:
        """None if this host can run the driver, else why not."""
        ...

    async def check_new_pool(self) -> None:
        """Raise `BadRequest` if the source can't become a pool. Called once before `create_pool`, so that whatever
        is in the source later on is the pool's own and may be removed."""
        ...

    async def create_pool(self) -> Mapping[str, str]:
        """Make the pool; returns configuration it filled in (`source`)."""
        ...

    async def delete_pool(self) -> None: ...
    async def mount_pool(self) -> None:
        """After a daemon or host restart: make the pool usable again."""
        ...

    async def quota_fault(self) -> str | None:
        """None if sizes can be enforced here, else the reason (shown in the error)."""
        ...

    async def create_image(self, fingerprint: str, unpack: Unpack) -> None: ...
    async def has_image(self, fingerprint: str) -> bool: ...
    async def delete_image(self, fingerprint: str) -> None: ...

    async def create_volume(self, kind: VolumeKind, name: str, *, size_bytes: int) -> None:
        """An empty volume."""
        ...

    async def create_from_image(
        self, kind: VolumeKind, name: str, fingerprint: str, unpack: Unpack, *, size_bytes: int
    ) -> None: ...
    async def delete_volume(self, kind: VolumeKind, name: str) -> None: ...
    async def rename_volume(self, kind: VolumeKind, name: str, new_name: str) -> None: ...
    async def resize_volume(self, kind: VolumeKind, name: str, size_bytes: int) -> None: ...
    async def volume_usage(self, kind: VolumeKind, name: str) -> int | None:
        """Bytes used, where it is known without walking the tree; else None."""
        ...

    def volume_path(self, kind: VolumeKind, name: str) -> Path:
        """What belongs to the volume alone on disk, for `du`: an overlay's own layer, not its image."""
        ...

    def state_directory(self, name: str) -> Path:
        """Where the daemon keeps what it knows of an instance beside its files; goes where the volume goes by renaming,
        and ends with it. Root's alone; it need not exist."""
        ...

    async def mount_volume(self, kind: VolumeKind, name: str, idmap: IdMap) -> Path:
        """Make it usable with ids seen as the map's host ids (empty: as on disk); returns the directory to use: the
        container's root for an instance volume, the volume itself for a custom one. Mounted already: the same path.
        Shifts what was written under another map first, where the driver keeps shifted ids on disk. A custom volume
        has users with maps of their own, so it is mounted with the empty map; each user's view is an idmapped bind
        mount of that, made by the disk device."""
        ...

    async def rewrites_owners(self, kind: VolumeKind, name: str, idmap: IdMap) -> bool:
        """Whether mounting it under this map would change owners on disk."""
        ...

    async def unmount_volume(self, kind: VolumeKind, name: str) -> None: ...
    async def list_volumes(self) -> list[tuple[VolumeKind, str]]:
        """What is on disk, for recovery; without snapshots."""
        ...

    # Snapshots hold a volume's content, not its size. They go, and are renamed, with their volume.

    async def create_snapshot(self, kind: VolumeKind, name: str, snapshot: str, *, live: bool = False) -> None:
        """Keep what the volume holds now. `live`: it is in use (a running container), and what is mounted stays. Except
        on btrfs the files are then copied: the caller freezes the container, else a file that vanishes meanwhile is an
        error. Not live: may unmount the volume."""
        ...

    async def delete_snapshot(self, kind: VolumeKind, name: str, snapshot: str) -> None:
        """In any order; what other snapshots, copies or the volume itself lie on stays, out of sight."""
        ...

    async def rename_snapshot(self, kind: VolumeKind, name: str, snapshot: str, new_snapshot: str) -> None: ...

    async def restore_snapshot(self, kind: VolumeKind, name: str, snapshot: str) -> None:
        """Make the volume what the snapshot holds. Nobody uses the volume; it is unmounted. Its size stays."""
        ...

    async def list_snapshots(self, kind: VolumeKind, name: str) -> list[str]:
        """Sorted by name; order and dates are in the documents."""
        ...

    async def mount_snapshot(self, kind: VolumeKind, name: str, snapshot: str, idmap: IdMap) -> Path:
        """Read-only, ids as host ids under this map, whatever map the volume had. The root file system of an instance
        volume, the directory of a custom one. Mounted already: the same path."""
        ...

    async def unmount_snapshot(self, kind: VolumeKind, name: str, snapshot: str) -> None: ...

    async def snapshot_usage(self, kind: VolumeKind, name: str, snapshot: str) -> int:
        """Bytes that belong to the snapshot rather than to an image; may walk it."""
        ...

    async def copy_snapshot(self, kind: VolumeKind, name: str, snapshot: str, new_name: str) -> None:
        """Give another volume of this pool the same snapshot, under the same name."""
        ...

    async def copy_volume(
        self,
        kind: VolumeKind,
        name: str,
        new_name: str,
        *,
        snapshot: str | None = None,
        size_bytes: int = 0,
        live: bool = False,
    ) -> None:
        """A new volume of this pool with what a volume, or one of its snapshots, holds; without its snapshots."""
        ...

    async def create_from_tree(self, kind: VolumeKind, name: str, fill: Unpack, *, size_bytes: int) -> None:
        """A new volume whose content the caller writes, with ids as an image has them: a copy from another pool, a
        backup. Whole or not at all."""
        ...

    async def replace_content(
        self, kind: VolumeKind, name: str, source_name: str, *, snapshot: str | None = None, live: bool = False
    ) -> None:
        """Make an unused volume what another one of this pool (or its snapshot) holds; `live` is about the source."""
        ...

    async def refresh_volume(self, kind: VolumeKind, name: str, source: View, *, by_content: bool = False) -> None:
        """Make an unused volume equal to a tree by writing only what differs. Repeated until it is, if cut short.
        `by_content`: as of `Files.refresh_tree`."""
        ...

    def view(
        self, kind: VolumeKind, name: str, idmap: IdMap, *, snapshot: str | None = None, live: bool = False
    ) -> AbstractAsyncContextManager[Path]:
        """A volume or a snapshot as a read-only tree for the time of the block, ids as host ids under this map (empty:
        as an image has them), for copies and backups. Of a volume, a view of one moment: a snapshot nobody sees. Only
        where that would be a whole copy (dir, custom volumes) it is the volume itself, as it changes."""
        ...

    def changing_view(self, kind: VolumeKind, name: str, idmap: IdMap) -> AbstractAsyncContextManager[Path]:
        """As `view`, of the volume itself while somebody goes on writing to it; nothing is copied for it. What changes
        meanwhile may or may not be seen: a later view, when nobody writes, shows all of it."""
        ...

    async def settle(self) -> None:
        """Wait for the removals that are under way."""
        ...

    async def close(self) -> None:
        """End background work (removals); what is left over is taken up by the next `mount_pool`."""
        ...


class DriverClass(Protocol):
    """How a driver is made: for one pool, working below `directory` (the pool's place under $FLEXD_DIR)."""

    KEYS: tuple[Key, ...]
    VOLUME_KEYS: tuple[Key, ...]
    name: str
    version: str
    optimized_images: bool

    def __call__(self, *, host: Host, pool: str, directory: Path, config: Mapping[str, str]) -> Driver: ...
