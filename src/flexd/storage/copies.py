# SPDX-License-Identifier: Apache-2.0
"""Copies of volumes with their snapshots, in a pool and from one to another; each may be repeated after a crash.

In a pool the driver shares what it can. Between pools the oldest snapshot is copied as a tree and the others follow as
what differs, so that the target's snapshots share among each other what the source's do.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from msgspec import Struct

from flexd.api.idmap import IdMap
from flexd.host.contract import Host
from flexd.storage.contract import Driver, Unpack, View, VolumeKind


class Place(Struct, frozen=True):
    """A volume, or what is to become one, and the driver of its pool."""

    driver: Driver
    pool: str
    kind: VolumeKind
    name: str


class Moment(Struct, frozen=True):
    """What to copy: a snapshot, or the volume as it is now; `live` if somebody may be writing to it."""

    snapshot: str | None = None
    live: bool = False


def view_of(source: Place, moment: Moment) -> View:
    def view(idmap: IdMap) -> AbstractAsyncContextManager[Path]:
        return source.driver.view(source.kind, source.name, idmap, snapshot=moment.snapshot, live=moment.live)

    return view


def _filled_from(host: Host, source: Place, moment: Moment) -> Unpack:
    async def fill(target: Path) -> None:
        async with view_of(source, moment)(IdMap()) as tree:
            await host.files.copy_tree(tree, target)

    return fill


async def copy(
    host: Host, source: Place, target: Place, moment: Moment, snapshots: Sequence[str], *, size_bytes: int
) -> None:
    """`snapshots`: those to take along, the oldest first."""
    kind, name = target.kind, target.name
    if source.pool == target.pool:
        await source.driver.copy_volume(
            kind, source.name, name, snapshot=moment.snapshot, size_bytes=size_bytes, live=moment.live
        )
        for snapshot in snapshots:
            await source.driver.copy_snapshot(kind, source.name, snapshot, name)
        return
    first = Moment(snapshots[0]) if snapshots else moment
    await target.driver.create_from_tree(kind, name, _filled_from(host, source, first), size_bytes=size_bytes)
    if snapshots:
        await _follow(source, target, moment, snapshots)


async def refresh(source: Place, target: Place, moment: Moment, snapshots: Sequence[str]) -> None:
    """Make an existing volume equal to another, adding these snapshots; the target is not in use."""
    if source.pool != target.pool:
        await _follow(source, target, moment, snapshots)
        return
    for snapshot in snapshots:
        await source.driver.copy_snapshot(target.kind, source.name, snapshot, target.name)
    await source.driver.replace_content(
        target.kind, target.name, source.name, snapshot=moment.snapshot, live=moment.live
    )


async def _follow(source: Place, target: Place, moment: Moment, snapshots: Sequence[str]) -> None:
    kind, name, driver = target.kind, target.name, target.driver
    known = set(await driver.list_snapshots(kind, name))
    for snapshot in snapshots:
        if snapshot not in known:
            await driver.refresh_volume(kind, name, view_of(source, Moment(snapshot)))
            await driver.create_snapshot(kind, name, snapshot)
    await driver.refresh_volume(kind, name, view_of(source, moment))
