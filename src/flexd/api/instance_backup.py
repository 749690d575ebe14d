# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: instance backup."""

from datetime import datetime

from msgspec import Struct

from flexd.api.times import ZERO_TIME


class InstanceBackup(Struct):
    container_only: bool = False
    created_at: datetime = ZERO_TIME
    expires_at: datetime = ZERO_TIME
    instance_only: bool = False
    name: str = ""
    optimized_storage: bool = False


class InstanceBackupPost(Struct):
    name: str = ""


class InstanceBackupsPost(Struct):
    compression_algorithm: str = ""
    container_only: bool = False
    expires_at: datetime | None = None
    instance_only: bool = False
    name: str = ""
    optimized_storage: bool = False
