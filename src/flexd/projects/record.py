# SPDX-License-Identifier: Apache-2.0
"""The document of a project, its name's rules, and how URLs and names tell projects apart."""

import re
from urllib.parse import quote

from msgspec import Struct, field

from flexd.api.errors import BadRequest, NotFound

DEFAULT_PROJECT = "default"
# It becomes part of directories, of cgroups and of names in the DNS; LXD's underscore stands between it and a name.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
_REFUSED = (("/", "slashes"), (" ", "spaces"), ("_", "underscores"), ("'", "quotes"), ('"', "quotes"))


class ProjectNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Project not found")


class ProjectRecord(Struct):
    """The document `/projects/NAME`."""

    name: str
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)


def check_project_name(name: str) -> None:
    if not name:
        raise BadRequest("No name provided")
    for character, word in _REFUSED:
        if character in name:
            raise BadRequest(f"Project names may not contain {word}")
    if name == "*":
        raise BadRequest("Reserved project name")
    if not _NAME.fullmatch(name):
        raise BadRequest(
            f'Invalid project name "{name}": 1 to 63 letters, digits, dots and dashes, '
            "of which the first and the last one are letters or digits"
        )


def project_url(name: str) -> str:
    return f"/1.0/projects/{quote(name, safe='')}"


def project_query(project: str) -> str:
    """What a URL of an object outside the default project ends with."""
    return "" if project == DEFAULT_PROJECT else f"?project={quote(project, safe='')}"
