# SPDX-License-Identifier: Apache-2.0
"""exec and console: pump bytes between file descriptors and the websockets of an operation.

One loop around `poll` and no threads: what can't be written now is kept, and its source isn't read meanwhile, so that
`exec c1 -- cat <big >copy` can't end with each side waiting for the other.
"""

from __future__ import annotations

import json
import os
import select
import signal

from flexd.client.client import check_operation, path_of
from flexd.client.terminal import RawTerminal, SignalPipe, size_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from flexd.client.client import Client, Reply
    from flexd.client.websocket import WebSocket

_READ_BYTES = 64 * 1024
# What `lxc exec` forwards. A stop (TSTP, TTIN, TTOU) is for the command inside, too.
_FORWARDED = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGABRT,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
)
# The end of a stream, in both directions: an empty text message (data are binary messages).
_END_OF_STREAM = ""
_ESCAPE = 0x01  # <ctrl>+a
_DETACH = ord("q")


class _Input:
    """The file descriptor whose bytes go into one websocket."""

    def __init__(self, fd: int, socket: WebSocket, keys: Callable[[bytes], bytes | None] | None) -> None:
        self.fd = fd
        self.socket = socket
        self.open = True
        self._keys = keys

    @property
    def wants_read(self) -> bool:
        return self.open and not self.socket.wants_write and not self.socket.closed

    def forward(self) -> bool:
        """Move what can be read; False if the person asked to detach."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except OSError:  # the terminal is gone
            data = b""
        if not data:
            self.open = False
            self.socket.queue(_END_OF_STREAM)
        elif self._keys is None:
            self.socket.queue(data)
        else:
            passed = self._keys(data)
            if passed is None:
                return False
            if passed:
                self.socket.queue(passed)
        self.socket.flush()
        return True


class _Output:
    """One websocket whose bytes go to a file descriptor, until the server says that it is the end."""

    def __init__(self, socket: WebSocket, fd: int) -> None:
        self.socket = socket
        self.open = True
        self._fd = fd

    def forward(self) -> None:
        for message in self.socket.read_messages():
            if isinstance(message, str):
                self.open = False
                self.socket.close()  # LXD holds an interactive command's operation open until it sees this
            elif self._fd >= 0:
                self._write(message)
        if self.socket.closed:
            self.open = False

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BlockingIOError:
            # Somebody made our terminal non-blocking; wait for it.
            select.select([], [self._fd], [])
            self._write(bytes(view))
        except OSError:
            # `flexc exec … | head`: the reader has gone. Go on without output, so that the exit status is still told.
            self._fd = -1


class Session:
    """A running exec or console. `stdin` etc. are file descriptors."""

    def __init__(self, client: Client, operation: str, terminal_fd: int) -> None:
        self._client = client
        self._path = operation.partition("?")[0]
        self._terminal_fd = terminal_fd
        self._sockets: dict[str, WebSocket] = {}
        self._input: _Input | None = None
        self._outputs: list[_Output] = []
        self._detached = False

    def connect(self, secrets: Mapping[str, str]) -> None:
        """Open every websocket of the operation; the server starts the command when all but `control` are there."""
        # So `control` comes first: after the others a short command may have ended, and its secrets with it.
        for name in sorted(secrets, key=lambda name: name != "control"):
            self._sockets[name] = self._client.websocket(f"{self._path}/websocket", {"secret": secrets[name]})
            self._sockets[name].set_blocking(False)

    def feed(self, name: str, fd: int, keys: Callable[[bytes], bytes | None] | None = None) -> None:
        """Send what is read from `fd`. `keys` sees (and may change) the bytes; it answers None to detach."""
        self._input = _Input(fd, self._sockets[name], keys)

    def drain(self, name: str, fd: int) -> None:
        """Write what arrives to `fd`."""
        self._outputs.append(_Output(self._sockets[name], fd))

    def run(self) -> dict[str, Any] | None:
        """Pump until the command has ended and its output is through; its operation's last state, None if detached."""
        waiter = self._client.send_request("GET", f"{self._path}/wait")
        ended: Reply | None = None
        with SignalPipe((*_FORWARDED, signal.SIGWINCH)) as signals:
            while ended is None or any(output.open for output in self._outputs):
                ready = self._poll(waiter.fileno() if ended is None else -1, signals.fileno())
                if ended is None and waiter.fileno() in ready:
                    ended = self._client.finish_request(waiter, "GET", self._path)
                if signals.fileno() in ready:
                    self._forward_signals(signals.read())
                self._pump(ready)
                if self._detached:
                    break
        for socket in self._sockets.values():
            socket.close()
        if ended is None:
            waiter.close()
            return None
        return check_operation(ended.metadata)

    def _poll(self, waiter_fd: int, signals_fd: int) -> set[int]:
        """The file descriptors with something to do."""
        poll = select.poll()
        poll.register(signals_fd, select.POLLIN)
        if waiter_fd >= 0:
            poll.register(waiter_fd, select.POLLIN)
        if self._input is not None and self._input.wants_read:
            poll.register(self._input.fd, select.POLLIN)
        unread = set()
        for socket in self._sockets.values():
            if not socket.closed:
                poll.register(socket, select.POLLIN | (select.POLLOUT if socket.wants_write else 0))
                if socket.has_unread:
                    unread.add(socket.fileno())
        ready = poll.poll(0 if unread else None)
        return unread | {fd for fd, _ in ready}

    def _pump(self, ready: set[int]) -> None:
        # Taken before anything closes a socket: a closed one has no number any more.
        numbers = {name: -1 if socket.closed else socket.fileno() for name, socket in self._sockets.items()}
        for name, socket in self._sockets.items():
            if numbers[name] in ready and socket.wants_write:
                socket.flush()
        drained = {id(output.socket) for output in self._outputs}
        for output in self._outputs:
            if output.socket.closed or output.socket.fileno() in ready:
                output.forward()
        for name, socket in self._sockets.items():
            if id(socket) not in drained and numbers[name] in ready:
                socket.read_messages()  # nothing is said there, but it may be closed
        if self._input is not None and self._input.fd in ready and self._input.wants_read:
            self._detached = not self._input.forward()

    def _forward_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self.send_size()
            else:
                self._control({"command": "signal", "signal": number})

    def send_size(self) -> None:
        width, height = size_of(self._terminal_fd)
        if width:
            self._control({"command": "window-resize", "args": {"width": str(width), "height": str(height)}})

    def _control(self, command: Mapping[str, Any]) -> None:
        control = self._sockets.get("control")
        if control is not None and not control.closed:
            control.queue(json.dumps(command))
            control.flush()


class DetachKeys:
    """Watches for <ctrl>+a q, also when the two come in different reads; <ctrl>+a a sends one <ctrl>+a."""

    def __init__(self) -> None:
        self._escaped = False

    def __call__(self, data: bytes) -> bytes | None:
        passed = bytearray()
        for byte in data:
            if not self._escaped:
                self._escaped = byte == _ESCAPE
                if not self._escaped:
                    passed.append(byte)
                continue
            self._escaped = False
            if byte == _DETACH:
                return None
            passed += bytes((_ESCAPE,)) if byte == ord("a") else bytes((_ESCAPE, byte))
        return bytes(passed)


def run_exec(client: Client, instance: str, request: Mapping[str, Any], stdin: int, stdout: int, stderr: int) -> int:
    """Run a command to its end; its exit status. `request` is LXD's InstanceExecPost without the terminal's size."""
    interactive = bool(request.get("interactive"))
    width, height = size_of(stdout) if interactive else (0, 0)
    body = {**request, "wait-for-websocket": True, "width": width, "height": height}
    reply = client.request("POST", path_of("instances", instance, "exec"), body)
    session = Session(client, reply.operation, stdout)
    with RawTerminal(stdin if interactive else -1):
        session.connect(reply.metadata["metadata"]["fds"])
        session.feed("0", stdin)
        session.drain("0" if interactive else "1", stdout)
        if not interactive:
            session.drain("2", stderr)
        state = session.run()
    return int(((state or {}).get("metadata") or {}).get("return", -1))


def run_console(client: Client, instance: str, stdin: int, stdout: int) -> None:
    """Attach to the console until the person detaches or the instance stops."""
    width, height = size_of(stdout)
    body = {"width": width, "height": height, "type": "console"}
    reply = client.request("POST", path_of("instances", instance, "console"), body)
    session = Session(client, reply.operation, stdout)
    with RawTerminal(stdin):
        session.connect(reply.metadata["metadata"]["fds"])
        session.feed("0", stdin, DetachKeys())
        session.drain("0", stdout)
        session.run()
