# SPDX-License-Identifier: Apache-2.0
"""Which storage volume a path is about, and whose it is."""

from flexd.projects.record import DEFAULT_PROJECT
from flexd.server.call import Call


def volume_project(call: Call, kind: str) -> str:
    """Custom volumes may be another project's (`features.storage.volumes`), those of images are nobody's own."""
    if kind == "custom":
        return call.owner("storage.volumes")
    return DEFAULT_PROJECT if kind == "image" else call.project


def volume_where(call: Call) -> tuple[str, str, str, str]:
    """Pool, type, project and name."""
    kind = call.param("type")
    return call.param("pool"), kind, volume_project(call, kind), call.param("name")
