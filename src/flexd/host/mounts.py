# SPDX-License-Identifier: Apache-2.0
"""Mounts: plain, bound, with shifted ids, and overlays."""

import errno
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from flexd.api.idmap import IdMap
from flexd.host import mountinfo, syscalls
from flexd.host.contract import HostError, Layer, MountInfo, Processes
from flexd.host.threads import Threads

_MOUNTINFO = Path("/proc/self/mountinfo")
_RUN = Path("/run")
_LOWER_PREFIX = "flexd-lower-"
# Each is one open fd; maps are as many as there are isolated containers being started, mostly one.
_CACHED_NAMESPACES = 64

# What overlayfs is asked for, whatever the kernel's configuration has as default:
_OVERLAY_OPTIONS = {
    # index=on ties an upper layer to the inode of its lower one and refuses to mount (ESTALE) after a pool was moved or
    # restored from a backup; it is for NFS export and hard links across copy-up, which we can do without.
    "index": "off",
    # metacopy=on leaves files without data in the upper layer: a volume would no longer be whole by itself plus its
    # image for whoever copies the upper directory. Ids are shifted by the mount, so there is no chown -R to save.
    "metacopy": "off",
    # Without redirects rename(2) of a directory from the image fails with EXDEV, which a virtual machine never does.
    # Their xattr is in trusted.*, out of reach of a container, and overlayfs refuses it through the mount.
    "redirect_dir": "on",
    # One st_dev for the whole tree (find -xdev, du -x, tar --one-file-system) where inode numbers leave room for it.
    "xino": "auto",
}
# Errors by which a kernel says that it does not take layers as fds (before 6.13), fds of mounts, which are O_PATH
# (EBADF, seen on 6.12), or detached ones (before 6.15).
_NO_LAYER_FDS = frozenset({errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
# Characters that separate or quote in the option string of overlayfs.
_OVERLAY_SPECIAL = frozenset(",:\\")
_PLAIN_PATH_BYTES = 900


class UserNamespaces:
    """User namespaces by the map they have, kept as fds for the mounts to come. Used from many threads."""

    def __init__(self, limit: int = _CACHED_NAMESPACES) -> None:
        self._limit = limit
        self._fds: OrderedDict[IdMap, int] = OrderedDict()
        self._lock = threading.Lock()

    def borrow(self, idmap: IdMap) -> int:
        """An fd of the caller's own (the cached one may be dropped meanwhile)."""
        with self._lock:
            fd = self._fds.get(idmap)
            if fd is None:
                fd = syscalls.user_namespace(idmap.proc_lines(users=True), idmap.proc_lines(users=False))
                self._fds[idmap] = fd
                if len(self._fds) > self._limit:
                    os.close(self._fds.popitem(last=False)[1])
            self._fds.move_to_end(idmap)
            return os.dup(fd)

    def close(self) -> None:
        with self._lock:
            while self._fds:
                os.close(self._fds.popitem()[1])


class LinuxMounts:
    def __init__(self, threads: Threads, processes: Processes) -> None:
        self._threads = threads
        self._processes = processes
        self._namespaces = UserNamespaces()
        self.layers_as_fds: bool | None = None  # not known before the first overlay
        self._swept = False

    async def mount(self, source: str, target: Path, fstype: str, options: str = "") -> None:
        if await self._threads.run(_needs_program, source, fstype, options):
            arguments = ["-t", fstype] if fstype else []
            arguments += ["-o", options] if options else []
            await self._processes.run(["mount", *arguments, "--", source, str(target)])
            return
        flags, data = mountinfo.parse_options(options)
        await self._threads.run(syscalls.mount, source, target, fstype, flags, data)

    async def mount_file(self, file: Path, target: Path, fstype: str, options: str = "") -> None:
        device = await self._loop_device(file)
        try:
            await self.mount(device, target, fstype, options)
        finally:
            # Used by the mount, it stays until that goes (losetup(8), --detach); unused, it goes now.
            await self._processes.run(["losetup", "--detach", device])

    async def _loop_device(self, file: Path) -> str:
        # A daemon that died before the mount has left one, and one file behind two devices is two caches of it.
        known = await self._processes.run(["losetup", "--associated", str(file), "--output", "NAME", "--noheadings"])
        if known.stdout.split():
            return known.stdout.split()[0].decode()
        done = await self._processes.run(["losetup", "--find", "--show", "--", str(file)])
        device = done.stdout.decode().strip()
        # Else everything is cached twice. Not every file system has it (direct I/O), which then only costs memory.
        await self._processes.run(["losetup", "--direct-io=on", device], check=False)
        return device

    async def bind(self, source: Path, target: Path, *, recursive: bool = False, readonly: bool = False) -> None:
        await self._threads.run(self._bind, source, target, None, recursive, readonly)

    async def idmapped_bind(
        self, source: Path, target: Path, idmap: IdMap, *, recursive: bool = False, readonly: bool = False
    ) -> None:
        await self._threads.run(self._bind, source, target, idmap, recursive, readonly)

    @asynccontextmanager
    async def beneath(self, parent: Path, path: Path) -> AsyncIterator[Path]:
        fd = await self._threads.open(_open_beneath, parent, path)
        try:
            # Of this process by its number: programs that are given it are others.
            yield Path(f"/proc/{os.getpid()}/fd/{fd}")
        finally:
            os.close(fd)

    async def overlay(
        self, target: Path, *, lower: Path, upper: Path, work: Path, lower_idmap: IdMap | None = None
    ) -> None:
        await self.overlay_layers(target, [Layer(lower, lower_idmap)], upper=upper, work=work)

    async def overlay_layers(
        self, target: Path, layers: Sequence[Layer], *, upper: Path | None = None, work: Path | None = None
    ) -> None:
        places = {key: path for key, path in (("upperdir", upper), ("workdir", work)) if path is not None}
        await self._threads.run(self._overlay, target, layers, places)

    async def unmount(self, target: Path, *, detach: bool = False) -> None:
        await self._threads.run(_unmount, target, detach)

    async def mounted(self, target: Path) -> bool:
        return await self._threads.run(lambda: mountinfo.is_target(_MOUNTINFO.read_bytes(), os.path.realpath(target)))

    async def below(self, path: Path) -> list[MountInfo]:
        return await self._threads.run(lambda: mounts_below(os.path.realpath(path)))

    def close(self) -> None:
        self._namespaces.close()

    def _bind(self, source: Path, target: Path, idmap: IdMap | None, recursive: bool, readonly: bool) -> None:
        with self._clone(source, idmap, recursive=recursive, readonly=readonly) as clone:
            syscalls.move_mount(clone, target)

    @contextmanager
    def _clone(self, source: Path, idmap: IdMap | None, *, recursive: bool, readonly: bool) -> Iterator[int]:
        """A detached copy of a mount; it goes with the end of the block unless it was attached."""
        clone = syscalls.open_tree(source, recursive=recursive)
        try:
            flags = syscalls.MOUNT_ATTR_RDONLY if readonly else 0
            if idmap:
                namespace = self._namespaces.borrow(idmap)
                try:
                    flags |= syscalls.MOUNT_ATTR_IDMAP
                    syscalls.mount_setattr(clone, source, set_flags=flags, userns_fd=namespace, recursive=recursive)
                finally:
                    os.close(namespace)
            elif flags:
                syscalls.mount_setattr(clone, source, set_flags=flags, recursive=recursive)
            yield clone
        finally:
            os.close(clone)

    # --- overlay -------------------------------------------------------------------------------------------------

    def _overlay(self, target: Path, layers: Sequence[Layer], places: dict[str, Path]) -> None:
        """`places`: upperdir and workdir, or nothing for a read-only overlay."""
        if self.layers_as_fds is not False:
            try:
                self._overlay_by_fds(target, layers, places)
            except HostError as error:
                if self.layers_as_fds or error.errno not in _NO_LAYER_FDS:
                    raise
            else:
                self.layers_as_fds = True
                return
        self._overlay_by_paths(target, layers, places)
        self.layers_as_fds = False

    def _overlay_by_fds(self, target: Path, layers: Sequence[Layer], places: dict[str, Path]) -> None:
        """Linux 6.15: layers of any name, and the lower mounts need not be attached anywhere."""
        what = _describe(target, layers, places)
        with ExitStack() as stack:
            clones = [
                stack.enter_context(self._clone(layer.path, layer.idmap, recursive=False, readonly=True))
                for layer in layers
            ]
            context = stack.enter_context(_closing(syscalls.fsopen("overlay")))
            for clone in clones:
                syscalls.fsconfig_fd(context, what, "lowerdir+", clone)
            for key, path in places.items():
                fd = stack.enter_context(_opened(path))
                syscalls.fsconfig_fd(context, what, key, fd)
            for key, value in {"source": "flexd", **_OVERLAY_OPTIONS}.items():
                syscalls.fsconfig_string(context, what, key, value)
            overlay = stack.enter_context(_closing(syscalls.fsmount(context, what)))
            syscalls.move_mount(overlay, target)

    def _overlay_by_paths(self, target: Path, layers: Sequence[Layer], places: dict[str, Path]) -> None:
        """Before: overlayfs looks layers up by path, and the lower mounts must be in our mount namespace meanwhile."""
        with ExitStack() as stack:
            # Several are attached even without a map: their short names fit into the one page that options have.
            lowers = [
                stack.enter_context(self._attached(layer.path, layer.idmap))
                if layer.idmap or len(layers) > 1
                else layer.path
                for layer in layers
            ]
            names = {key: stack.enter_context(_plain_name(path)) for key, path in places.items()}
            names["lowerdir"] = ":".join(stack.enter_context(_plain_name(path)) for path in lowers)
            data = ",".join(f"{key}={value}" for key, value in (names | _OVERLAY_OPTIONS).items())
            syscalls.mount("flexd", target, "overlay", 0, data)

    @contextmanager
    def _attached(self, source: Path, idmap: IdMap | None) -> Iterator[Path]:
        if not self._swept:
            _sweep_attached()
            self._swept = True
        place = Path(tempfile.mkdtemp(prefix=f"{_LOWER_PREFIX}{os.getpid()}-", dir=_RUN))
        try:
            with self._clone(source, idmap, recursive=False, readonly=True) as clone:
                syscalls.move_mount(clone, place)
            try:
                yield place
            finally:
                syscalls.unmount(place, syscalls.MNT_DETACH)
        finally:
            place.rmdir()


def _describe(target: Path, layers: Sequence[Layer], places: dict[str, Path]) -> str:
    lower = ", ".join(str(layer.path) for layer in layers)
    return f"overlay {places['upperdir']} on {lower} at {target}" if places else f"overlay {lower} at {target}"


def mounts_below(place: str) -> list[MountInfo]:
    """At a path without links, or below it. Blocking."""
    return mountinfo.at_or_below(_MOUNTINFO.read_bytes(), place)


def _unmount(target: Path, detach: bool) -> None:
    try:
        syscalls.unmount(target, syscalls.MNT_DETACH if detach else 0)
    except HostError as error:
        # EINVAL: not a mount point (umount2(2)).
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def _needs_program(source: str, fstype: str, options: str) -> bool:
    """Whether mount(8) must do it: loop devices, labels, and file systems with a helper of their own. Blocking."""
    if source.startswith(("UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=")) or not fstype:
        return True
    if any(option == "loop" or option.startswith("loop=") for option in options.split(",")):
        return True
    return shutil.which(f"mount.{fstype}", path="/sbin:/usr/sbin") is not None


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    with syscalls.naming(f"open {path}", "open"):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    with _closing(fd):
        yield fd


def _open_beneath(parent: Path, path: Path) -> int:
    with _opened(parent) as directory:
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
        inside = os.path.relpath(os.path.normpath(path), os.path.normpath(parent))
        return syscalls.openat2(directory, inside, os.O_PATH, resolve=resolve)


@contextmanager
def _plain_name(path: Path) -> Iterator[str]:
    """A name that needs no quoting in options: the path, or a link to it in /proc where it has commas or is long."""
    text = str(path)
    if len(os.fsencode(text)) < _PLAIN_PATH_BYTES and not _OVERLAY_SPECIAL & set(text):
        yield text
        return
    with _opened(path) as fd:
        yield f"/proc/self/fd/{fd}"


def _sweep_attached() -> None:
    """Remove lower mounts of daemons that were killed in the instant between attaching and detaching them."""
    for place in left_behind(_RUN, _LOWER_PREFIX):
        _unmount(place, detach=True)
        place.rmdir()


def left_behind(parent: Path, prefix: str) -> list[Path]:
    """Directories `<prefix><pid>-…` of processes that are gone. Blocking."""
    places = parent.glob(f"{prefix}*")
    return [place for place in places if not Path("/proc", place.name.removeprefix(prefix).split("-")[0]).exists()]
