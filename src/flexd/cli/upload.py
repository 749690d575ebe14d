# SPDX-License-Identifier: Apache-2.0
"""Files as bodies of requests."""

from __future__ import annotations

import os
import sys

from flexd.cli.errors import CliError
from flexd.cli.progress import TransferProgress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, BinaryIO

    from flexd.cli.context import Context
    from flexd.client.client import Client

_BOUNDARY = "flexc-part-5c1e0f6f8d2a4b7e"


def open_file(path: str) -> BinaryIO:
    """A local file, or an error that names it; `-` is standard input."""
    if path == "-":
        return sys.stdin.buffer
    try:
        return open(path, "rb")
    except OSError as error:
        raise CliError(f"Failed opening {path}: {error.strerror}") from error


def upload_file(
    context: Context, client: Client, path: str, file_name: str, headers: Mapping[str, str], label: str
) -> Any:
    """POST a file and wait for the operation; its last state."""
    with open_file(file_name) as stream:
        fields = {"Content-Type": "application/octet-stream", **headers}
        return send(context, client, path, stream, _size_of(stream), fields, label)


def send(
    context: Context,
    client: Client,
    path: str,
    stream: BinaryIO,
    size: int | None,
    headers: Mapping[str, str],
    label: str,
) -> Any:
    """POST a stream with a progress bar, then wait for the operation."""
    fields = {**headers, **({"Content-Length": str(size)} if size is not None else {})}
    shown = not context.quiet and sys.stderr.isatty()
    with TransferProgress(label, size, shown) as progress:
        reply = client.request("POST", path, stream, headers=fields, on_sent=progress.moved)
    return context.wait(client, reply.operation, label) if reply.operation else reply.metadata


def _size_of(stream: BinaryIO) -> int | None:
    """Bytes of a regular file; None for pipes, which are sent in chunks."""
    import stat

    found = os.fstat(stream.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None


class Multipart:
    """Several files as one multipart/form-data body, read piece by piece."""

    def __init__(self, parts: Sequence[tuple[str, str]]) -> None:
        self._pieces: list[tuple[bytes, BinaryIO | None]] = []
        self.size = 0
        for name, path in parts:
            head = (
                f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; '
                f'filename="{os.path.basename(path)}"\r\nContent-Type: application/octet-stream\r\n\r\n'
            ).encode()
            stream = open_file(path)
            self._pieces += [(head, None), (b"", stream), (b"\r\n", None)]
            self.size += len(head) + os.fstat(stream.fileno()).st_size + 2
        end = f"--{_BOUNDARY}--\r\n".encode()
        self._pieces.append((end, None))
        self.size += len(end)
        self.content_type = f"multipart/form-data; boundary={_BOUNDARY}"

    def read(self, limit: int) -> bytes:
        """The next piece, empty at the end; a short one is no end."""
        while self._pieces:
            data, stream = self._pieces[0]
            if stream is not None:
                data = stream.read(limit)
                if data:
                    return data
                stream.close()
            self._pieces.pop(0)
            if data:
                return data
        return b""
