# SPDX-License-Identifier: Apache-2.0
"""Joins two layers of an overlay: what only the lower one has goes into the upper one. Blocking; nobody uses either.

What the two show together is the same before and after every step, so that whoever is interrupted can leave it at
that, or go on later. In Documentation/filesystems/overlayfs.rst: whiteouts, opaque directories, redirect_dir.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_OPAQUE, _REDIRECT = "trusted.overlay.opaque", "trusted.overlay.redirect"


class Tangled(Exception):
    """A directory that was renamed keeps these two apart; the message is for the log."""


def join(upper: Path, lower: Path) -> None:
    """Afterwards `upper` can lie on what `lower` lies on. `Tangled`: it cannot, and nothing was changed."""
    _check(upper, lower)
    _pull_up(upper, lower)


def _check(upper: Path, lower: Path) -> None:
    """A directory that was renamed in the upper layer shows what is at its old path below: nothing of that may be in
    the lower layer. One that was renamed in the lower layer goes up as a whole, not in parts."""
    for path, target in _redirects(upper):
        if not _is_absent(lower, target):
            raise Tangled(f"{path} shows what is at {target} in {lower}")
    for path, _ in _redirects(lower):
        if os.path.lexists(upper / path):
            raise Tangled(f"{path} in {lower} was renamed, and written to above that")


def _redirects(layer: Path) -> Iterator[tuple[str, str]]:
    """(a directory's path in the layer, the path that it shows in those below)."""
    for place, names, _ in os.walk(layer):
        for name in names:
            redirect = _attribute(Path(place) / name, _REDIRECT)
            if redirect:
                folder = os.path.relpath(place, layer)
                target = redirect if redirect.startswith("/") else os.path.normpath(f"/{folder}/{redirect}")
                yield os.path.normpath(f"{folder}/{name}"), target


def _is_absent(layer: Path, target: str) -> bool:
    """Whether a lookup of the path in this layer goes on in the next one."""
    place = layer
    for name in target.strip("/").split("/"):
        place = place / name
        if not os.path.lexists(place):
            return True
        if not _is_directory(place) or _is_opaque(place) or _attribute(place, _REDIRECT):
            return False
    return False


def _pull_up(upper: Path, lower: Path) -> None:
    """Of two directories that are shown as one."""
    for name in os.listdir(lower):
        if not os.path.lexists(upper / name):
            (lower / name).rename(upper / name)
        elif _are_merged(upper / name, lower / name):
            _pull_up(upper / name, lower / name)
    if _is_opaque(lower):
        os.setxattr(upper, _OPAQUE, b"y")


def _are_merged(upper: Path, lower: Path) -> bool:
    """Else the lower one is hidden, and stays where it is."""
    if not _is_directory(upper) or not _is_directory(lower):
        return False
    return not _is_opaque(upper) and not _attribute(upper, _REDIRECT)


def _is_directory(path: Path) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


def _is_opaque(path: Path) -> bool:
    return _attribute(path, _OPAQUE) == "y"


def _attribute(path: Path, name: str) -> str:
    try:
        return os.fsdecode(os.getxattr(path, name, follow_symlinks=False))
    except OSError:  # ENODATA above all
        return ""
