# SPDX-License-Identifier: Apache-2.0
"""Every driver on a fake host, and on the real one where the tests run as root."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from flexd.host.contract import Host
from flexd.host.fake import FakeHost
from flexd.host.linux import LinuxHost
from flexd.storage import drivers
from flexd.storage.contract import Driver
from tests.contract.storage.places import MakeDriver


@pytest.fixture(params=drivers.names())
def driver_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["fake", "real"])
def real(request: pytest.FixtureRequest) -> bool:
    if request.param == "real" and os.geteuid() != 0:
        pytest.skip("mounting needs root")
    return bool(request.param == "real")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users can pass, as /var/lib is; whatever a test leaves mounted there is unmounted."""
    path = Path(tempfile.mkdtemp(prefix="flexd-test-storage-", dir="/var/tmp"))
    path.chmod(0o711)
    yield path
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in reversed([mount for mount in mounts if Path(mount).is_relative_to(path)]):
        subprocess.run(["umount", "-l", target], check=True)
    shutil.rmtree(path)


@pytest.fixture
async def host(real: bool) -> AsyncIterator[Host]:
    host: Host = LinuxHost() if real else FakeHost()
    yield host
    await host.close()


@pytest.fixture
async def make(host: Host, place: Path, driver_name: str) -> AsyncIterator[MakeDriver]:
    made: list[Driver] = []
    kind = drivers.load(driver_name)
    fault = await kind(host=host, pool="", directory=place, config={}).probe()
    if fault is not None:
        pytest.skip(fault)

    def make(name: str, *, source: str = "") -> Driver:
        config = {"source": source} if source else {}
        made.append(kind(host=host, pool=name, directory=place / "flexd" / "storage-pools" / name, config=config))
        return made[-1]

    yield make
    for driver in made:
        await driver.close()


@pytest.fixture
async def driver(make: MakeDriver) -> Driver:
    """A pool `p`, ready for use."""
    driver = make("p")
    await driver.create_pool()
    return driver


@pytest.fixture
def path(place: Path) -> Path:
    """Where the pool `p` lies."""
    return place / "flexd" / "storage-pools" / "p"
