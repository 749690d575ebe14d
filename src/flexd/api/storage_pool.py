# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: storage pool."""

from msgspec import Struct, field


class StoragePool(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    driver: str = ""
    locations: list[str] = field(default_factory=list)
    name: str = ""
    status: str = ""
    used_by: list[str] = field(default_factory=list)


class StoragePoolPut(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""


class StoragePoolsPost(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    driver: str = ""
    name: str = ""
