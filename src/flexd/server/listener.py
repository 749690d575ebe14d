# SPDX-License-Identifier: Apache-2.0
"""Listening sockets: the unix socket that the daemon makes, and those that systemd hands over (sd_listen_fds(3))."""

import asyncio
import contextlib
import grp
import logging
import os
import socket
from collections.abc import MutableMapping
from pathlib import Path

from flexd.api.errors import Conflict

log = logging.getLogger(__name__)

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_BACKLOG = 512


async def open_unix(path: Path, group: str) -> socket.socket:
    """A listening socket, root:group 0660. Left by a daemon that died: replaced. Answered by a living one: an error."""
    return await asyncio.to_thread(_open_unix, path, group)


async def close_unix(listener: socket.socket, path: Path) -> None:
    listener.close()
    await asyncio.to_thread(path.unlink, missing_ok=True)


def _open_unix(path: Path, group: str) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # The mode that bind(2) gives the file, so that nobody gets in before the group is set (unix(7)).
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        _give_to_group(path, group)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _give_to_group(path: Path, group: str) -> None:
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        log.warning('there is no group "%s": only root may use %s', group, path)
        return
    os.chown(path, -1, gid)
    path.chmod(0o660)


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise Conflict(f'Failed listening on "{path}": another daemon answers there')
    path.unlink(missing_ok=True)


def inherited(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """Sockets passed by systemd to this very process; the variables are removed, so that no child takes them for its
    own."""
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
            listener = socket.socket(fileno=fd)
            listener.setblocking(False)
            found.append(listener)
    return found
