# SPDX-License-Identifier: Apache-2.0
"""An OCI registry over http, as a process of its own: `python registry_server.py DIRECTORY PORT`.

Serves `DIRECTORY/NAME/manifests/TAG` and `…/blobs/DIGEST` (oci_layers.py writes them). What is wrong with a repository
stands in its file `fault`: "stall", "truncate", "flood". `DIRECTORY/login` ("USER:PASSWORD"): nothing without it.
"""

import base64
import hashlib
import json
import re
import sys
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PATH = re.compile(r"/v2/(.+)/(manifests|blobs)/([A-Za-z0-9_.:-]+)")


class Registry(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, directory: Path, *args: object) -> None:
        self._directory = directory
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        login = self._directory / "login"
        if login.exists() and self.headers.get("Authorization") != _basic(login.read_text()):
            self._send(401, _error("UNAUTHORIZED", "authentication required"), "application/json", body=body)
            return
        if self.path == "/v2/":
            self._send(200, b"{}", "application/json", body=body)
            return
        match = _PATH.fullmatch(self.path)
        if match is None:
            self._send(404, b"{}", "application/json", body=body)
            return
        repository = self._directory / match[1]
        fault = (repository / "fault").read_text() if (repository / "fault").exists() else ""
        file = repository / match[2] / match[3]
        if not file.exists():
            code = "MANIFEST_UNKNOWN" if match[2] == "manifests" else "BLOB_UNKNOWN"
            self._send(404, _error(code, "manifest unknown"), "application/json", body=body)
            return
        data = file.read_bytes()
        kind = "application/octet-stream"
        if match[2] == "manifests":
            kind = json.loads(data).get("mediaType", "application/vnd.oci.image.manifest.v1+json")
            fault = ""
        self._send(200, data, kind, body=body, fault=fault)

    def _send(self, status: int, data: bytes, kind: str, *, body: bool, fault: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="registry"')
        self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(data).hexdigest()}")
        self.send_header("Docker-Distribution-API-Version", "registry/2.0")
        if fault == "flood":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self._write(data, fault)

    def _write(self, data: bytes, fault: str) -> None:
        if fault == "stall":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            time.sleep(3600)
        elif fault == "truncate":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault == "flood":
            while True:
                self.wfile.write(bytes(1 << 20))
        else:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def _basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


def _error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


class Server(ThreadingHTTPServer):
    """Ends without waiting for those that it lets wait."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, directory: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), partial(Registry, directory))

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away in the middle: that is what is tested."""


def main(directory: str, port: str) -> None:
    with Server(Path(directory), int(port)) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
