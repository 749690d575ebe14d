# SPDX-License-Identifier: Apache-2.0
"""Rules for the names of instances and profiles, and made-up names."""

import re
from collections.abc import Container

import petname

from flexd.api.errors import BadRequest

# RFC 1123 host names; 63 bytes is also what a DNS label and `lxc.uts.name` take.
_INSTANCE = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def check_instance_name(name: str) -> None:
    """LXD's rule for instance names, which become host names."""
    if not _INSTANCE.fullmatch(name):
        raise BadRequest(
            f'Invalid instance name "{name}": 1 to 63 letters, digits and dashes, '
            "starting with a letter and not ending with a dash"
        )


def check_snapshot_name(name: str) -> None:
    """A snapshot's name becomes a path and follows a slash in the API."""
    if not name or len(name) > 64 or "/" in name or name in (".", "..") or not name.isprintable() or " " in name:
        raise BadRequest(f'Invalid snapshot name "{name}": 1 to 64 printable characters without slash and space')


def check_profile_name(name: str) -> None:
    if not name or len(name) > 64 or "/" in name or name in (".", "..") or not name.isprintable():
        raise BadRequest(f'Invalid profile name "{name}": 1 to 64 printable characters without a slash')


def make_name(taken: Container[str]) -> str:
    """A free, pronounceable name (`right-owl`), as LXD gives where the client names none."""
    while True:
        name: str = petname.generate(2, "-")
        if name not in taken:
            return name
