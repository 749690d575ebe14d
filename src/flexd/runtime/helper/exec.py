# SPDX-License-Identifier: Apache-2.0
"""Running one command inside a container, in a fork of the helper that waits for it."""

import os
import select
import signal
import socket

from flexd.runtime.helper import native_calls, wire
from flexd.runtime.helper.liblxc import Container, Library
from flexd.runtime.helper.supervised import Entry


def serve(library: Library, connection: socket.socket, stdio: tuple[int, int, int]) -> None:
    """Answers {"pid": N} once the program was started, then {"status": N}; on the way takes {"signal": N}."""
    request = wire.receive(connection)
    # Not the helper's session. A terminal as stdin gets one of its own: liblxc makes it the controlling terminal.
    os.setsid()
    _default_signals()
    pid = _start(library.container(request["name"], request["directory"]), request, stdio)
    # The end of a pipe or terminal shows when its last holder closes it; that is to be the command.
    for fd in set(stdio):
        os.close(fd)
    wire.send(connection, {"pid": pid})
    wire.send(connection, {"status": _wait(connection, pid)})


def _start(container: Container, request: wire.Message, stdio: tuple[int, int, int]) -> int:
    """`policy` is given for a container whose system calls are supervised."""
    if request["native_only"]:
        native_calls.refuse_others()
    argv, environment, ids = request["command"], request["environment"], (request["uid"], request["gid"])
    if not request["policy"]:
        return container.attach(argv, environment, request["cwd"], ids, stdio)
    entry = Entry(request["policy"], argv, environment, ids)
    pid = container.attach(argv, environment, request["cwd"], ids, stdio, entry.run)
    entry.hand_over(request["directory"], request["name"])
    return pid


def _default_signals() -> None:
    """What is ignored stays ignored through execve(2): neither Python's choice nor the helper's is the command's."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _wait(connection: socket.socket, pid: int) -> int:
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(connection, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if pidfd in ready:
            _, status = os.waitpid(pid, 0)
            return exit_status(status)
        _pass_signal(connection, pidfd, poll)


def _pass_signal(connection: socket.socket, pidfd: int, poll: select.poll) -> None:
    """A daemon that went away took the session's sockets along: the command ends with it."""
    try:
        number = int(wire.receive(connection)["signal"])
    except (wire.Closed, ConnectionError):
        poll.unregister(connection)
        number = signal.SIGKILL
    signal.pidfd_send_signal(pidfd, number)


def exit_status(status: int) -> int:
    """As a shell tells it, and LXD: 128+n for a signal."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code
