# SPDX-License-Identifier: Apache-2.0
"""The daemon's place on the host: arguments, its directory and whose that is, signals, the init system."""

import argparse
import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from flexd.api.errors import FlexdError
from flexd.host.contract import Host
from flexd.host.files import lock_file

DEFAULT_DIRECTORY = "/var/lib/flexd"
# SIGPWR is what an init sends when the host goes down (LXD's word too); the others only end us.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGPWR)
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
    fd = lock_file(directory / "flexd.lock")
    if fd is None:
        raise FlexdError(f"Failed starting on {directory}: another daemon uses it")
    return fd


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the `flexd` program was called with: `directory`, `group`, `debug`."""
    parser = argparse.ArgumentParser(prog="flexd", description="Runs whole operating systems in containers.")
    parser.add_argument("--group", default="flexd", help="group whose members may use the socket")
    parser.add_argument("--debug", action="store_true", help="log what is done in detail")
    arguments = parser.parse_args(argv)
    arguments.directory = Path(os.environ.get("FLEXD_DIR") or DEFAULT_DIRECTORY)
    return arguments


def start_logging(*, debug: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def asked_to_stop() -> "asyncio.Future[int]":
    """Done with the number of the signal that ends the daemon."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def ask(number: int) -> None:
        if not stop.done():
            stop.set_result(number)

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, ask, number)
    return stop


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
