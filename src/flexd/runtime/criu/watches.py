# SPDX-License-Identifier: Apache-2.0
"""Which inodes of its root file system a container watches (inotify), and where they are. Blocking.

The kernel tells a watch's inode, and a handle that overlayfs cannot open; so what CRIU would do with every process
frozen, walk the tree, is done here while they run."""

import errno
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from flexd.host import syscalls
from flexd.host.contract import HostError

_WATCH = re.compile(r"^inotify wd:(\w+) ino:(\w+) sdev:(\w+)", re.MULTILINE)
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
    wanted = {watch.inode for watch in watches_of(init) if watch.device == device}
    found = {top.st_ino: "/."} if top.st_ino in wanted else {}
    wanted -= found.keys()
    if wanted:
        found |= _search(root, top.st_dev, wanted)
    return device, found


class Watch(Struct, frozen=True):
    """One watch of an inotify instance, which is an open file of a process."""

    pid: int
    fd: int
    number: int
    device: int
    inode: int


def watches_of(init: int) -> Iterator[Watch]:
    for pid in processes(init):
        for number, target in descriptors(pid):
            if target != "anon_inode:inotify":
                continue
            try:
                text = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
            except OSError:
                continue
            for match in _WATCH.finditer(text):
                watch, inode, device = (int(word, 16) for word in match.groups())
                yield Watch(pid, int(number), watch, device, inode)


def drop_dead(init: int, groups: Path) -> None:
    """Take away watches on files of cgroups that are gone. The kernel keeps them (systemd never asks again), and there
    is no way to make such a watch anew. `groups`: the container's own, on the v2 hierarchy."""
    try:
        place = os.stat(groups).st_dev
    except FileNotFoundError:
        return
    device = os.major(place) << 20 | os.minor(place)
    watches = [watch for watch in watches_of(init) if watch.device == device]
    alive = {inode for directory, _, _ in os.walk(groups) for _, inode, _ in _entries(directory)} if watches else set()
    for watch in watches:
        if watch.inode in alive:
            continue
        try:
            fd = syscalls.pidfd_getfd(watch.pid, watch.fd)
        except HostError:  # it ended
            continue
        try:
            syscalls.inotify_remove_watch(fd, watch.number)
        except HostError as error:
            if error.errno != errno.EINVAL:  # gone by itself
                raise
        finally:
            os.close(fd)


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
