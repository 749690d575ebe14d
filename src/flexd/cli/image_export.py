# SPDX-License-Identifier: Apache-2.0
"""Receiving an exported image: one file, or two as multipart/form-data."""

from __future__ import annotations

import os
import re
import sys

from flexd.cli.download import save
from flexd.cli.errors import CliError
from flexd.cli.progress import TransferProgress
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from flexd.cli.context import Context
    from flexd.client.client import Client

_FILENAME = re.compile(r'filename="?([^";\r\n]+)"?')


def export_image(context: Context, client: Client, fingerprint: str, target: str) -> None:
    """Save the file or files of an image in a directory, or under a name."""
    response = client.open("GET", path_of("images", fingerprint, "export"))
    content_type = response.headers.get("content-type", "")
    shown = not context.quiet and sys.stderr.isatty()
    with TransferProgress("Exporting the image", response.length, shown) as progress:
        chunks = _counted(response.chunks(), progress)
        if content_type.startswith("multipart/form-data"):
            boundary = content_type.partition("boundary=")[2].strip('"')
            for index, (name, part) in enumerate(split_parts(chunks, boundary)):
                save(part, destination(target, name, ".root" if index else ""))
        else:
            name = _filename(response.headers.get("content-disposition", "")) or fingerprint
            save(chunks, destination(target, name))


def export_files(client: Client, fingerprint: str, directory: str) -> list[str]:
    """The file or files of an image, in this order, under names of the server's in a directory."""
    response = client.open("GET", path_of("images", fingerprint, "export"))
    content_type = response.headers.get("content-type", "")
    if not content_type.startswith("multipart/form-data"):
        path = destination(directory, fingerprint)
        save(response.chunks(), path)
        return [path]
    paths = []
    for index, (_, part) in enumerate(
        split_parts(response.chunks(), content_type.partition("boundary=")[2].strip('"'))
    ):
        paths.append(destination(directory, f"{fingerprint}.{index}"))
        save(part, paths[-1])
    return paths


def _counted(chunks: Iterator[bytes], progress: TransferProgress) -> Iterator[bytes]:
    count = 0
    for chunk in chunks:
        count += len(chunk)
        progress.moved(count)
        yield chunk


def destination(target: str, name: str, suffix: str = "") -> str:
    """Where to save: under the server's file name in a directory, or under a chosen name with that one's ending."""
    safe = os.path.basename(name)  # whatever the server says, it is only ever a name in the chosen directory
    if target == "-":
        return target
    if not target or os.path.isdir(target):
        return os.path.join(target or ".", safe)
    ending = safe[safe.find(".") :] if "." in safe else ""
    return target + suffix + ("" if target.endswith(ending) else ending.removeprefix(suffix))


def _filename(disposition: str) -> str:
    match = _FILENAME.search(disposition)
    return match[1] if match else ""


def split_parts(chunks: Iterator[bytes], boundary: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The parts of a multipart body, each with its file name; a part must be read before the next is asked for."""
    mark = f"\r\n--{boundary}".encode()
    source = _Source(chunks)
    source.buffer += b"\r\n"  # the first mark has no line before it
    for _ in source.until(mark):
        pass
    while source.take_line() != "--":
        headers = ""
        while line := source.take_line():
            headers += line + "\n"
        yield _filename(headers), source.until(mark)


class _Source:
    """Pieces of a body with a buffer in front, so that a mark may lie across two of them."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.buffer = bytearray()
        self._chunks = chunks

    def _more(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise CliError("Failed reading the image: the answer ended in the middle of a file")
        self.buffer += chunk

    def take_line(self) -> str:
        while (end := self.buffer.find(b"\r\n")) < 0:
            self._more()
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        return line.decode("latin-1")

    def until(self, mark: bytes) -> Iterator[bytes]:
        """What comes before the mark, which is dropped."""
        while (end := self.buffer.find(mark)) < 0:
            sure = len(self.buffer) - len(mark)
            if sure > 0:
                yield bytes(self.buffer[:sure])
                del self.buffer[:sure]
            self._more()
        if end:
            yield bytes(self.buffer[:end])
        del self.buffer[: end + len(mark)]
