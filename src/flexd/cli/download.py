# SPDX-License-Identifier: Apache-2.0
"""Answers into files."""

from __future__ import annotations

import os
import sys

from flexd.cli.errors import CliError
from flexd.cli.progress import TransferProgress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from flexd.cli.context import Context
    from flexd.client.client import Client


def download(context: Context, client: Client, path: str, target: str, label: str) -> None:
    """Save an answer; `-` is standard output. A file appears under its name only when it is complete."""
    response = client.open("GET", path)
    shown = not context.quiet and sys.stderr.isatty()
    with TransferProgress(label, response.length, shown) as progress:
        save(response.chunks(), target, progress)


def save(chunks: Iterable[bytes], target: str, progress: TransferProgress | None = None) -> None:
    """Write pieces to a file or to standard output."""
    if target == "-":
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    partial = f"{target}.part"
    try:
        with open(partial, "wb") as file:
            count = 0
            for chunk in chunks:
                file.write(chunk)
                count += len(chunk)
                if progress is not None:
                    progress.moved(count)
        os.replace(partial, target)
    except OSError as error:
        raise CliError(f"Failed writing {target}: {error.strerror}") from error
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
