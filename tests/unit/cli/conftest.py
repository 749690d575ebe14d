# SPDX-License-Identifier: Apache-2.0
"""`flexc` run in this process against a fake server."""

import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from flexd.cli.main import main
from tests.unit.client.fake_server import FakeServer


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Keyboard(io.TextIOWrapper):
    """Standard input at which a person sits."""

    def isatty(self) -> bool:
        return True


Run = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    # Not tmp_path: a unix socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="fxc-") as directory, FakeServer(Path(directory) / "socket") as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The person's own directory, empty."""
    monkeypatch.setenv("FLEXC_CONF", str(tmp_path / "settings"))
    return tmp_path / "settings"


@pytest.fixture
def run(
    server: FakeServer, settings: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Run:
    """`run("list", "-f", "csv", stdin="…")`; `person`: that is typed, not piped."""
    monkeypatch.setenv("FLEXD_SOCKET", str(server.socket_path))

    def run_flexc(*argv: str, stdin: str = "", person: bool = False) -> Result:
        kind = Keyboard if person else io.TextIOWrapper
        content = kind(io.BytesIO(stdin.encode()))
        monkeypatch.setattr("sys.stdin", content)
        capfdbinary.readouterr()
        status = main(argv)
        out, err = capfdbinary.readouterr()
        return Result(status, out.decode(), err.decode())

    return run_flexc
