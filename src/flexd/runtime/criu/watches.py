# SPDX-License-Identifier: Apache-2.0
"""Which inodes of its root file system a container watches (inotify), and where they are. Blocking.

The kernel tells a watch's inode, and a handle that overlayfs cannot open; so what CRIU would do with every process
frozen, walk the tree, is done here while they run."""

import os
import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

_WATCH = re.compile(r"^inotify wd:\w+ ino:(\w+) sdev:(\w+)", re.MULTILINE)
# Where daemons watch; a whole system is walked only for what is not found there.
_LIKELY = ("etc", "usr/share/dbus-1", "usr/lib", "var", "root", "home")
# Other file systems; their own entries have other devices, so walking them finds nothing.
_ELSEWHERE = frozenset({"proc", "sys", "dev", "run"})
_LONGEST_S = 60.0


def processes(init: int) -> list[int]:
    """Init and all below it."""
    found = [init]
    for pid in found:
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                found += [int(word) for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
        except OSError:  # ended meanwhile
            continue
    return found


def descriptors(pid: int) -> Iterator[tuple[str, str]]:
    """(number, what it is) of the open files of a process."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for number in numbers:
        try:
            yield number, os.readlink(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue


def watched_paths(init: int) -> tuple[int, dict[int, str]]:
    """The root's device as CRIU writes it, and the path of each watched inode on it (as the container's root sees it);
    what cannot be found is left out."""
    root = f"/proc/{init}/root/"
    top = os.stat(root)
    device = os.major(top.st_dev) << 20 | os.minor(top.st_dev)
    wanted = {inode for each, inode in _watched(init) if each == device}
    found = {top.st_ino: "/."} if top.st_ino in wanted else {}
    wanted -= found.keys()
    if wanted:
        found |= _search(root, top.st_dev, wanted)
    return device, found


def _watched(init: int) -> set[tuple[int, int]]:
    found = set()
    for pid in processes(init):
        for number, target in descriptors(pid):
            if target != "anon_inode:inotify":
                continue
            try:
                text = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
            except OSError:
                continue
            found |= {(int(match[2], 16), int(match[1], 16)) for match in _WATCH.finditer(text)}
    return found


def _search(root: str, device: int, wanted: set[int]) -> dict[int, str]:
    """Breadth first. Links are not followed, so nobody inside can lead the search out of the root."""
    found: dict[int, str] = {}
    queue, seen = deque([*_LIKELY, ""]), set[str]()
    deadline = time.monotonic() + _LONGEST_S
    while queue and wanted and time.monotonic() < deadline:
        directory = queue.popleft()
        if directory in seen:
            continue
        seen.add(directory)
        for name, inode, is_directory in _entries(root + directory):
            path = f"{directory}/{name}" if directory else name
            if inode in wanted and _device(root + path) == device:
                found[inode] = f"/{path}"
                wanted = wanted - {inode}
            if is_directory and path not in _ELSEWHERE:
                queue.append(path)
    return found


def _entries(directory: str) -> Iterator[tuple[str, int, bool]]:
    try:
        # O_NOFOLLOW: what was a directory a moment ago may be a link by now.
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                yield entry.name, entry.inode(), entry.is_dir(follow_symlinks=False)
    finally:
        os.close(fd)


def _device(path: str) -> int:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return -1
