# SPDX-License-Identifier: Apache-2.0
"""The projects there are: one, `default`, which owns everything."""

from flexd.api.project import Project

DEFAULT_PROJECT = "default"
PROJECTS = (DEFAULT_PROJECT,)

# LXD's default project has every feature; they cannot be switched off.
_FEATURES = ("features.images", "features.networks", "features.profiles", "features.storage.volumes")


def show_project(name: str, used_by: list[str]) -> Project:
    config = dict.fromkeys(_FEATURES, "true")
    return Project(config=config, description="Default project", name=name, used_by=used_by)


def project_query(project: str) -> str:
    """What a URL of an object outside the default project ends with."""
    return "" if project == DEFAULT_PROJECT else f"?project={project}"
