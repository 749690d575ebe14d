# SPDX-License-Identifier: Apache-2.0
"""A fake server, and a client that talks to it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexd.client.client import Client
from flexd.client.endpoint import UnixEndpoint
from tests.unit.client.fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    # Not tmp_path: a unix socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="fxc-") as directory, FakeServer(Path(directory) / "socket") as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    made = Client(UnixEndpoint(str(server.socket_path)))
    yield made
    made.close()
