# SPDX-License-Identifier: Apache-2.0
"""`Client`: the API's envelope, operations, streams and websockets over one server."""

from __future__ import annotations

import json
import select

from flexd.client.connection import Connection
from flexd.client.errors import ClientError, ConnectionFailed, NotFoundError, OperationFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, BinaryIO

    from flexd.client.connection import Response, Wire
    from flexd.client.endpoint import Endpoint
    from flexd.client.websocket import WebSocket

    # Called with the operation's state whenever it changes.
    OnUpdate = Callable[[Mapping[str, Any]], None]
    Body = Mapping[str, Any] | list[Any] | bytes | BinaryIO | None

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_SUCCESS = 200
_NO_CONTENT_STATUSES = frozenset((101, 204))


def quote(text: str) -> str:
    """Percent-encode one segment of a path or one value of a query (`urllib.parse` costs 5 ms to import)."""
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text.encode())


def path_of(*segments: str) -> str:
    """`/1.0/instances/c1/state` of its segments, each quoted."""
    return "/1.0" + "".join("/" + quote(segment) for segment in segments)


class Reply:
    """An answer in the envelope: metadata, and either an ETag or the path of an operation under way."""

    __slots__ = ("etag", "location", "metadata", "operation")

    def __init__(self, metadata: Any, operation: str, etag: str, location: str) -> None:
        self.metadata = metadata
        self.operation = operation
        self.etag = etag
        self.location = location


class Client:
    """One server, seen in one project ("" is the server's default). Not for use by several threads at once."""

    def __init__(self, endpoint: Endpoint, project: str = "", trace: Callable[[str], None] | None = None) -> None:
        self.endpoint = endpoint
        self.project = project
        self._trace = trace
        self._idle: Connection | None = None
        self._server: dict[str, Any] | None = None

    def close(self) -> None:
        if self._idle is not None:
            self._idle.close()
        self._idle = None

    # Requests in the envelope.

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """The metadata of a GET."""
        return self.request("GET", path, query=query).metadata

    def exists(self, path: str) -> bool:
        """True unless the server answers 404."""
        try:
            self.get(path)
        except NotFoundError:
            return False
        return True

    def request(
        self,
        method: str,
        path: str,
        body: Body = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        etag: str = "",
        on_sent: Callable[[int], None] | None = None,
    ) -> Reply:
        """Ask, and read the envelope. `etag` is sent as If-Match. A dict or list is sent as JSON, a file as it is."""
        fields = dict(headers or {})
        if etag:
            fields["If-Match"] = etag
        response = self.open(method, path, body, query=query, headers=fields, on_sent=on_sent)
        return self._envelope(response, path)

    def perform(
        self,
        method: str,
        path: str,
        body: Body = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        etag: str = "",
        on_sent: Callable[[int], None] | None = None,
        on_update: OnUpdate | None = None,
    ) -> Any:
        """Like `request`, but if the server answers with an operation, wait for its end and return its last state."""
        reply = self.request(method, path, body, query=query, headers=headers, etag=etag, on_sent=on_sent)
        if not reply.operation:
            return reply.metadata
        return self.wait(reply.operation, on_update)

    def server(self) -> dict[str, Any]:
        """`GET /1.0`, asked once."""
        if self._server is None:
            metadata: dict[str, Any] = self.get("/1.0")
            self._server = metadata
        return self._server

    def has_extension(self, name: str) -> bool:
        return name in self.server().get("api_extensions", ())

    # Operations.

    def wait(self, operation: str, on_update: OnUpdate | None = None) -> dict[str, Any]:
        """Wait for the end of an operation (its path or id); raises `OperationFailed` unless it succeeds."""
        path = operation if operation.startswith("/") else path_of("operations", operation)
        path = path.partition("?")[0]
        state = self.get(f"{path}/wait") if on_update is None else self._wait_watching(path, on_update)
        return check_operation(state)

    def _wait_watching(self, path: str, on_update: OnUpdate) -> dict[str, Any]:
        """Ask for the end on one connection while events tell of the progress on another."""
        identifier = path.rpartition("/")[2]
        events = self.websocket("/1.0/events", {"type": "operation"})
        try:
            waiter = self.send_request("GET", f"{path}/wait")
            while not select.select([waiter], [], [], 0)[0]:
                if not events.has_unread:
                    select.select([waiter.fileno()] + ([] if events.closed else [events.fileno()]), [], [])
                    if select.select([waiter], [], [], 0)[0]:
                        break
                for message in events.read_messages():
                    update = json.loads(message).get("metadata") or {}
                    if update.get("id") == identifier:
                        on_update(update)
            state: dict[str, Any] = self.finish_request(waiter, "GET", path).metadata
            return state
        finally:
            events.close()

    def cancel(self, operation: str) -> None:
        """Ask the server to cancel an operation."""
        self.request("DELETE", operation.partition("?")[0])

    # Below the envelope: streams, upgrades.

    def open(
        self,
        method: str,
        path: str,
        body: Body = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        on_sent: Callable[[int], None] | None = None,
    ) -> Response:
        """Ask, and return the answer with its body unread (a file to download). Errors of the server are raised."""
        connection = self.send_request(method, path, body, query=query, headers=headers, on_sent=on_sent)
        response = self._receive(connection, method)
        if response.status >= 400:
            self._envelope(response, path)
        return response

    def send_request(
        self,
        method: str,
        path: str,
        body: Body = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        on_sent: Callable[[int], None] | None = None,
    ) -> Connection:
        """Send only; `finish_request` reads the envelope when the connection has become readable."""
        connection = self._take_connection()
        fields = dict(headers or {})
        if isinstance(body, (dict, list)):
            fields["Content-Type"] = "application/json"
            payload: bytes | BinaryIO | None = json.dumps(body).encode()
        else:
            payload = body  # type: ignore[assignment]  # a Mapping is always a dict here
        target = self.target(path, query)
        if self._trace is not None:
            self._trace(f"{method} {target}" + (f" {json.dumps(body)}" if isinstance(body, (dict, list)) else ""))
        try:
            connection.send(method, target, fields, payload, on_sent)
        except BaseException:  # also an interrupt: half a request must never be followed by another one
            connection.close()
            raise
        return connection

    def finish_request(self, connection: Connection, method: str, path: str) -> Reply:
        return self._envelope(self._receive(connection, method), path)

    def websocket(self, path: str, query: Mapping[str, str] | None = None) -> WebSocket:
        """Open a websocket; it blocks until told otherwise."""
        from flexd.client.websocket import WebSocket, accept_of, new_key, upgrade_headers

        key = new_key()
        wire, headers = self._upgraded(path, query, upgrade_headers(key))
        if headers.get("sec-websocket-accept") != accept_of(key):
            wire.close()
            raise ConnectionFailed(f"Failed opening a websocket at {path}: the server did not answer the handshake")
        return WebSocket(wire)

    def upgrade(self, path: str, protocol: str) -> Wire:
        """Turn a connection into a raw one, such as LXD's `sftp`."""
        return self._upgraded(path, None, {"Connection": "Upgrade", "Upgrade": protocol})[0]

    def _upgraded(
        self, path: str, query: Mapping[str, str] | None, headers: Mapping[str, str]
    ) -> tuple[Wire, dict[str, str]]:
        connection = Connection(self.endpoint)
        try:
            connection.send("GET", self.target(path, query), headers)
            response = connection.receive("GET")
            if response.status == 101:
                return connection.detach(), response.headers
            self._envelope(response, path)
            raise ClientError(f"Failed opening {path}: the server does not speak {headers['Upgrade']} there")
        finally:
            connection.close()  # nothing to close after `detach`

    def target(self, path: str, query: Mapping[str, str] | None) -> str:
        """Path and query of a request; the project is added unless the caller names one."""
        values = dict(query or {})
        if self.project and "project=" not in path and "all-projects" not in values:
            values.setdefault("project", self.project)
        if not values:
            return path
        text = "&".join(f"{name}={quote(value)}" for name, value in values.items())
        return f"{path}{'&' if '?' in path else '?'}{text}"

    def _take_connection(self) -> Connection:
        idle, self._idle = self._idle, None
        if idle is not None:
            if idle.reusable:
                return idle
            idle.abandon()
        return Connection(self.endpoint)

    def _receive(self, connection: Connection, method: str) -> Response:
        try:
            response = connection.receive(method)
        except ConnectionFailed:
            connection.close()
            raise
        self._idle = connection  # taken again once the response has been read to its end
        return response

    def _envelope(self, response: Response, path: str) -> Reply:
        raw = response.read()
        if response.status in _NO_CONTENT_STATUSES:
            return Reply(None, "", "", "")
        try:
            envelope = json.loads(raw)
        except ValueError as error:
            raise ConnectionFailed(
                f"Failed reading the answer of {self.endpoint.url} to {path}: HTTP {response.status}, not JSON"
            ) from error
        if response.status >= 400 or envelope.get("type") == "error":
            raise _error_of(envelope, response.status)
        headers = response.headers
        return Reply(
            envelope.get("metadata"),
            envelope.get("operation", ""),
            headers.get("etag", ""),
            headers.get("location", ""),
        )


def check_operation(state: Any) -> dict[str, Any]:
    """The state of a finished operation; raises if it failed or was cancelled."""
    finished: dict[str, Any] = state
    if finished.get("status_code") not in (_SUCCESS, 103):  # 103: still running, after a wait with a timeout
        message = finished.get("err") or f"Operation ended as {finished.get('status')}"
        raise OperationFailed(message, int(finished.get("status_code") or 0), finished)
    return finished


def _error_of(envelope: Mapping[str, Any], http_status: int) -> ClientError:
    status = int(envelope.get("error_code") or http_status)
    message = envelope.get("error") or f"The server answered {status}"
    kind = NotFoundError if status == 404 else ClientError
    return kind(message, status)
