# SPDX-License-Identifier: Apache-2.0
"""The loop of a proxy: streams are spliced in the kernel, datagrams passed on by sender, descriptors handed along.

One thread, no buffers of its own but those of pipes: a proxy that idles costs what its process costs."""

import errno
import os
import select
import socket
import time
from contextlib import suppress

_CHUNK = 65536
# Senders of datagrams that are remembered, and for how long (seconds): net.netfilter.nf_conntrack_udp_timeout_stream.
_MOST_SENDERS, _SENDER_IDLE_S = 1024, 120.0
_MOST_FDS = 16  # handed along with one message
_AGAIN = (errno.EAGAIN, errno.EINPROGRESS)
_SPLICE_F_NONBLOCK = 2
_MUTED = -1
# Between two tries to accept when there are no more descriptors: seconds.
_NO_FDS_PAUSE_S = 0.1


class Target:
    """Where connections lead."""

    def __init__(self, kind: str, address: str | tuple[str, int], proxy_protocol: bool) -> None:
        self.kind = kind
        self.address = address
        self.proxy_protocol = proxy_protocol

    def open(self) -> socket.socket:
        """A socket that connects, or is about to."""
        if isinstance(self.address, str):
            family = socket.AF_UNIX
        else:
            family = socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET
        kind = socket.SOCK_DGRAM if self.kind == "udp" else socket.SOCK_STREAM
        made = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        number = made.connect_ex(self.address)
        if number not in (0, *_AGAIN):
            made.close()
            raise OSError(number, os.strerror(number))
        return made


class _Way:
    """One direction of a connection, through a pipe."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.read, self.write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.pending = 0
        self.head = b""  # what goes before all else
        self.ended = self.finished = False

    def wants_input(self) -> bool:
        return not self.ended and not self.pending and not self.head

    def wants_output(self) -> bool:
        return bool(self.pending or self.head)

    def move(self) -> None:
        """As much as goes without waiting. OSError: the connection is broken."""
        if self.head:
            with suppress(BlockingIOError):
                self.head = self.head[self.sink.send(self.head) :]
            if self.head:
                return
        while not self.finished:
            if not self.pending and not self.ended and not self._fill():
                return
            if self.pending and not self._drain():
                return
            if self.ended and not self.pending:
                self.finished = True
                with suppress(OSError):
                    self.sink.shutdown(socket.SHUT_WR)

    def _fill(self) -> bool:
        try:
            count = os.splice(self.source.fileno(), self.write, _CHUNK, flags=_SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return False
        self.pending, self.ended = count, count == 0
        return True

    def _drain(self) -> bool:
        try:
            self.pending -= os.splice(self.read, self.sink.fileno(), self.pending, flags=_SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self.read)
        os.close(self.write)


class _UnixWay(_Way):
    """Between two unix sockets: descriptors that come with a message (a Wayland buffer) go with it."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        super().__init__(source, sink)
        self.data, self.fds = b"", list[int]()

    def _fill(self) -> bool:
        try:
            self.data, self.fds, _, _ = socket.recv_fds(self.source, _CHUNK, _MOST_FDS)
        except BlockingIOError:
            return False
        self.pending, self.ended = len(self.data), not self.data
        return True

    def _drain(self) -> bool:
        try:
            count = socket.send_fds(self.sink, [self.data], self.fds) if self.fds else self.sink.send(self.data)
        except BlockingIOError:
            return False
        self._close_fds()
        self.data = self.data[count:]
        self.pending = len(self.data)
        return True

    def _close_fds(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def close(self) -> None:
        self._close_fds()
        super().close()


class _Connection:
    """Two sockets and both ways between them."""

    def __init__(self, loop: "_Loop", client: socket.socket, server: socket.socket, head: bytes) -> None:
        self._loop = loop
        self.client, self.server = client, server
        both_unix = client.family == server.family == socket.AF_UNIX
        way = _UnixWay if both_unix else _Way
        self._there, self._back = way(client, server), way(server, client)
        self._there.head = head
        self._connected = False
        loop.register(client, self, 0)
        loop.register(server, self, select.EPOLLOUT)

    def ready(self, fd: int, events: int) -> None:
        if events & (select.EPOLLHUP | select.EPOLLERR):
            # Told of again and again otherwise, also while what came before is still on its way.
            self._loop.mute(self.client if fd == self.client.fileno() else self.server)
        try:
            if not self._connected and not self._connect(fd):
                return
            self._there.move()
            self._back.move()
        except OSError:
            self.close()
            return
        if self._is_over():
            self.close()
        else:
            self._loop.modify(self.client, _mask(self._there, self._back))
            self._loop.modify(self.server, _mask(self._back, self._there))

    def _connect(self, fd: int) -> bool:
        """Whether the server's side is there by now. A client that left meanwhile is seen when it is read."""
        if fd == self.client.fileno():
            return False
        number = self.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
        self._connected = True
        return True

    def _is_over(self) -> bool:
        """Both ways ended, or one end is gone and nothing that it said is left to be passed on."""
        there, back = self._there.finished, self._back.finished
        return (
            (there and back)
            or (there and self._loop.is_muted(self.client))
            or (back and self._loop.is_muted(self.server))
        )

    def close(self) -> None:
        for end in (self.client, self.server):
            self._loop.unregister(end)
            end.close()
        self._there.close()
        self._back.close()


def _mask(from_it: _Way, to_it: _Way) -> int:
    return (select.EPOLLIN if from_it.wants_input() else 0) | (select.EPOLLOUT if to_it.wants_output() else 0)


class _StreamListener:
    def __init__(self, loop: "_Loop", listener: socket.socket, target: Target) -> None:
        self._loop, self._listener, self._target = loop, listener, target
        loop.register(listener, self, select.EPOLLIN)

    def ready(self, _fd: int, _events: int) -> None:
        try:
            client, peer = self._listener.accept()
        except OSError as error:  # gone again, or no descriptor left
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(_NO_FDS_PAUSE_S)
            return
        client.setblocking(False)
        try:
            head = _header(client, peer) if self._target.proxy_protocol else b""
            _Connection(self._loop, client, self._target.open(), head)
        except OSError:  # nobody listens there: closed, as the caller would see it without a proxy
            client.close()


def _header(client: socket.socket, peer: object) -> bytes:
    """HAProxy's PROXY protocol, version 1 (proxy-protocol.txt, section 2.1)."""
    if client.family == socket.AF_UNIX or not isinstance(peer, tuple):
        return b"PROXY UNKNOWN\r\n"
    own = client.getsockname()
    family = "TCP6" if client.family == socket.AF_INET6 else "TCP4"
    return f"PROXY {family} {peer[0]} {own[0]} {peer[1]} {own[1]}\r\n".encode()


class _Sender:
    """The socket that stands for one sender of datagrams, for the answers to find back."""

    def __init__(self, owner: "_DatagramListener", address: object, upstream: socket.socket) -> None:
        self.owner, self.address, self.upstream = owner, address, upstream
        self.used_at = time.monotonic()

    def ready(self, _fd: int, _events: int) -> None:
        with suppress(OSError):  # the target refused, or the sender is gone: datagrams get lost
            self.owner.listener.sendto(self.upstream.recv(_CHUNK), self.address)  # type: ignore[call-overload]
            self.used_at = time.monotonic()


class _DatagramListener:
    def __init__(self, loop: "_Loop", listener: socket.socket, target: Target) -> None:
        self._loop, self.listener, self._target = loop, listener, target
        self._senders: dict[object, _Sender] = {}
        loop.register(listener, self, select.EPOLLIN)

    def ready(self, _fd: int, _events: int) -> None:
        try:
            data, address = self.listener.recvfrom(_CHUNK)
            sender = self._senders.get(address) or self._new(address)
            sender.used_at = time.monotonic()
            sender.upstream.send(data)
        except OSError:
            return

    def _new(self, address: object) -> _Sender:
        now = time.monotonic()
        for known in [each for each in self._senders.values() if now - each.used_at > _SENDER_IDLE_S]:
            self._forget(known)
        if len(self._senders) >= _MOST_SENDERS:
            self._forget(min(self._senders.values(), key=lambda each: each.used_at))
        sender = self._senders[address] = _Sender(self, address, self._target.open())
        self._loop.register(sender.upstream, sender, select.EPOLLIN)
        return sender

    def _forget(self, sender: _Sender) -> None:
        del self._senders[sender.address]
        self._loop.unregister(sender.upstream)
        sender.upstream.close()


class _Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, _StreamListener | _DatagramListener | _Connection | _Sender] = {}
        self._masks: dict[int, int] = {}

    def register(
        self, end: socket.socket, handler: _StreamListener | _DatagramListener | _Connection | _Sender, mask: int
    ) -> None:
        self._epoll.register(end.fileno(), mask)
        self._handlers[end.fileno()] = handler
        self._masks[end.fileno()] = mask

    def mute(self, end: socket.socket) -> None:
        """Nothing more is told of it."""
        if not self.is_muted(end):
            self._epoll.unregister(end.fileno())
            self._masks[end.fileno()] = _MUTED

    def is_muted(self, end: socket.socket) -> bool:
        return self._masks[end.fileno()] == _MUTED

    def modify(self, end: socket.socket, mask: int) -> None:
        if self._masks[end.fileno()] not in (mask, _MUTED):
            self._epoll.modify(end.fileno(), mask)
            self._masks[end.fileno()] = mask

    def unregister(self, end: socket.socket) -> None:
        if not self.is_muted(end):
            self._epoll.unregister(end.fileno())
        del self._handlers[end.fileno()], self._masks[end.fileno()]

    def run(self) -> None:
        while self._handlers:
            for fd, events in self._epoll.poll():
                handler = self._handlers.get(fd)
                if handler is not None:  # it may have gone with another of the same round
                    handler.ready(fd, events)


def run(pairs: list[tuple[socket.socket, Target]]) -> None:
    """Forward until the process is ended."""
    loop = _Loop()
    for listener, target in pairs:
        if listener.type == socket.SOCK_DGRAM:
            _DatagramListener(loop, listener, target)
        else:
            _StreamListener(loop, listener, target)
    loop.run()
