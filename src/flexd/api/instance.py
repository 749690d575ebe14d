# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: instance."""

from datetime import datetime

from msgspec import Struct, field

from flexd.api.instance_backup import InstanceBackup
from flexd.api.instance_snapshot import InstancePostTarget, InstanceSnapshot
from flexd.api.instance_state import InstanceState, InstanceStatePut
from flexd.api.times import ZERO_TIME


class Instance(Struct):
    architecture: str = ""
    config: dict[str, str] = field(default_factory=dict)
    created_at: datetime = ZERO_TIME
    description: str = ""
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    ephemeral: bool = False
    expanded_config: dict[str, str] = field(default_factory=dict)
    expanded_devices: dict[str, dict[str, str]] = field(default_factory=dict)
    last_used_at: datetime = ZERO_TIME
    location: str = ""
    name: str = ""
    profiles: list[str] = field(default_factory=list)
    project: str = ""
    stateful: bool = False
    status: str = ""
    status_code: int = 0
    type: str = ""


class InstanceFull(Struct):
    architecture: str = ""
    backups: list[InstanceBackup] = field(default_factory=list)
    config: dict[str, str] = field(default_factory=dict)
    created_at: datetime = ZERO_TIME
    description: str = ""
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    ephemeral: bool = False
    expanded_config: dict[str, str] = field(default_factory=dict)
    expanded_devices: dict[str, dict[str, str]] = field(default_factory=dict)
    last_used_at: datetime = ZERO_TIME
    location: str = ""
    name: str = ""
    profiles: list[str] = field(default_factory=list)
    project: str = ""
    snapshots: list[InstanceSnapshot] = field(default_factory=list)
    state: InstanceState | None = None
    stateful: bool = False
    status: str = ""
    status_code: int = 0
    type: str = ""


class InstancePost(Struct):
    allow_inconsistent: bool = False
    container_only: bool = False
    instance_only: bool = False
    live: bool = False
    migration: bool = False
    name: str = ""
    pool: str = ""
    project: str = ""
    target: InstancePostTarget | None = None


class InstancePut(Struct):
    architecture: str = ""
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    ephemeral: bool = False
    profiles: list[str] = field(default_factory=list)
    restore: str = ""
    stateful: bool = False


class InstanceSource(Struct):
    alias: str = ""
    allow_inconsistent: bool = False
    base_image: str = field(name="base-image", default="")
    certificate: str = ""
    container_only: bool = False
    fingerprint: str = ""
    instance_only: bool = False
    live: bool = False
    mode: str = ""
    operation: str = ""
    project: str = ""
    properties: dict[str, str] = field(default_factory=dict)
    protocol: str = ""
    refresh: bool = False
    secret: str = ""
    secrets: dict[str, str] = field(default_factory=dict)
    server: str = ""
    source: str = ""
    type: str = ""


class InstancesPost(Struct):
    architecture: str = ""
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    ephemeral: bool = False
    instance_type: str = ""
    name: str = ""
    profiles: list[str] | None = None
    restore: str = ""
    source: InstanceSource = field(default_factory=InstanceSource)
    stateful: bool = False
    type: str = ""


class InstanceRebuildPost(Struct):
    source: InstanceSource = field(default_factory=InstanceSource)


class InstancesPut(Struct):
    state: InstanceStatePut = field(default_factory=InstanceStatePut)
