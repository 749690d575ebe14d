# SPDX-License-Identifier: Apache-2.0
"""Names of pools and volumes: LXD's rules, names on disk, and URLs."""

import re
from urllib.parse import quote

from flexd.api.errors import BadRequest
from flexd.projects.record import DEFAULT_PROJECT, project_query
from flexd.storage.contract import VolumeKind, VolumeRecord, VolumeRef

# A pool's name is a directory, a volume's one too.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_pool_name(name: str) -> None:
    if not name:
        raise BadRequest("No name provided")
    if not _NAME.fullmatch(name):
        raise BadRequest(f'Invalid storage pool name "{name}": 1 to 63 letters, digits, dots, dashes and underscores')


def check_volume_name(name: str) -> None:
    if not name:
        raise BadRequest("No name provided")
    if "/" in name:
        raise BadRequest("Storage volume names may not contain slashes")
    if not _NAME.fullmatch(name):
        raise BadRequest(f'Invalid storage volume name "{name}": 1 to 63 letters, digits, dots, dashes and underscores')


def check_snapshot_name(name: str) -> None:
    if not name:
        raise BadRequest("No name provided")
    if not _NAME.fullmatch(name):
        raise BadRequest(f'Invalid snapshot name "{name}": 1 to 63 letters, digits, dots, dashes and underscores')


def split_snapshot(name: str) -> tuple[str, str]:
    """`c1@snap0` of a document as (volume, snapshot); a volume's own name has no snapshot: ""."""
    volume, _, snapshot = name.partition("@")
    return volume, snapshot


def api_name(record: VolumeRecord) -> str:
    """`c1`, or `c1/snap0` for a snapshot."""
    return record.name.replace("@", "/")


def storage_name(project: str, name: str, kind: VolumeKind) -> str:
    """The name on disk: prefixed outside the default project, as LXD does. A custom volume's own name may have an
    underscore; a plus is in no name, so that `a_b` of one project is not `b` of the project `a`."""
    if project == DEFAULT_PROJECT:
        return name
    return f"{project}{'+' if kind == 'custom' else '_'}{name}"


def volume_ref(record: VolumeRecord) -> VolumeRef:
    return VolumeRef(record.pool, record.kind, storage_name(record.project, record.name, record.kind))


def volume_url(record: VolumeRecord) -> str:
    """`/1.0/storage-pools/default/volumes/custom/data`."""
    volume, snapshot = split_snapshot(record.name)
    path = f"/1.0/storage-pools/{quote(record.pool)}/volumes/{record.kind}/{quote(volume)}"
    if snapshot:
        path += f"/snapshots/{quote(snapshot)}"
    return path + project_query(record.project)


def owner_url(record: VolumeRecord) -> str:
    """What `used_by` of a pool shows for a volume: the instance or image that owns it, or the volume itself."""
    if record.kind == "custom":
        return volume_url(record)
    volume, snapshot = split_snapshot(record.name)
    folder = "images" if record.kind == "image" else "instances"
    path = f"/1.0/{folder}/{quote(volume)}" + (f"/snapshots/{quote(snapshot)}" if snapshot else "")
    return path + project_query(record.project)


def pool_url(name: str) -> str:
    return f"/1.0/storage-pools/{quote(name)}"
