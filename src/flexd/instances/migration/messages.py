# SPDX-License-Identifier: Apache-2.0
"""The messages of LXD's migration protocol on the control channel, as values; protobuf (proto2) is how they travel.

Names and numbers are LXD's `migration` package. Field 1000 is ours: JSON that LXD, as protobuf demands, skips.
"""

from functools import cache
from typing import Any, Literal

from msgspec import Struct, field

from flexd.api.errors import BadRequest

Label = Literal["required", "optional", "repeated"]
Fields = tuple[tuple[str, int, Label, str], ...]

RSYNC, BTRFS = 0, 1
"""`MigrationFSType`: how files travel."""
CRIU_RSYNC, CRIU_NONE = 0, 2
"""`CRIUType`: a live migration, and an instance that runs but is copied without its memory."""
OURS = 1000

_ENUMS = {
    "MigrationFSType": {"RSYNC": 0, "BTRFS": 1, "ZFS": 2, "RBD": 3, "BLOCK_AND_RSYNC": 4},
    "CRIUType": {"CRIU_RSYNC": 0, "PHAUL": 1, "NONE": 2, "VM_QEMU": 3},
}
_MESSAGES: dict[str, Fields] = {
    "IDMapType": (
        ("isuid", 1, "required", "bool"),
        ("isgid", 2, "required", "bool"),
        ("hostid", 3, "required", "int32"),
        ("nsid", 4, "required", "int32"),
        ("maprange", 5, "required", "int32"),
    ),
    "Config": (("key", 1, "required", "string"), ("value", 2, "required", "string")),
    "Device": (("name", 1, "required", "string"), ("config", 2, "repeated", "Config")),
    "Snapshot": (
        ("name", 1, "required", "string"),
        ("localConfig", 2, "repeated", "Config"),
        ("profiles", 3, "repeated", "string"),
        ("ephemeral", 4, "required", "bool"),
        ("localDevices", 5, "repeated", "Device"),
        ("architecture", 6, "required", "int32"),
        ("stateful", 7, "required", "bool"),
        ("creation_date", 8, "optional", "int64"),
        ("last_used_date", 9, "optional", "int64"),
        ("expiry_date", 10, "optional", "int64"),
    ),
    "rsyncFeatures": (
        ("xattrs", 1, "optional", "bool"),
        ("delete", 2, "optional", "bool"),
        ("compress", 3, "optional", "bool"),
        ("bidirectional", 4, "optional", "bool"),
    ),
    "btrfsFeatures": (
        ("migration_header", 1, "optional", "bool"),
        ("header_subvolumes", 2, "optional", "bool"),
        ("header_subvolume_uuids", 3, "optional", "bool"),
    ),
    "MigrationHeader": (
        ("fs", 1, "required", "MigrationFSType"),
        ("criu", 2, "optional", "CRIUType"),
        ("idmap", 3, "repeated", "IDMapType"),
        ("snapshotNames", 4, "repeated", "string"),
        ("snapshots", 5, "repeated", "Snapshot"),
        ("predump", 7, "optional", "bool"),
        ("rsyncFeatures", 8, "optional", "rsyncFeatures"),
        ("refresh", 9, "optional", "bool"),
        ("volumeSize", 11, "optional", "int64"),
        ("btrfsFeatures", 12, "optional", "btrfsFeatures"),
        ("indexHeaderVersion", 13, "optional", "uint32"),
        ("flexd", OURS, "optional", "bytes"),
    ),
    "MigrationControl": (
        ("success", 1, "required", "bool"),
        ("message", 2, "optional", "string"),
        ("flexd", OURS, "optional", "bytes"),
    ),
    "MigrationSync": (("finalPreDump", 1, "required", "bool"),),
}


class BadMessage(BadRequest):
    """The other side does not speak the protocol."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"Failed reading a migration message: {reason}")


class IdmapRow(Struct, frozen=True):
    """One of LXD's id map: `count` ids from `inside` are `outside` and on, on the source's disk."""

    is_uid: bool
    is_gid: bool
    outside: int
    inside: int
    count: int


class Snapshot(Struct):
    """A snapshot as LXD tells of it; dates in seconds since 1970, architectures by LXD's numbers."""

    name: str
    config: dict[str, str] = field(default_factory=dict)
    profiles: list[str] = field(default_factory=list)
    ephemeral: bool = False
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    architecture: int = 0
    stateful: bool = False
    created_at: int = 0
    last_used_at: int = 0
    expires_at: int = 0


class Header(Struct):
    """An offer of the source, or the target's answer. `rsync`, `btrfs`: names of the features that are set; None: the
    message has none. `flexd`: ours, JSON."""

    fs: int = RSYNC
    criu: int | None = None
    idmap: list[IdmapRow] = field(default_factory=list)
    snapshot_names: list[str] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    predump: bool | None = None
    rsync: list[str] | None = None
    refresh: bool = False
    btrfs: list[str] | None = None
    index_version: int = 0
    flexd: bytes = b""


class Control(Struct):
    """The end, good or bad; between two of ours also what comes in between."""

    success: bool
    message: str = ""
    flexd: bytes = b""


def encode_header(header: Header) -> bytes:
    message = _new("MigrationHeader")
    message.fs = header.fs
    if header.criu is not None:
        message.criu = header.criu
    for row in header.idmap:
        message.idmap.add(isuid=row.is_uid, isgid=row.is_gid, hostid=row.outside, nsid=row.inside, maprange=row.count)
    message.snapshotNames.extend(header.snapshot_names)
    for snapshot in header.snapshots:
        _encode_snapshot(snapshot, message.snapshots.add())
    if header.predump is not None:
        message.predump = header.predump
    for name, features in (("rsyncFeatures", header.rsync), ("btrfsFeatures", header.btrfs)):
        if features is not None:
            for feature, *_ in _MESSAGES[name]:
                setattr(getattr(message, name), feature, feature in features)
    if header.refresh:
        message.refresh = True
    if header.index_version:
        message.indexHeaderVersion = header.index_version
    if header.flexd:
        message.flexd = header.flexd
    return bytes(message.SerializeToString(deterministic=True))


def _encode_snapshot(snapshot: Snapshot, message: Any) -> None:
    message.name = snapshot.name
    for key, value in snapshot.config.items():
        message.localConfig.add(key=key, value=value)
    message.profiles.extend(snapshot.profiles)
    message.ephemeral, message.stateful = snapshot.ephemeral, snapshot.stateful
    for name, entry in snapshot.devices.items():
        device = message.localDevices.add(name=name)
        for key, value in entry.items():
            device.config.add(key=key, value=value)
    message.architecture = snapshot.architecture
    message.creation_date = snapshot.created_at
    message.last_used_date = snapshot.last_used_at
    message.expiry_date = snapshot.expires_at


def decode_header(data: bytes) -> Header:
    message = _parse("MigrationHeader", data)
    rows = [IdmapRow(row.isuid, row.isgid, row.hostid, row.nsid, row.maprange) for row in message.idmap]
    return Header(
        fs=message.fs,
        criu=message.criu if message.HasField("criu") else None,
        idmap=rows,
        snapshot_names=list(message.snapshotNames),
        snapshots=[_decode_snapshot(each) for each in message.snapshots],
        predump=message.predump if message.HasField("predump") else None,
        rsync=_features(message, "rsyncFeatures"),
        refresh=message.refresh,
        btrfs=_features(message, "btrfsFeatures"),
        index_version=message.indexHeaderVersion,
        flexd=bytes(message.flexd),
    )


def _features(message: Any, name: str) -> list[str] | None:
    if not message.HasField(name):
        return None
    return [feature for feature, *_ in _MESSAGES[name] if getattr(getattr(message, name), feature)]


def _decode_snapshot(message: Any) -> Snapshot:
    return Snapshot(
        name=message.name,
        config={pair.key: pair.value for pair in message.localConfig},
        profiles=list(message.profiles),
        ephemeral=message.ephemeral,
        devices={device.name: {pair.key: pair.value for pair in device.config} for device in message.localDevices},
        architecture=message.architecture,
        stateful=message.stateful,
        created_at=message.creation_date,
        last_used_at=message.last_used_date,
        expires_at=message.expiry_date,
    )


def encode_control(control: Control) -> bytes:
    message = _new("MigrationControl")
    message.success, message.message = control.success, control.message
    if control.flexd:
        message.flexd = control.flexd
    return bytes(message.SerializeToString(deterministic=True))


def decode_control(data: bytes) -> Control:
    message = _parse("MigrationControl", data)
    return Control(message.success, message.message, bytes(message.flexd))


def encode_sync(final: bool) -> bytes:
    message = _new("MigrationSync")
    message.finalPreDump = final
    return bytes(message.SerializeToString(deterministic=True))


def decode_sync(data: bytes) -> bool:
    return bool(_parse("MigrationSync", data).finalPreDump)


# --- protobuf ---


def _new(name: str) -> Any:
    return _classes()[name]()


def _parse(name: str, data: bytes) -> Any:
    from google.protobuf.message import DecodeError

    message = _new(name)
    try:
        message.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise BadMessage(error) from error
    if not message.IsInitialized():
        raise BadMessage(f"{name} lacks {', '.join(message.FindInitializationErrors())}")
    return message


@cache
def _classes() -> dict[str, Any]:
    """Made at the first migration: the library is a megabyte that most daemons never need."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="flexd/migration.proto", package="migration", syntax="proto2")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            # Values of one package share their names, so those of the second enumeration are qualified.
            enum.value.add(name=f"{name}_{value}", number=number)
    for name, fields in _MESSAGES.items():
        _describe(file.message_type.add(name=name), fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"migration.{name}")) for name in _MESSAGES
    }


def _describe(message: Any, fields: Fields) -> None:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Proto

    for name, number, label, kind in fields:
        described = message.field.add(name=name, number=number, label=getattr(Proto, f"LABEL_{label.upper()}"))
        if kind in _ENUMS:
            described.type, described.type_name = Proto.TYPE_ENUM, f".migration.{kind}"
        elif kind in _MESSAGES:
            described.type, described.type_name = Proto.TYPE_MESSAGE, f".migration.{kind}"
        else:
            described.type = getattr(Proto, f"TYPE_{kind.upper()}")
