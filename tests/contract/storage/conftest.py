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
def place(driver_name: str, real: bool) -> Iterator[Path]:
    """A directory that other users can pass, as /var/lib is; whatever a test leaves mounted there is unmounted."""
    path = Path(tempfile.mkdtemp(prefix="flexd-test-storage-", dir="/var/tmp"))
    path.chmod(0o711)
    if real and driver_name == "btrfs":
        mount_btrfs(path)
    yield path
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in reversed([mount for mount in mounts if Path(mount).is_relative_to(path)]):
        subprocess.run(["umount", "-l", target], check=True)
    shutil.rmtree(path)


def mount_btrfs(path: Path) -> None:
    """A btrfs on a directory, in a file that only the mount keeps."""
    with tempfile.NamedTemporaryFile(dir="/var/tmp", prefix="flexd-test-storage-", suffix=".img") as image:
        image.truncate(2 << 30)
        for argv in (["mkfs.btrfs", "--quiet", image.name], ["mount", "-o", "loop", image.name, str(path)]):
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"no btrfs here: {(done.stderr.strip().splitlines() or [argv[0]])[-1]}")
    path.chmod(0o711)


@pytest.fixture
async def host(real: bool, driver_name: str) -> AsyncIterator[Host]:
    host = LinuxHost() if real else FakeHost()
    if isinstance(host, FakeHost) and driver_name == "btrfs":
        host.files.type = "btrfs"
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
