# SPDX-License-Identifier: Apache-2.0
"""What the two sides tell each other before files travel, and what they make of it; pure.

Two of ours find each other by `Offer` and `Answer` in the headers' own field, and send trees (`trees.py`); with an LXD
it is rsync. Snapshots are described in LXD's words in both cases.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from flexd.api.times import ZERO_TIME
from flexd.instances.backup_format import portable_config
from flexd.instances.metadata import MetadataRecord
from flexd.instances.migration.messages import RSYNC, BadMessage, Header, Snapshot
from flexd.instances.names import check_snapshot_name
from flexd.instances.record import InstanceRecord, SnapshotRecord

T = TypeVar("T", bound=Struct)

VERSION = 1
"""Of the two structures below; raised when an older side would misread them."""
RSYNC_FEATURES = ("xattrs", "delete", "compress", "bidirectional")
# LXD's numbers of architectures (shared/osarch); those that it has and we do not are left out.
_ARCHITECTURES = {
    1: "i686",
    2: "x86_64",
    3: "armv7l",
    4: "aarch64",
    6: "ppc64",
    7: "ppc64le",
    8: "s390x",
    12: "riscv64",
    13: "armv6l",
    14: "armv8l",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBERS = {name: number for number, name in _ARCHITECTURES.items()}


class Dates(Struct, frozen=True):
    """To the microsecond, where LXD's messages know seconds."""

    created_at: datetime
    expires_at: datetime = ZERO_TIME


class Offer(Struct):
    """Of a source of ours. `base`: fingerprint of the image it was made from. `kept`: what it and its snapshots kept
    of their images, by name of the document; `keeps`: which of them (empty key: the instance itself)."""

    version: int = VERSION
    base: str = ""
    dates: dict[str, Dates] = field(default_factory=dict)
    kept: dict[str, MetadataRecord] = field(default_factory=dict)
    keeps: dict[str, str] = field(default_factory=dict)
    running: "Running | None" = None


class Running(Struct):
    """What the state of an instance that is to go on running leans on, at one end. `token` names the decision who goes
    on; `processor` holds the names of its features."""

    criu_version: str
    kernel_version: str
    architecture: str
    cgroup_mode: str
    processor: list[str]
    memory_bytes: int
    token: str = ""
    idmap: str = ""


class Answer(Struct):
    """Of a target of ours. `listing`: it has files already and tells first which. `live`: it takes it running."""

    version: int = VERSION
    listing: bool = False
    live: bool = False


class Phase(Struct):
    """What the source, if it is one of ours, does next on the other channels: "files" once more (what has changed since
    the last pass), something that a live migration needs, or nothing: "done"."""

    what: str


def read_offer(header: Header) -> Offer | None:
    """None: the source is no flexd, or one that speaks only other versions of this."""
    found = _decoded(header, Offer)
    return found if found is not None and found.version == VERSION else None


def read_answer(header: Header) -> Answer | None:
    found = _decoded(header, Answer)
    return found if found is not None and found.version == VERSION else None


def _decoded(header: Header, kind: type[T]) -> T | None:
    if not header.flexd:
        return None
    try:
        return msgspec.json.decode(header.flexd, type=kind)
    except msgspec.DecodeError as error:
        raise BadMessage(error) from error


def make_offer(snapshots: Sequence[SnapshotRecord], offer: Offer) -> Header:
    """For a target of either kind."""
    return Header(
        fs=RSYNC,
        rsync=list(RSYNC_FEATURES),
        snapshot_names=[snapshot.name for snapshot in snapshots],
        snapshots=[describe(snapshot) for snapshot in snapshots],
        predump=False,
        flexd=msgspec.json.encode(offer),
    )


def describe(snapshot: SnapshotRecord) -> Snapshot:
    past = snapshot.instance
    return Snapshot(
        name=snapshot.name,
        config=portable_config(past.config),
        profiles=list(past.profiles),
        ephemeral=past.ephemeral,
        devices={name: dict(entry) for name, entry in past.devices.items()},
        architecture=_NUMBERS.get(past.architecture, 0),
        stateful=False,  # its memory stays here
        created_at=seconds_of(snapshot.created_at),
        last_used_at=seconds_of(past.last_used_at),
        expires_at=seconds_of(snapshot.expires_at),
    )


def take_over(told: Snapshot, record: InstanceRecord, offer: Offer | None, kept: Mapping[str, str]) -> SnapshotRecord:
    """A snapshot of the other side's, as one of `record`. `kept`: names of metadata documents here."""
    check_snapshot_name(told.name)
    dates = offer.dates.get(told.name) if offer is not None else None
    devices = {name: dict(entry) for name, entry in told.devices.items()}
    for name, entry in devices.items():
        if entry.get("type") == "disk" and entry.get("path") == "/":
            devices[name] = {**entry, "pool": record.pool}
    past = msgspec.structs.replace(
        record,
        architecture=_ARCHITECTURES.get(told.architecture, record.architecture),
        ephemeral=told.ephemeral,
        profiles=told.profiles,
        config=portable_config(told.config) | {"volatile.uuid": record.config["volatile.uuid"]},
        devices=devices,
        metadata=kept.get(told.name, record.metadata),
        last_used_at=when(told.last_used_at),
        attached={},
    )
    created_at = dates.created_at if dates else when(told.created_at)
    return SnapshotRecord(told.name, past, created_at, dates.expires_at if dates else when(told.expires_at))


class Difference(Struct, frozen=True):
    """How an older copy's snapshots differ: what is to come, and what is to go first."""

    missing: list[str]
    surplus: list[str]


def compare(theirs: Sequence[SnapshotRecord], ours: Sequence[SnapshotRecord]) -> Difference:
    """As LXD: a snapshot of the same name and second is the same one."""
    known = {snapshot.name: seconds_of(snapshot.created_at) for snapshot in ours}
    wanted = {snapshot.name: seconds_of(snapshot.created_at) for snapshot in theirs}
    missing = [name for name, second in wanted.items() if known.get(name) != second]
    return Difference(missing, [name for name, second in known.items() if wanted.get(name) != second])


def seconds_of(moment: datetime) -> int:
    """Go's zero time is far below zero; LXD sends it so, and takes it as "never"."""
    return int((moment - _EPOCH).total_seconds())


def when(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC) if seconds > 0 else ZERO_TIME
