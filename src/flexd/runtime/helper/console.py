# SPDX-License-Identifier: Apache-2.0
"""A container's console: a terminal of our own for the daemon, joined to the one that liblxc's monitor gives out.

The monitor frees the console when a socket closes, not when the terminal does. So a fork of the helper holds that
socket, ends when the daemon closes its side of the terminal, and passes on the window's size."""

import array
import errno
import fcntl
import os
import select
import signal
import socket
import termios
import tty

from flexd.runtime.helper import enter, wire
from flexd.runtime.helper.liblxc import Library

_READ_BYTES = 65536


def serve(library: Library, connection: socket.socket, fds: list[int]) -> None:
    """Answers {} with the master of the terminal, then copies until either side is gone. `fds`: the console itself, of
    a restored container, whose monitor neither gives it out nor logs what is written there."""
    request = wire.receive(connection)
    root = os.open(f"/proc/{request['init']}/root", os.O_PATH | os.O_DIRECTORY)
    holder, console = (-1, fds[0]) if fds else library.container(request["name"], request["directory"]).console()
    os.set_blocking(console, True)
    master, slave = os.openpty()
    tty.setraw(slave)
    tty.setraw(console)
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    # Closing the master then shows as end of file, which is what ends the copying.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    wire.send(connection, {}, (master,))
    os.close(master)
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) if fds else -1
    _copy(slave, console, _resizes(), root, log)
    if holder >= 0:
        os.close(holder)


def _resizes() -> int:
    """Readable whenever the window's size has changed."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGWINCH, lambda *_: None)
    return read


def _copy(slave: int, console: int, resizes: int, root: int, log: int) -> None:
    poll = select.poll()
    for fd in (slave, console, resizes):
        poll.register(fd, select.POLLIN)
    other = {slave: console, console: slave}
    while True:
        for fd, _ in poll.poll():
            if fd == resizes:
                os.read(resizes, _READ_BYTES)
                _pass_size(slave, root)
            elif not _pass_data(fd, other[fd], log if fd == console else -1):
                return


def _pass_data(source: int, target: int, log: int) -> bool:
    try:
        data = os.read(source, _READ_BYTES)
        if log >= 0:
            os.write(log, data)
        while data:
            data = data[os.write(target, data) :]
            if not data:
                return True
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    return False


def _pass_size(slave: int, root: int) -> None:
    """liblxc does not pass sizes on (5.0 answers its own command with ENOSYS), so to the container's end directly."""
    size = array.array("H", [0, 0, 0, 0])
    fcntl.ioctl(slave, termios.TIOCGWINSZ, size)
    try:
        device = enter.open_beneath(root, "dev/console", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        # The container has no such file any more, or made it something else: then there is nothing to resize.
        return
    try:
        if os.isatty(device):
            fcntl.ioctl(device, termios.TIOCSWINSZ, size)
    finally:
        os.close(device)
