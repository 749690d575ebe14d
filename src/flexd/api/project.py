# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: project."""

from msgspec import Struct, field


class Project(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    name: str = ""
    used_by: list[str] = field(default_factory=list)


class ProjectPost(Struct):
    name: str = ""


class ProjectPut(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""


class ProjectStateResource(Struct):
    Limit: int = 0
    Usage: int = 0


class ProjectState(Struct):
    resources: dict[str, ProjectStateResource] = field(default_factory=dict)


class ProjectsPost(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    name: str = ""
