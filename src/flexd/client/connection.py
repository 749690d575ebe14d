# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 over a unix socket or TLS, one request at a time, kept alive.

Not `http.client`: importing it costs 18 ms (its header parser is the e-mail package), as much as the whole of
`lxc list`; the part of HTTP that this API needs is below.
"""

from __future__ import annotations

import select
from collections.abc import Iterator

from flexd.client.errors import ConnectionFailed

TYPE_CHECKING = False  # `typing` itself costs 3 ms of the command's start
if TYPE_CHECKING:
    import _socket
    import socket
    from collections.abc import Callable, Mapping
    from typing import BinaryIO

    from flexd.client.endpoint import Endpoint

# Size of a read or write on streams: the server moves bytes cheapest in 32-128 KiB pieces (measured with aiohttp).
CHUNK_BYTES = 128 * 1024
_MAX_HEADER_BYTES = 64 * 1024


class Wire:
    """A connected socket and the bytes that were read from it but not used yet."""

    def __init__(self, sock: socket.socket | _socket.socket, address: str) -> None:
        self.sock = sock
        self.address = address
        self.buffer = bytearray()

    def _more(self) -> None:
        try:
            data = self.sock.recv(CHUNK_BYTES)
        except OSError as error:
            raise ConnectionFailed(f"Failed reading from {self.address}: {error.strerror or error}") from error
        if not data:
            raise ConnectionFailed(f"Failed reading from {self.address}: the server closed the connection")
        self.buffer += data

    def take(self, count: int) -> bytes:
        """Remove that many bytes from the buffer."""
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def read_until(self, mark: bytes) -> bytes:
        """The bytes before the mark, which is dropped."""
        start = 0
        while (end := self.buffer.find(mark, start)) < 0:
            if len(self.buffer) > _MAX_HEADER_BYTES:
                raise ConnectionFailed(f"Failed reading from {self.address}: the answer is not HTTP")
            start = max(0, len(self.buffer) - len(mark))
            self._more()
        data = self.take(end)
        del self.buffer[: len(mark)]
        return data

    def read_some(self, limit: int) -> bytes:
        """At least one byte and at most `limit`."""
        if not self.buffer:
            self._more()
        return self.take(min(limit, len(self.buffer)))

    def read_exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self._more()
        return self.take(count)

    def read_to_end(self) -> Iterator[bytes]:
        """Everything until the server closes."""
        if self.buffer:
            yield self.take(len(self.buffer))
        while data := self.sock.recv(CHUNK_BYTES):
            yield data

    def is_stale(self) -> bool:
        """True if an idle connection was closed by the server: it has something to read, an end of file."""
        return bool(self.buffer) or bool(select.select([self.sock], [], [], 0)[0])

    def close(self) -> None:
        self.sock.close()


class Response:
    """Status and headers (names in lower case) of an answer; its body is still to be read, in one of the ways below."""

    def __init__(self, wire: Wire, status: int, headers: dict[str, str], has_body: bool) -> None:
        self.status = status
        self.headers = headers
        self.complete = False
        self.abandoned = False
        self._wire = wire
        self._has_body = has_body

    @property
    def keeps_alive(self) -> bool:
        """True once the body was read and the server will take another request on the connection."""
        framed = not self._has_body or "content-length" in self.headers or "transfer-encoding" in self.headers
        return self.complete and framed and self.headers.get("connection", "").lower() != "close"

    @property
    def length(self) -> int | None:
        """Bytes of the body, if the server said."""
        text = self.headers.get("content-length")
        return int(text) if text is not None else None

    def chunks(self) -> Iterator[bytes]:
        """The body piece by piece, as it arrives."""
        try:
            if self._has_body:
                if self.headers.get("transfer-encoding", "").lower() == "chunked":
                    yield from self._chunked()
                elif self.length is not None:
                    yield from self._counted(self.length)
                else:
                    yield from self._wire.read_to_end()
            self.complete = True
        finally:
            if self.abandoned or not self.keeps_alive:
                self._wire.close()

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def _counted(self, left: int) -> Iterator[bytes]:
        while left > 0:
            data = self._wire.read_some(min(left, CHUNK_BYTES))
            left -= len(data)
            yield data

    def _chunked(self) -> Iterator[bytes]:
        while size := int(self._wire.read_until(b"\r\n").split(b";")[0], 16):
            yield from self._counted(size)
            self._wire.read_exactly(2)
        while self._wire.read_until(b"\r\n"):
            pass  # trailers


class Connection:
    """One connection to a server; opened by the first request."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._wire: Wire | None = None
        self._response: Response | None = None

    def fileno(self) -> int:
        """For `poll`: readable when the answer of `send` begins to arrive."""
        return self.wire().sock.fileno()

    def wire(self) -> Wire:
        """The connected socket; a kept connection that went stale is replaced."""
        if self._wire is not None and self._response is not None and self._wire.is_stale():
            self.close()
        if self._wire is None:
            self._wire = Wire(self._endpoint.connect(), self._endpoint.url)
        return self._wire

    @property
    def reusable(self) -> bool:
        return self._wire is not None and self._response is not None and self._response.keeps_alive

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | BinaryIO | None = None,
        on_sent: Callable[[int], None] | None = None,
    ) -> None:
        """Send a request. A file is streamed, in chunks unless `headers` names its Content-Length."""
        wire = self.wire()
        self._response = None
        fields = {"Host": self._endpoint.host, "User-Agent": "flexc", **headers}
        streamed = body is not None and not isinstance(body, bytes)
        if isinstance(body, bytes):
            fields["Content-Length"] = str(len(body))
        elif streamed and "Content-Length" not in fields:
            fields["Transfer-Encoding"] = "chunked"
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        try:
            wire.sock.sendall(head.encode() + b"\r\n" + (body if isinstance(body, bytes) else b""))
            if body is not None and not isinstance(body, bytes):
                _send_stream(wire.sock, body, "Transfer-Encoding" in fields, on_sent)
        except OSError as error:
            # A server may refuse a body before it has read it all: then its answer is there to be read.
            if not (streamed and isinstance(error, (BrokenPipeError, ConnectionResetError))):
                raise ConnectionFailed(f"Failed sending to {self._endpoint.url}: {error.strerror or error}") from error

    def receive(self, method: str) -> Response:
        """The head of the answer to the request that was sent."""
        wire = self.wire()
        status_line, *lines = wire.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        try:
            status = int(status_line.split(" ", 2)[1])
        except (IndexError, ValueError) as error:
            raise ConnectionFailed(f"Failed reading from {self._endpoint.url}: the answer is not HTTP") from error
        if status == 100:
            return self.receive(method)
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        has_body = method != "HEAD" and status not in (101, 204, 304)
        self._response = Response(wire, status, headers, has_body)
        return self._response

    def abandon(self) -> None:
        """Leave the connection to the answer that is still being read: at its end it is closed."""
        if self._response is not None and not self._response.complete:
            self._response.abandoned = True
        else:
            self.close()

    def detach(self) -> Wire:
        """Hand the socket over after an upgrade (101): it is no longer HTTP."""
        wire, self._wire = self._wire, None
        assert wire is not None, "detach() follows receive()"
        return wire

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
        self._wire = None
        self._response = None


def _send_stream(
    sock: socket.socket | _socket.socket, stream: BinaryIO, chunked: bool, on_sent: Callable[[int], None] | None
) -> None:
    sent = 0
    while data := stream.read(CHUNK_BYTES):
        sock.sendall(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
        sent += len(data)
        if on_sent is not None:
            on_sent(sent)
    if chunked:
        sock.sendall(b"0\r\n\r\n")
