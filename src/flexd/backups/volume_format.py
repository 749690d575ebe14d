# SPDX-License-Identifier: Apache-2.0
"""`index.yaml` of a custom volume's backup, as LXD 5.0 writes and reads it; pure."""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct, field

from flexd.api.storage_volume import StorageVolume, StorageVolumeSnapshot
from flexd.api.times import ZERO_TIME
from flexd.backups.document import BadBackup, dump, parse, timestamp
from flexd.storage.contract import VolumeRecord
from flexd.storage.names import split_snapshot


class VolumeConfig(Struct):
    volume: StorageVolume | None = None
    volume_snapshots: list[StorageVolumeSnapshot] = field(default_factory=list)


class VolumeIndex(Struct):
    name: str = ""
    backend: str = ""
    pool: str = ""
    snapshots: list[str] = field(default_factory=list)
    optimized: bool = False
    optimized_header: bool = False
    type: str = ""
    config: VolumeConfig | None = None

    def described(self) -> StorageVolume:
        """Its volume: there, in an index that was parsed."""
        assert self.config is not None
        assert self.config.volume is not None
        return self.config.volume

    def snapshot(self, name: str) -> StorageVolumeSnapshot:
        """What is said of a snapshot; nothing: only its name."""
        known = self.config.volume_snapshots if self.config is not None else []
        found = (each for each in known if each.name.rpartition("/")[2] == name)
        return next(found, StorageVolumeSnapshot(name=name))


def render_volume_index(
    volume: VolumeRecord, snapshots: Sequence[VolumeRecord], backend: str, *, optimized: bool
) -> bytes:
    names = [split_snapshot(snapshot.name)[1] for snapshot in snapshots]
    config: dict[str, Any] = {
        "volume": {
            "config": volume.config,
            "description": volume.description,
            "name": volume.name,
            "type": "custom",
            "used_by": [],
            "location": "none",
            "content_type": volume.content_type,
            "project": volume.project,
            "created_at": timestamp(volume.created_at),
        }
    }
    if snapshots:
        config["volume_snapshots"] = [_snapshot(snapshot) for snapshot in snapshots]
    return dump(
        {
            "name": volume.name,
            "backend": backend,
            "pool": volume.pool,
            **({"snapshots": names} if names else {}),
            "optimized": optimized,
            "optimized_header": optimized,
            "type": "custom",
            "config": config,
        }
    )


def _snapshot(snapshot: VolumeRecord) -> dict[str, Any]:
    return {
        "description": snapshot.description,
        "expires_at": timestamp(snapshot.expires_at or ZERO_TIME),
        "name": split_snapshot(snapshot.name)[1],
        "config": snapshot.config,
        "content_type": snapshot.content_type,
        "created_at": timestamp(snapshot.created_at),
    }


def parse_volume_index(text: bytes, name: str) -> VolumeIndex:
    """`BadBackup` says what cannot be restored; `name` is the file's, for that."""
    index = parse(text, VolumeIndex, f"index.yaml of backup {name}")
    if index.type != "custom":
        raise BadBackup(
            f'Failed restoring backup {name}: it is no backup of a custom volume but of type "{index.type}"'
        )
    if not index.name or index.config is None or index.config.volume is None:
        raise BadBackup(f"Invalid index.yaml of backup {name}: it does not describe a volume")
    if len(set(index.snapshots)) != len(index.snapshots):
        raise BadBackup(f"Invalid index.yaml of backup {name}: two snapshots have the same name")
    return index
