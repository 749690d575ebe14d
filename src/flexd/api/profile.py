# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: profile."""

from msgspec import Struct, field


class Profile(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    name: str = ""
    project: str = ""
    used_by: list[str] = field(default_factory=list)


class ProfilePost(Struct):
    name: str = ""


class ProfilePut(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    devices: dict[str, dict[str, str]] = field(default_factory=dict)


class ProfilesPost(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    name: str = ""
