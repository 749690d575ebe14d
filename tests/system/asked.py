# SPDX-License-Identifier: Apache-2.0
"""A process of a test's own that answers each line with a line of JSON: a client that keeps one connection open."""

import contextlib
import json
import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.system.hosts import Person

_REPOSITORY = Path(__file__).parents[2]
_TIMEOUT_S = 60.0


class Asked:
    """`python -m MODULE ARGUMENTS…` at the person's place, until closed."""

    def __init__(self, person: Person, log: Path, module: str, *arguments: str) -> None:
        self._log = log
        with log.open("wb") as written:
            self._process = subprocess.Popen(
                person.argv(sys.executable, "-m", module, *arguments),
                cwd=_REPOSITORY,
                env=person.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
            )

    def ask(self, question: str = "") -> Any:
        """The answer; an error, with what the process said, if it has ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):
            stdin.write(f"{question}\n".encode())
            stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(stdout, selectors.EVENT_READ)
                line = stdout.readline() if selector.select(_TIMEOUT_S) else b""
        if not line:
            raise AssertionError(f"its connection did not last:\n{self._log.read_text()}")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
