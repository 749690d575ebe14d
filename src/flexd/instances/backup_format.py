# SPDX-License-Identifier: Apache-2.0
"""`index.yaml` and `backup.yaml` of a backup, as LXD 5.0 writes and reads them; pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct, field

from flexd.api.instance import Instance
from flexd.api.instance_snapshot import InstanceSnapshot
from flexd.api.profile import Profile
from flexd.api.storage_pool import StoragePool
from flexd.backups.document import BadBackup, dump, parse, timestamp

# Keys of this host alone; the files in a backup have their ids as the container sees them.
_TIED = ("volatile.idmap.", "volatile.last_state.")
_INSTANCE_FIELDS = (
    *("architecture", "config", "devices", "ephemeral", "profiles", "stateful", "description", "created_at"),
    *("expanded_config", "expanded_devices", "name", "status", "status_code", "last_used_at", "location", "type"),
    "project",
)
_SNAPSHOT_FIELDS = (
    *("expires_at", "architecture", "config", "created_at", "devices", "ephemeral", "expanded_config"),
    *("expanded_devices", "last_used_at", "name", "profiles", "stateful", "size"),
)


class BackupConfig(Struct):
    """The instance as it was; what LXD's older and newer backups call differently is both here."""

    container: Instance | None = None
    instance: Instance | None = None
    snapshots: list[InstanceSnapshot] = field(default_factory=list)

    def described(self) -> Instance | None:
        return self.container or self.instance


class BackupIndex(Struct):
    """`index.yaml`. Backups of LXD before 4.x have no `config` there, only in backup.yaml."""

    name: str = ""
    backend: str = ""
    pool: str = ""
    snapshots: list[str] = field(default_factory=list)
    optimized: bool = False
    type: str = "container"
    config: BackupConfig | None = None


class Source(Struct, frozen=True):
    """What a backup is written from: answers of the API, of one moment."""

    instance: Instance
    snapshots: Sequence[InstanceSnapshot]
    pool: StoragePool
    profiles: Sequence[Profile]


# --- writing -----------------------------------------------------------------------------------------------------


def render_index(source: Source, backend: str, *, optimized: bool = False) -> bytes:
    """backup/index.yaml."""
    instance = source.instance
    document = {
        "name": instance.name,
        "backend": backend,
        "pool": source.pool.name,
        **({"snapshots": [snapshot.name for snapshot in source.snapshots]} if source.snapshots else {}),
        "optimized": optimized,
        "optimized_header": optimized,
        "type": instance.type,
        "config": _config(source),
    }
    return dump(document)


def render_backup(source: Source) -> bytes:
    """backup.yaml, beside each root file system."""
    return dump(_config(source))


def _config(source: Source) -> dict[str, Any]:
    instance, pool = source.instance, source.pool
    volume = {
        "config": {},
        "description": "",
        "name": instance.name,
        "type": "container",
        "used_by": [],
        "location": "none",
        "content_type": "filesystem",
        "project": instance.project,
        "created_at": timestamp(instance.created_at),
    }
    return {
        "container": _picked(instance, _INSTANCE_FIELDS),
        **({"snapshots": [_picked(s, _SNAPSHOT_FIELDS) for s in source.snapshots]} if source.snapshots else {}),
        "pool": {
            "config": pool.config,
            "description": pool.description,
            "name": pool.name,
            "driver": pool.driver,
            "used_by": [],
            "status": "Created",
            "locations": ["none"],
        },
        "profiles": [_profile(profile) for profile in source.profiles],
        "volume": volume,
        **({"volume_snapshots": [_volume_snapshot(s) for s in source.snapshots]} if source.snapshots else {}),
    }


def _profile(profile: Profile) -> dict[str, Any]:
    return {
        "config": profile.config,
        "description": profile.description,
        "devices": profile.devices,
        "name": profile.name,
        "used_by": [],
    }


def _volume_snapshot(snapshot: InstanceSnapshot) -> dict[str, Any]:
    return {
        "description": "",
        "expires_at": timestamp(snapshot.expires_at),
        "name": snapshot.name,
        "config": {},
        "content_type": "filesystem",
        "created_at": timestamp(snapshot.created_at),
    }


def _picked(value: Instance | InstanceSnapshot, names: Sequence[str]) -> dict[str, Any]:
    shown = {name: _plain(getattr(value, name)) for name in names}
    for name in ("config", "expanded_config"):
        shown[name] = portable_config(shown[name]) | {"volatile.last_state.idmap": "[]"}
    return shown


def portable_config(config: Mapping[str, str]) -> dict[str, str]:
    """A configuration without what ties it to one host."""
    return {key: value for key, value in sorted(config.items()) if not key.startswith(_TIED)}


def _plain(value: Any) -> Any:
    return timestamp(value) if isinstance(value, datetime) else value


# --- reading -----------------------------------------------------------------------------------------------------


def parse_index(text: bytes, name: str) -> BackupIndex:
    """`BadBackup` says what cannot be restored; `name` is the file's, for that."""
    index = parse(text, BackupIndex, f"index.yaml of backup {name}")
    if index.type not in ("", "container"):
        raise BadBackup(f'Failed restoring backup {name}: instances of type "{index.type}" are not supported')
    if not index.name:
        raise BadBackup(f"Invalid index.yaml of backup {name}: name is missing")
    return index


def parse_config(text: bytes, name: str) -> BackupConfig:
    """backup.yaml, of backups whose index has no `config`."""
    return parse(text, BackupConfig, f"backup.yaml of backup {name}")
