# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: instance snapshot."""

from datetime import datetime

from msgspec import Struct, field

from flexd.api.times import ZERO_TIME


class InstancePostTarget(Struct):
    certificate: str = ""
    operation: str = ""
    secrets: dict[str, str] = field(default_factory=dict)


class InstanceSnapshot(Struct):
    architecture: str = ""
    config: dict[str, str] = field(default_factory=dict)
    created_at: datetime = ZERO_TIME
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    ephemeral: bool = False
    expanded_config: dict[str, str] = field(default_factory=dict)
    expanded_devices: dict[str, dict[str, str]] = field(default_factory=dict)
    expires_at: datetime = ZERO_TIME
    last_used_at: datetime = ZERO_TIME
    name: str = ""
    profiles: list[str] = field(default_factory=list)
    size: int = 0
    stateful: bool = False


class InstanceSnapshotPost(Struct):
    live: bool = False
    migration: bool = False
    name: str = ""
    target: InstancePostTarget | None = None


class InstanceSnapshotPut(Struct):
    expires_at: datetime = ZERO_TIME


class InstanceSnapshotsPost(Struct):
    expires_at: datetime | None = None
    name: str = ""
    stateful: bool = False
