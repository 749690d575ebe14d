# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: storage volume backup."""

from datetime import datetime

from msgspec import Struct

from flexd.api.times import ZERO_TIME


class StoragePoolVolumeBackup(Struct):
    created_at: datetime = ZERO_TIME
    expires_at: datetime = ZERO_TIME
    name: str = ""
    optimized_storage: bool = False
    volume_only: bool = False


class StoragePoolVolumeBackupPost(Struct):
    name: str = ""


class StoragePoolVolumeBackupsPost(Struct):
    compression_algorithm: str = ""
    expires_at: datetime | None = None
    name: str = ""
    optimized_storage: bool = False
    volume_only: bool = False
