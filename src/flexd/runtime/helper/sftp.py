# SPDX-License-Identifier: Apache-2.0
"""An SFTP server (draft-ietf-secsh-filexfer-02) on a plain socket: paramiko's protocol, plain system calls below.

LXD's `/sftp` speaks SFTP without SSH around it. `root` is "/" where the process has entered a container; elsewhere it
keeps paths together but is no prison."""

import os
import socket
import stat
from collections.abc import Callable
from typing import ParamSpec

import paramiko
from paramiko import SFTPAttributes, SFTPHandle, SFTPServer, SFTPServerInterface
from paramiko.sftp import SFTP_EOF, SFTP_FAILURE, SFTP_OK

P = ParamSpec("P")


def serve(connection: socket.socket, root: str) -> None:
    """Until the client closes."""
    channel = _Channel(connection)
    # SFTPServer takes an SSH channel; of it, it uses what _Channel has.
    server = SFTPServer(channel, "sftp", _Nobody(), _Files, root)  # type: ignore[arg-type]
    try:
        server.start_subsystem("sftp", channel, channel)  # type: ignore[arg-type]
    finally:
        server.finish_subsystem()
        connection.close()


class _Nobody(paramiko.ServerInterface):
    """Who asks was settled before the socket was handed out."""


class _Channel:
    """As much of an SSH channel, and of its transport, as SFTPServer touches."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def get_transport(self) -> "_Channel":
        return self

    def get_log_channel(self) -> str:
        return "flexd"

    def get_hexdump(self) -> bool:
        return False

    def get_name(self) -> str:
        return "sftp"

    def send(self, data: bytes) -> int:
        try:
            return self._connection.send(data)
        except (BrokenPipeError, ConnectionResetError):
            return 0

    def recv(self, count: int) -> bytes:
        try:
            return self._connection.recv(count)
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        self._connection.close()


class _Handle(SFTPHandle):
    def __init__(self, fd: int, flags: int) -> None:
        super().__init__(flags)
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes | int:
        try:
            return os.pread(self._fd, length, offset) or SFTP_EOF
        except OSError as error:
            return _code(error)

    def write(self, offset: int, data: bytes) -> int:  # type: ignore[override]
        rest = memoryview(data)
        try:
            while rest:
                written = os.pwrite(self._fd, rest, offset)
                offset, rest = offset + written, rest[written:]
        except OSError as error:
            return _code(error)
        return SFTP_OK

    def stat(self) -> SFTPAttributes | int:
        try:
            return SFTPAttributes.from_stat(os.fstat(self._fd))
        except OSError as error:
            return _code(error)

    def chattr(self, attr: SFTPAttributes) -> int:
        return _done(_apply, self._fd, attr)


class _Files(SFTPServerInterface):
    """What the client may ask. Each method answers with a result or an SFTP error code."""

    def __init__(self, server: paramiko.ServerInterface, root: str) -> None:
        super().__init__(server)
        self._root = root

    def _path(self, path: str) -> str:
        return self._root.rstrip("/") + os.path.normpath("/" + path.lstrip("/"))

    def canonicalize(self, path: str) -> str:
        return os.path.normpath("/" + path.lstrip("/"))

    def open(self, path: str, flags: int, attr: SFTPAttributes) -> SFTPHandle | int:
        # O_APPEND would make pwrite(2) ignore the offset that the protocol always sends.
        flags = (flags & ~os.O_APPEND) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        mode = 0o644 if attr.st_mode is None else stat.S_IMODE(attr.st_mode)
        try:
            fd = os.open(self._path(path), flags, mode)
        except OSError as error:
            return _code(error)
        if attr.st_uid is not None and attr.st_gid is not None and flags & os.O_CREAT:
            os.fchown(fd, attr.st_uid, attr.st_gid)
        return _Handle(fd, flags)

    def list_folder(self, path: str) -> list[SFTPAttributes] | int:
        try:
            with os.scandir(self._path(path)) as entries:
                return [SFTPAttributes.from_stat(e.stat(follow_symlinks=False), e.name) for e in entries]
        except OSError as error:
            return _code(error)

    def stat(self, path: str) -> SFTPAttributes | int:
        return self._attributes(path, follow=True)

    def lstat(self, path: str) -> SFTPAttributes | int:
        return self._attributes(path, follow=False)

    def _attributes(self, path: str, *, follow: bool) -> SFTPAttributes | int:
        try:
            return SFTPAttributes.from_stat(os.stat(self._path(path), follow_symlinks=follow))
        except OSError as error:
            return _code(error)

    def readlink(self, path: str) -> str | int:
        try:
            return os.readlink(self._path(path))
        except OSError as error:
            return _code(error)

    def remove(self, path: str) -> int:
        return _done(os.unlink, self._path(path))

    def rmdir(self, path: str) -> int:
        return _done(os.rmdir, self._path(path))

    def symlink(self, target_path: str, path: str) -> int:
        return _done(os.symlink, target_path, self._path(path))

    def mkdir(self, path: str, attr: SFTPAttributes) -> int:
        mode = 0o755 if attr.st_mode is None else stat.S_IMODE(attr.st_mode)
        return _done(os.mkdir, self._path(path), mode)

    def rename(self, oldpath: str, newpath: str) -> int:
        # Version 3 of the protocol: a rename onto an existing name fails.
        if os.path.lexists(self._path(newpath)):
            return SFTP_FAILURE
        return _done(os.rename, self._path(oldpath), self._path(newpath))

    def posix_rename(self, oldpath: str, newpath: str) -> int:
        return _done(os.rename, self._path(oldpath), self._path(newpath))

    def chattr(self, path: str, attr: SFTPAttributes) -> int:
        return _done(_apply, self._path(path), attr)


def _apply(target: str | int, attr: SFTPAttributes) -> None:
    """Each attribute that the client sent. The owner before the mode: chown(2) clears set-id bits."""
    if attr.st_size is not None:
        os.truncate(target, attr.st_size)
    if attr.st_uid is not None and attr.st_gid is not None:
        os.chown(target, attr.st_uid, attr.st_gid)
    if attr.st_mode is not None:
        os.chmod(target, stat.S_IMODE(attr.st_mode))
    if attr.st_atime is not None and attr.st_mtime is not None:
        os.utime(target, (attr.st_atime, attr.st_mtime))


def _done(call: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> int:
    try:
        call(*arguments, **named)
    except OSError as error:
        return _code(error)
    return SFTP_OK


def _code(error: OSError) -> int:
    return int(SFTPServer.convert_errno(error.errno or 0))
