# SPDX-License-Identifier: Apache-2.0
"""The daemon's place on the host: its directory, whose it is, and what the init system is told."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import socket
from pathlib import Path

from flexd.api.errors import FlexdError
from flexd.host.contract import Host

GUEST_DIRECTORY = "devlxd"
"""What containers see as /dev/lxd; below the state directory."""


def daemon_id(directory: Path) -> str:
    """Short and stable: tells this daemon's host-wide names from those of another one on the same machine."""
    return hashlib.blake2s(os.fsencode(directory), digest_size=4).hexdigest()


def make_directories(directory: Path) -> None:
    # 0711: containers' roots pass through here on their way in; nobody but root may look around (as LXD's own).
    directory.mkdir(parents=True, exist_ok=True, mode=0o711)
    directory.chmod(0o711)
    for name, mode in (
        ("database", 0o700),
        ("logs", 0o700),
        ("images", 0o700),
        ("devices", 0o711),
        (GUEST_DIRECTORY, 0o755),
    ):
        (directory / name).mkdir(exist_ok=True, mode=mode)


def lock_directory(directory: Path) -> int:
    """Hold the directory for this process; two daemons on one would undo each other's work."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o711)
    fd = os.open(directory / "flexd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise FlexdError(f"Failed starting on {directory}: another daemon uses it") from error
    return fd


async def noticed_reboot(directory: Path, host: Host) -> bool:
    """Whether the host was booted since the daemon last ran here."""
    path = directory / "boot_id"
    current = await host.machine.boot_id()

    def exchange() -> str | None:
        known = path.read_text() if path.exists() else None
        path.write_text(current)
        return known

    return await asyncio.to_thread(exchange) != current


def tell_systemd(state: str) -> None:
    """sd_notify(3), where systemd asks for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
