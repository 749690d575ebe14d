# SPDX-License-Identifier: Apache-2.0
"""A command inside a supervised container, whose seccomp listener must reach the container's monitor.

liblxc 5.0's own attach reads a pid from a socket on which the new program may have sent its listener already: one in
200 attaches fails, more under load, with the program running and its system calls answered by nobody. (With an LSM the
two wait for each other, and all is well.) So a function of ours, in the attached process, loads the filter."""

import errno
import os
import socket
import struct
import time
from collections.abc import Sequence

from flexd.runtime.helper.command_names import socket_name
from flexd.runtime.helper.filter import Filter

# liblxc commands.h: lxc_cmd_req {int cmd; int datalen; const void *data}, lxc_cmd_rsp {int ret; int datalen; void *}
_REQUEST = struct.Struct("@iiP")
_RESPONSE = struct.Struct("@iiP")
_ADD_LISTENER = 13  # LXC_CMD_SECCOMP_NOTIFY_ADD_LISTENER
# The monitor reads the listener without waiting for it, so the command may have to be said again. Its answer is then
# whatever errno it had last: EAGAIN mostly, EPERM was seen under load. EINVAL means that it wants no listener at all.
_TRIES, _PAUSE_S = 1000, 0.001
# As a shell (POSIX sh, "Exit Status for Commands").
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127


class Entry:
    """The function for the attached process, and what its parent does meanwhile."""

    def __init__(self, policy: str, argv: Sequence[str], environment: dict[str, str], ids: tuple[int, int]) -> None:
        self._filter = Filter(policy)
        self._argv = [os.fsencode(word) for word in argv]
        self._environment = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
        self._environment[b"container"] = b"lxc"  # as liblxc sets it
        self._ids = ids
        self._ours, self._theirs = socket.socketpair()

    def run(self) -> int:
        """In the container, as its root; only returns if the program cannot be run."""
        self._ours.close()
        try:
            listener = self._filter.load()
            socket.send_fds(self._theirs, [b"l"], [listener])
            os.close(listener)
            if not self._theirs.recv(1):
                return _NOT_EXECUTABLE
            uid, gid = self._ids
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.execvpe(self._argv[0], self._argv, self._environment)
        except (FileNotFoundError, NotADirectoryError):
            return _NOT_FOUND
        except OSError as error:
            return self._shell() if error.errno == errno.ENOEXEC else _NOT_EXECUTABLE

    def _shell(self) -> int:
        """A script without #!, as execvp(3) takes it."""
        try:
            os.execve(b"/bin/sh", [b"sh", *self._argv], self._environment)
        except OSError:
            return _NOT_EXECUTABLE

    def hand_over(self, directory: str, name: str) -> None:
        """In the parent, once the process is there: its listener to the monitor, then let it go on."""
        self._theirs.close()
        with self._ours:
            data, listeners, _, _ = socket.recv_fds(self._ours, 1, 1)
            if not data or not listeners:
                return  # it ended before; its status says so
            add_listener(directory, name, listeners[0])
            os.close(listeners[0])
            self._ours.sendall(b"g")


def add_listener(directory: str, name: str, listener: int) -> None:
    result = 0
    for _ in range(_TRIES):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
            monitor.connect(socket_name(directory, name))
            monitor.sendall(_REQUEST.pack(_ADD_LISTENER, 0, 0))
            socket.send_fds(monitor, [b"\0"], [listener])
            answer = monitor.recv(_RESPONSE.size, socket.MSG_WAITALL)
        result = _RESPONSE.unpack(answer)[0] if len(answer) == _RESPONSE.size else -errno.ECONNRESET
        if result in (0, -errno.EINVAL):
            break
        time.sleep(_PAUSE_S)
    if result != 0:
        raise OSError(-result, f"give the seccomp listener to the monitor: {os.strerror(-result)}")
