# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: storage volume."""

from datetime import datetime

from msgspec import Struct, field

from flexd.api.times import ZERO_TIME


class StorageVolume(Struct):
    config: dict[str, str] = field(default_factory=dict)
    content_type: str = ""
    created_at: datetime = ZERO_TIME
    description: str = ""
    location: str = ""
    name: str = ""
    project: str = ""
    type: str = ""
    used_by: list[str] = field(default_factory=list)


class StorageVolumePostTarget(Struct):
    certificate: str = ""
    operation: str = ""
    secrets: dict[str, str] = field(default_factory=dict)


class StorageVolumePost(Struct):
    migration: bool = False
    name: str = ""
    pool: str = ""
    project: str = ""
    target: StorageVolumePostTarget | None = None
    volume_only: bool = False


class StorageVolumePut(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    restore: str = ""


class StorageVolumeSnapshot(Struct):
    config: dict[str, str] = field(default_factory=dict)
    content_type: str = ""
    created_at: datetime = ZERO_TIME
    description: str = ""
    expires_at: datetime = ZERO_TIME
    name: str = ""


class StorageVolumeSnapshotPost(Struct):
    name: str = ""


class StorageVolumeSnapshotPut(Struct):
    description: str = ""
    expires_at: datetime = ZERO_TIME


class StorageVolumeSnapshotsPost(Struct):
    expires_at: datetime | None = None
    name: str = ""


class StorageVolumeSource(Struct):
    certificate: str = ""
    mode: str = ""
    name: str = ""
    operation: str = ""
    pool: str = ""
    project: str = ""
    refresh: bool = False
    secrets: dict[str, str] = field(default_factory=dict)
    type: str = ""
    volume_only: bool = False


class StorageVolumeStateUsage(Struct):
    total: int = 0
    used: int = 0


class StorageVolumeState(Struct):
    usage: StorageVolumeStateUsage | None = None


class StorageVolumesPost(Struct):
    config: dict[str, str] = field(default_factory=dict)
    content_type: str = ""
    description: str = ""
    name: str = ""
    restore: str = ""
    source: StorageVolumeSource = field(default_factory=StorageVolumeSource)
    type: str = ""
