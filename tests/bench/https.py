# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench.https`: HTTPS with client certificates, flexd beside Debian's lxd. As root.

One client, the same for both, in the server's own network namespace; CPU is the server's, from /proc/PID/stat.
"""

import argparse
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.bench.peers import Server, start_flexd, start_lxd
from tests.bench.place import Place

_ADDRESS = ("127.0.0.1", 8443)
_REQUEST = b"GET %b HTTP/1.1\r\nHost: bench\r\n\r\n"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--handshakes", type=int, default=500)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        print(json.dumps(_measure(Path(arguments.client), arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="fxb-https-", dir="/var/tmp") as directory:
        for start in (start_flexd, start_lxd):
            print(json.dumps(_run(Path(directory), start, sys.argv[1:])), flush=True)


def _run(directory: Path, start: Callable[[Place], Server], options: list[str]) -> dict[str, object]:
    with ExitStack() as stack:
        place = Place(directory / start.__name__)
        stack.callback(place.close)
        server = start(place)
        keys = directory / f"{start.__name__}-client"
        _make_certificate(keys)
        der = ssl.PEM_cert_to_DER_cert(keys.with_suffix(".crt").read_text())
        server.api.call("PATCH", "/1.0", {"config": {"core.https_address": ":".join(map(str, _ADDRESS))}})
        body = {"type": "client", "name": "bench", "certificate": b64encode(der).decode()}
        server.api.call("POST", "/1.0/certificates", body)
        # The client has as many descriptors as the daemon: half of 20,000 would not do for both in one process.
        argv = [sys.executable, "-m", "tests.bench.https", "--client", f"{keys}:{server.pid}", *options]
        result: dict[str, object] = json.loads(place.run(*argv, env=dict(os.environ)).splitlines()[-1])
        return {"server": server.name, **result}


def _make_certificate(path: Path) -> None:
    """What Debian's `lxc` makes: self-signed ECDSA P-384."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes"]
    argv += ["-keyout", f"{path}.key", "-out", f"{path}.crt", "-days", "30", "-subj", "/CN=bench"]
    subprocess.run(argv, check=True, capture_output=True)


def _measure(where: Path, arguments: argparse.Namespace) -> dict[str, object]:
    keys, _, pid = str(where).rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(f"{keys}.crt", f"{keys}.key")
    result: dict[str, object] = {}

    def one_handshake() -> None:
        with _connect(context) as connection:
            _get(connection, b"/1.0")

    kept = _connect(context)
    _get(kept, b"/1.0")
    for name, times, work in (
        ("handshake and GET /1.0", arguments.handshakes, one_handshake),
        ("GET /1.0", arguments.requests, lambda: _get(kept, b"/1.0")),
        ("GET /1.0/instances", arguments.requests, lambda: _get(kept, b"/1.0/instances")),
    ):
        cpu, begun = _cpu_s(pid), time.monotonic()
        for _ in range(times):
            work()
        took_s = time.monotonic() - begun
        result[name] = {"per_s": round(times / took_s), "cpu_us": round((_cpu_s(pid) - cpu) / times * 1e6)}
    result["idle"] = _idle(context, pid, arguments.idle)
    return result


def _idle(context: ssl.SSLContext, pid: str, count: int) -> dict[str, object]:
    before = _rss_kib(pid)
    held = []
    for _ in range(count):
        connection = _connect(context)
        _get(connection, b"/")
        held.append(connection)
    after = _rss_kib(pid)
    begun = time.monotonic()
    _get(held[-1], b"/1.0")  # the last one: lxd closes idle ones after 30 s
    return {
        "connections": count,
        "rss_before_mib": before // 1024,
        "rss_mib": after // 1024,
        "kib_each": round((after - before) / max(1, count), 1),
        "request_then_ms": round((time.monotonic() - begun) * 1000, 2),
    }


def _connect(context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(_ADDRESS)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(plain)


def _get(connection: ssl.SSLSocket, path: bytes) -> None:
    """An answer with a Content-Length, or in chunks (lxd's longer ones)."""
    connection.sendall(_REQUEST % path)
    data = bytearray()
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, rest = bytes(data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if b"content-length" in fields:
        left = int(fields[b"content-length"]) - len(rest)
        while left > 0:
            left -= len(_some(connection))
        return
    while not rest.endswith(b"0\r\n\r\n"):
        rest += _some(connection)


def _some(connection: ssl.SSLSocket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise ConnectionError("the server closed the connection")
    return data


def _cpu_s(pid: str) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _rss_kib(pid: str) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


if __name__ == "__main__":
    main()
