# SPDX-License-Identifier: Apache-2.0
"""What a container sees of the host: bind mounts and its console. CRIU is told each of them by name on both sides, so
images from elsewhere cannot name a path of this host: a name that is not ours has nothing behind it."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from msgspec import Struct

from flexd.runtime.contract import MountSpec

# What liblxc binds from the host's /dev by itself (`lxc.autodev`).
_NODES = ("full", "null", "random", "tty", "urandom", "zero")
CONSOLE = "dev/console"


class Bind(Struct, frozen=True):
    """`target` is relative to the container's root."""

    source: str
    target: str
    recursive: bool = False


def binds_of(config: str, plugged: Iterable[MountSpec] = ()) -> list[Bind]:
    """Of a configuration of liblxc (its `lxc.mount.entry` lines), and of what was mounted later."""
    found = [Bind(f"/dev/{node}", f"dev/{node}") for node in _NODES]
    for line in config.splitlines():
        key, _, value = line.partition(" = ")
        words = value.split()
        if key == "lxc.mount.entry" and len(words) >= 4:
            options = words[3].split(",")
            if "bind" in options or "rbind" in options:
                found.append(Bind(unescape(words[0]), unescape(words[1]), "rbind" in options))
    for mount in plugged:
        found.append(Bind(mount.source, mount.target, "rbind" in mount.options))
    return found


def unescape(word: str) -> str:
    """fstab(5): octal for white space."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        word = word.replace(code, character)
    return word


def mounted_from_outside(mountinfo: str, binds: Iterable[Bind]) -> list[str]:
    """Mount points (without the first slash) of a container that are binds of the host, or lie below such."""
    exact = {bind.target for bind in binds}
    trees = tuple(f"{bind.target}/" for bind in binds if bind.recursive)
    points = [unescape(line.split()[4]).lstrip("/") for line in mountinfo.splitlines() if len(line.split()) > 4]
    return [point for point in dict.fromkeys(points) if point in exact or (trees and point.startswith(trees))]


def sources(mounts: Iterable[str], binds: Iterable[Bind]) -> tuple[dict[str, str], list[str]]:
    """Where what a dump had from outside is on this host, and what is not. Only below what our own configuration
    binds; `mounts` may come from a stream and is not believed."""
    known = list(binds)
    found: dict[str, str] = {}
    missing = []
    for point in mounts:
        source = _source(point, known)
        if source and os.path.exists(source):
            found[point] = source
        else:
            missing.append(f"/{point}")
    return found, missing


def _source(point: str, binds: Iterable[Bind]) -> str:
    if ".." in PurePosixPath(point).parts:
        return ""
    for bind in binds:
        if point == bind.target:
            return bind.source
        if bind.recursive and point.startswith(f"{bind.target}/"):
            return f"{bind.source}/{point[len(bind.target) + 1 :]}"
    return ""


def console_of(init: int) -> str:
    """The terminal on a container's /dev/console as CRIU names it; "" if it has none."""
    try:
        node = os.stat(f"/proc/{init}/root/{CONSOLE}")
    except OSError:
        return ""
    return f"tty[{node.st_rdev:x}:{node.st_dev:x}]" if node.st_rdev else ""


def read_mountinfo(init: int) -> str:
    return Path(f"/proc/{init}/mountinfo").read_text(errors="replace")
