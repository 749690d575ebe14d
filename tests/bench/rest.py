# SPDX-License-Identifier: Apache-2.0
"""A plain client of the API on a unix socket; the same code drives flexd and LXD, on one kept connection."""

import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, unix_connect

# Of one answer: a copy of 3 GB on a busy machine takes minutes.
_TIMEOUT_S = 1200.0
# http.client sends files in blocks of 8 KiB, whose cost would be all that is measured.
_BLOCK_BYTES = 256 * 1024


class ApiError(Exception):
    """An error envelope, or an operation that failed."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("bench", timeout=_TIMEOUT_S, blocksize=_BLOCK_BYTES)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


class Api:
    """One connection; not for several threads at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = _UnixConnection(path)

    def raw(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> bytes:
        self._connection.request(method, path, body, dict(headers or {}))
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 400:
            raise ApiError(f"{method} {path}: {answer.status} {data[:500].decode(errors='replace')}")
        return data

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[http.client.HTTPResponse]:
        """The answer to a GET, whose body the caller reads to its end."""
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        if answer.status >= 400:
            raise ApiError(f"GET {path}: {answer.status} {answer.read()[:500].decode(errors='replace')}")
        yield answer

    def request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The envelope."""
        data = None if body is None else json.dumps(body).encode()
        envelope: dict[str, Any] = json.loads(self.raw(method, path, data, {"Content-Type": "application/json"}))
        return envelope

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's metadata, or that of its operation once it has ended."""
        envelope = self.request(method, path, body)
        return self.wait(envelope["operation"]) if envelope["type"] == "async" else envelope["metadata"]

    def wait(self, operation: str) -> Any:
        result = json.loads(self.raw("GET", f"{operation}/wait"))["metadata"]
        if result["status_code"] != 200:
            raise ApiError(f"{result['description']}: {result['err']}")
        return result["metadata"]

    def get(self, path: str) -> Any:
        return json.loads(self.raw("GET", path))["metadata"]

    def websocket(self, operation: str, secret: str) -> ClientConnection:
        uri = f"ws://bench{operation}/websocket?secret={secret}"
        return unix_connect(os.fspath(self.path), uri, compression=None, max_size=None)

    def close(self) -> None:
        self._connection.close()

    def answers(self, timeout_s: float) -> bool:
        """Whether the server is up within timeout_s."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ApiError, http.client.HTTPException):
                self.get("/1.0")
                return True
            self.close()
            time.sleep(0.05)
        return False
