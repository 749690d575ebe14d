# SPDX-License-Identifier: Apache-2.0
"""Every kind of device on fakes; on this machine as root with liblxc, where the kind finds what it needs."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.contract.devices.bench import Bench, fake_bench, real_bench, unmount_all
from tests.contract.runtime.conftest import missing


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fxd-test-", dir="/var/tmp"))
    path.chmod(0o711)
    yield path
    unmount_all(path)
    shutil.rmtree(path)


@pytest.fixture(params=["fake", "real"])
async def bench(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Bench]:
    if request.param == "fake":
        async with fake_bench(directory) as made:
            yield made
        return
    reason = missing()
    if reason:
        pytest.skip(reason)
    async with real_bench(directory) as made:
        yield made
