# SPDX-License-Identifier: Apache-2.0
"""The hosts that drivers are tried on: the fake one; the real one only in a network namespace made for tests."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from flexd.host.contract import Host
from flexd.host.linux import LinuxHost
from tests.contract.network.house import fake_host

# Set by tests/system/test_network.py, which runs these tests, too.
OWN_NAMESPACE = "FLEXD_TEST_OWN_NETWORK"


@pytest.fixture(params=["fake", "real"])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    if request.param == "real" and OWN_NAMESPACE not in os.environ:
        pytest.skip("the real host is tried in a network namespace of its own, by tests/system/test_network.py")
    host: Host = fake_host() if request.param == "fake" else LinuxHost()
    yield host
    await host.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not pytest's own, which keeps other users, such as dnsmasq's, out."""
    with TemporaryDirectory(prefix="fxn", dir="/tmp") as path:
        Path(path).chmod(0o711)
        yield Path(path)
