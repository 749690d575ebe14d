# SPDX-License-Identifier: Apache-2.0
"""What a custom volume may be: its keys, its content types, and the checks of requests; pure.

A block volume is a file `root.img` of its size in an otherwise plain volume, an ISO image a file `root.iso`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from flexd.api.errors import BadRequest, Fault, NotSupported, raise_faults
from flexd.api.keys import Key, check_config
from flexd.api.storage_volume import StorageVolumePost, StorageVolumesPost
from flexd.api.units import parse_size
from flexd.operations.schedule import expiry_fault, pattern_fault, schedule_fault
from flexd.storage import drivers
from flexd.storage.contract import VolumeKind, VolumeRecord
from flexd.storage.names import check_snapshot_name, check_volume_name

FILESYSTEM, BLOCK, ISO = "filesystem", "block", "iso"
# LXD's size of a block volume that is made without one.
DEFAULT_BLOCK_SIZE = "10GiB"
FILES = {BLOCK: "root.img", ISO: "root.iso"}

VOLUME_KEYS = (
    Key(
        "security.shifted",
        kind="bool",
        description="Whether instances with different id maps may share the volume; these drivers always allow it",
    ),
    Key("snapshots.expiry", check=expiry_fault, description="How long snapshots live (`1d 2H`)"),
    Key("snapshots.pattern", default="snap%d", check=pattern_fault, description="Names of snapshots"),
    Key("snapshots.schedule", check=schedule_fault, description="Cron expression, or @hourly, @daily, …"),
    Key("user.*", description="Free-form"),
)


def volume_keys(driver: str) -> tuple[Key, ...]:
    """Rows of a custom volume's configuration."""
    return (*drivers.load(driver).VOLUME_KEYS, *VOLUME_KEYS)


def config_faults(driver: str, config: Mapping[str, str], content_type: str, old: VolumeRecord | None) -> list[Fault]:
    """`old`: the volume as it is, if it is there."""
    faults = check_config(config, volume_keys(driver))
    size = config.get("size", "")
    if content_type == ISO and size:
        faults.append(Fault("config.size", "an ISO volume has the size of its image"))
    shrinks = not faults and old is not None and parse_size(size) < parse_size(old.config.get("size", ""))
    if content_type == BLOCK and shrinks:
        faults.append(Fault("config.size", "Block volumes cannot be shrunk"))
    return faults


def is_content_type(text: str) -> bool:
    return text in (FILESYSTEM, BLOCK, ISO)


def file_of(volume: Path, content_type: str) -> Path | None:
    """The file that a volume consists of; None for a file system."""
    name = FILES.get(content_type)
    return None if name is None else volume / name


def check_kind(kind: str) -> VolumeKind:
    for known in get_args(VolumeKind):
        if kind == known:
            found: VolumeKind = known
            return found
    raise BadRequest(f'Invalid storage volume type "{kind}"')


def check_post(post: StorageVolumesPost) -> None:
    """A new volume, empty or a copy."""
    check_volume_name(post.name)
    if post.type != "custom":
        raise BadRequest(f"Currently not allowed to create storage volumes of type {post.type or 'none'}")
    if post.content_type not in ("", FILESYSTEM, BLOCK):
        raise BadRequest(
            f'Failed creating storage volume "{post.name}": content type "{post.content_type}" cannot be made empty '
            f'(expected "{FILESYSTEM}" or "{BLOCK}"; an "{ISO}" volume is imported)'
        )
    if post.source.type not in ("", "none", "copy"):
        raise NotSupported(
            f'Failed creating storage volume "{post.name}": a source of type "{post.source.type}" is not supported'
        )
    if post.source.type == "copy":
        _check_source(post)


def _check_source(post: StorageVolumesPost) -> None:
    volume, _, snapshot = post.source.name.partition("/")
    if not volume:
        raise BadRequest("No source volume name provided")
    check_volume_name(volume)
    if snapshot:
        check_snapshot_name(snapshot)


def check_move(post: StorageVolumePost) -> None:
    check_volume_name(post.name)


def without_empty(config: Mapping[str, str]) -> dict[str, str]:
    """An empty value unsets a key."""
    return {key: value for key, value in config.items() if value}


def check_config_of(driver: str, record: VolumeRecord, old: VolumeRecord | None = None) -> None:
    raise_faults(config_faults(driver, record.config, record.content_type, old))
