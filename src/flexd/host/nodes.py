# SPDX-License-Identifier: Apache-2.0
"""Device nodes: read, made, found by the hardware behind them, and watched as hardware comes and goes.

Kernel uevents (kobject_uevent, netlink group 1) tell of hardware, inotify(7) of nodes that somebody makes by hand."""

import asyncio
import contextlib
import os
import select
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

from flexd.host import mountinfo, syscalls
from flexd.host.contract import HostError, Node
from flexd.host.threads import Threads

_SYSFS = Path("/sys")
_DEV = Path("/dev")
_MOUNTINFO = Path("/proc/self/mountinfo")
# linux/netlink.h NETLINK_KOBJECT_UEVENT; group 1 is the kernel's own voice, group 2 udev's.
_KOBJECT_UEVENT, _KERNEL_GROUP = 15, 1
_READ_BYTES = 65536


class LinuxNodes:
    def __init__(self, threads: Threads, sysfs: Path = _SYSFS) -> None:
        self._threads = threads
        self._sysfs = sysfs

    async def read(self, path: Path) -> Node | None:
        return await self._threads.run(read_node, path)

    async def make(self, path: Path, node: Node, *, mode: int, uid: int, gid: int) -> None:
        await self._threads.run(_make, path, node, mode, uid, gid)

    async def disk_of(self, path: Path) -> str | None:
        return await self._threads.run(_disk_of, self._sysfs, path)

    async def of_usb(self, vendor: str, product: str) -> dict[str, Node]:
        return await self._threads.run(_of_usb, self._sysfs, vendor, product)

    async def has_class(self, name: str) -> bool:
        return await self._threads.run((self._sysfs / "class" / name).is_dir)

    def watch(self) -> "Watch":
        return Watch()


class Watch:
    """Both sources behind one wait."""

    def __init__(self) -> None:
        self._uevents = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _KOBJECT_UEVENT
        )
        self._uevents.bind((0, _KERNEL_GROUP))
        self._inotify = syscalls.inotify_init()
        self._watched: dict[Path, int] = {}
        self._changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        for fd in (self._uevents.fileno(), self._inotify):
            loop.add_reader(fd, self._drain, fd)

    def _drain(self, fd: int) -> None:
        """What changed is looked up by whoever waits; only that something did is kept."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while poll.poll(0):
            with contextlib.suppress(OSError):  # ENOBUFS: some were lost, which is as good as one more
                os.read(fd, _READ_BYTES)
        self._changed.set()

    def set_directories(self, directories: Iterable[Path]) -> None:
        wanted = set(directories)
        for path in [path for path in self._watched if path not in wanted]:
            syscalls.inotify_remove(self._inotify, self._watched.pop(path))
        for path in wanted - self._watched.keys():
            with contextlib.suppress(HostError):  # not there: its nodes are neither
                self._watched[path] = syscalls.inotify_add(self._inotify, path)

    async def wait(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for fd in (self._uevents.fileno(), self._inotify):
            loop.remove_reader(fd)
        self._uevents.close()
        os.close(self._inotify)


def read_node(path: Path) -> Node | None:
    """Blocking."""
    try:
        found = path.stat()
    except OSError:
        return None
    kind = "c" if stat.S_ISCHR(found.st_mode) else "b" if stat.S_ISBLK(found.st_mode) else ""
    return Node(kind, os.major(found.st_rdev), os.minor(found.st_rdev)) if kind else None


def _make(path: Path, node: Node, mode: int, uid: int, gid: int) -> None:
    with syscalls.naming(f"make device node {path}", "mknod"):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        path.unlink(missing_ok=True)
        kind = stat.S_IFCHR if node.kind == "c" else stat.S_IFBLK
        os.mknod(path, 0o000 | kind, os.makedev(node.major, node.minor))
        os.chown(path, uid, gid)
        os.chmod(path, mode)


def _disk_of(sysfs: Path, path: Path) -> str | None:
    try:
        resolved = path.resolve(strict=True)
        found = resolved.stat()
    except OSError as error:
        raise syscalls.failure(f"find the disk of {path}", "stat", error.errno or 0) from error
    number = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
    if os.major(number) == 0:
        # btrfs, overlay and the like have numbers of their own; what they are mounted from tells.
        mount = mountinfo.holding(mountinfo.parse(_MOUNTINFO.read_bytes()), resolved)
        source = read_node(Path(mount.source)) if mount is not None and mount.source.startswith("/") else None
        if source is None or source.kind != "b":
            return None
        number = os.makedev(source.major, source.minor)
    return _whole_disk(sysfs, os.major(number), os.minor(number))


def _whole_disk(sysfs: Path, major: int, minor: int) -> str:
    """Limits are per disk: a partition is its disk's."""
    place = sysfs / f"dev/block/{major}:{minor}"
    if (place / "partition").exists():
        return (place.resolve().parent / "dev").read_text().strip()
    return f"{major}:{minor}"


def _of_usb(sysfs: Path, vendor: str, product: str) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for kind, folder in (("c", "char"), ("b", "block")):
        for link in (sysfs / "dev" / folder).glob("*:*"):
            name = _devname(link)
            if name and _is_of_usb(link.resolve(), sysfs, vendor, product):
                major, _, minor = link.name.partition(":")
                found[str(_DEV / name)] = Node(kind, int(major), int(minor))
    return found


def _devname(device: Path) -> str:
    for line in _text(device / "uevent").splitlines():
        if line.startswith("DEVNAME="):
            return line.removeprefix("DEVNAME=")
    return ""


def _is_of_usb(device: Path, sysfs: Path, vendor: str, product: str) -> bool:
    for place in (device, *device.parents):
        if place == sysfs:
            return False
        found = _text(place / "idVendor").strip()
        if found:
            return vendor in ("", found) and product in ("", _text(place / "idProduct").strip())
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
