# SPDX-License-Identifier: Apache-2.0
"""Files of one container, served over a connection by a fork of the helper that has entered it.

Paths are the container's; being its root with its ids, plain system calls do the right thing."""

import errno
import os
import select
import socket
import stat
from collections.abc import Callable

from flexd.runtime.helper import enter, wire


def serve(connection: socket.socket) -> None:
    """Enter, answer {"pid": N}, then one answer for each request until the daemon closes the connection."""
    _enter(wire.receive(connection))
    wire.send(connection, {"pid": os.getpid()})
    while True:
        request = wire.receive(connection)
        try:
            answer, fds = OPERATIONS[request["do"]](request)
        except OSError as error:
            answer, fds = {"error": error.strerror or str(error), "errno": error.errno or 0}, ()
        wire.send(connection, answer, fds)
        for fd in fds:
            os.close(fd)


def serve_sftp(connection: socket.socket) -> None:
    """Enter, answer {"pid": N} with one end of a socket pair, then speak SFTP on the other."""
    # Before entering: inside are only the container's files. Here and not above: it is 20 MB that no other fork needs.
    import threading

    from flexd.runtime.helper import sftp

    target = wire.receive(connection)
    init = os.pidfd_open(target["init"]) if target["init"] else None
    _enter(target)
    if init is not None:
        # A session that outlived its container would keep its mounts. After entering, which a thread would forbid.
        threading.Thread(target=_end_with, args=(init,), daemon=True).start()
    ours, theirs = socket.socketpair()
    wire.send(connection, {"pid": os.getpid()}, (theirs.fileno(),))
    theirs.close()
    connection.close()
    sftp.serve(ours, "/")


def _end_with(pidfd: int) -> None:
    """End when that process does: then its pidfd is readable (pidfd_open(2))."""
    select.select([pidfd], [], [])
    os._exit(0)


def _enter(target: wire.Message) -> None:
    if target["init"]:
        enter.enter_running(target["init"], target["start_time"])
    else:
        enter.enter_stopped(target["rootfs"], target["uid_map"], target["gid_map"])


Answer = tuple[wire.Message, tuple[int, ...]]


def _stat(request: wire.Message) -> Answer:
    path = request["path"]
    found = os.stat(path) if request["follow"] else os.lstat(path)
    return describe(path, found), ()


def describe(path: str, found: os.stat_result) -> wire.Message:
    """The fields of `FileInfo`."""
    info: wire.Message = {
        "kind": kind_of(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "mode": stat.S_IMODE(found.st_mode),
        "size_bytes": found.st_size,
        "mtime_s": found.st_mtime,
    }
    if stat.S_ISLNK(found.st_mode):
        info["target"] = os.readlink(path)
    if stat.S_ISDIR(found.st_mode):
        info["entries"] = sorted(os.listdir(path))
    return info


def kind_of(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"


def _open(request: wire.Message) -> Answer:
    return {}, (open_file(request["path"], request["flags"], request["mode"], request["uid"], request["gid"]),)


def open_file(path: str, flags: int, mode: int, uid: int, gid: int) -> int:
    """A regular file; owner and mode are given to it only where this call creates it."""
    # Opening a FIFO or a device must neither wait nor make a terminal ours, before it is refused below.
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    created = False
    if flags & os.O_CREAT:
        try:
            fd = os.open(path, flags | os.O_EXCL, 0o600)
            created = True
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            fd = os.open(path, flags & ~os.O_CREAT)
    else:
        fd = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            # Reading it might never end, which would hold a thread of the daemon.
            raise OSError(errno.EINVAL, "not a regular file")
        if created:
            os.fchown(fd, uid, gid)
            os.fchmod(fd, mode)
        os.set_blocking(fd, True)
    except OSError:
        os.close(fd)
        raise
    return fd


def _set_owner(request: wire.Message) -> Answer:
    set_owner(request["path"], request["uid"], request["gid"], request["mode"])
    return {}, ()


def set_owner(path: str, uid: int | None, gid: int | None, mode: int | None) -> None:
    """Of a link itself the owner only; links have no mode. The owner first: changing it clears set-id bits."""
    os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid, follow_symlinks=False)
    if mode is not None and not stat.S_ISLNK(os.lstat(path).st_mode):
        os.chmod(path, mode)


def _make_directory(request: wire.Message) -> Answer:
    make_directory(request["path"], request["mode"], request["uid"], request["gid"])
    return {}, ()


def make_directory(path: str, mode: int, uid: int, gid: int) -> None:
    """An existing directory stays as it is."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if os.path.isdir(path):
            return
        raise
    os.chown(path, uid, gid)
    os.chmod(path, mode)


def _make_symlink(request: wire.Message) -> Answer:
    os.symlink(request["target"], request["path"])
    os.lchown(request["path"], request["uid"], request["gid"])
    return {}, ()


def _remove(request: wire.Message) -> Answer:
    remove(request["path"])
    return {}, ()


def remove(path: str) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        os.rmdir(path)
    else:
        os.unlink(path)


OPERATIONS: dict[str, Callable[[wire.Message], Answer]] = {
    "stat": _stat,
    "open": _open,
    "set_owner": _set_owner,
    "make_directory": _make_directory,
    "make_symlink": _make_symlink,
    "remove": _remove,
}
