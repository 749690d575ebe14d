# SPDX-License-Identifier: Apache-2.0
"""Editing a document of the API in the person's editor, or taking it from standard input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

from flexd.cli.errors import CliError
from flexd.cli.yamltext import dump, load
from flexd.client.errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_EDITORS = ("sensible-editor", "editor", "nano", "vi")


def edit_document(document: dict[str, Any], hint: str, apply: Callable[[dict[str, Any]], None]) -> None:
    """Let the person change a document and apply it; after a mistake the editor opens again with the same text."""
    if not sys.stdin.isatty():
        apply(_as_mapping(load(sys.stdin.read(), "standard input"), "standard input"))
        return
    comment = "".join(f"### {line}\n" for line in hint.strip().splitlines())
    text = before = f"{comment}\n{dump(document)}"
    while True:
        text = edit_text(text, ".yaml")
        if text == before:
            print("Nothing changed")
            return
        try:
            apply(_as_mapping(load(text), "the document"))
        except (CliError, ClientError) as error:
            print(f"Error: {error}\nPress enter to edit again, or ctrl+c to give up", file=sys.stderr)
            sys.stdin.readline()
        else:
            return


def edit_text(text: str, suffix: str) -> str:
    """The text as the person left it in the editor."""
    handle, path = tempfile.mkstemp(prefix="flexc-", suffix=suffix)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        run_editor(path)
        with open(path, encoding="utf-8") as file:
            return file.read()
    finally:
        os.unlink(path)


def run_editor(path: str) -> None:
    """Open a file in $VISUAL, $EDITOR or what Debian calls the editor, and wait."""
    import shlex

    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    argv = shlex.split(chosen) if chosen else [next(filter(shutil.which, _EDITORS), "vi")]
    try:
        subprocess.run([*argv, path], check=True)
    except OSError as error:
        raise CliError(f"Failed running the editor {argv[0]}: {error.strerror}. Choose one with $EDITOR") from error
    except subprocess.CalledProcessError as error:
        raise CliError(f"The editor {argv[0]} ended with status {error.returncode}; nothing was changed") from error


def _as_mapping(document: Any, source: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise CliError(f"Failed reading {source}: expected a mapping")
    return document
