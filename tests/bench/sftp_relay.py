# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench.sftp_relay SOCKET INSTANCE`: stdin and stdout joined with an instance's sftp; for sftp -D."""

import os
import socket
import sys
import threading

_PIECE_BYTES = 1 << 18


def main() -> None:
    path, instance = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    lines = (f"GET /1.0/instances/{instance}/sftp HTTP/1.1", "Host: bench", "Upgrade: sftp", "Connection: Upgrade")
    connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        if not piece:
            sys.exit(f"no answer: {head!r}")
        head += piece
    if b" 101 " not in head.split(b"\r\n", 1)[0]:
        sys.exit(f"refused: {head!r}")
    threading.Thread(target=_outwards, args=(connection,), daemon=True).start()
    while data := os.read(0, _PIECE_BYTES):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def _outwards(connection: socket.socket) -> None:
    while data := connection.recv(_PIECE_BYTES):
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]
    os._exit(0)


if __name__ == "__main__":
    main()
