# SPDX-License-Identifier: Apache-2.0
"""The fake runtime always; the real one as root on a machine with liblxc and a static busybox."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from flexd.host.contract import HostError
from flexd.host.linux import LinuxHost
from flexd.runtime.fake import FakeRuntime
from flexd.runtime.lxc import LxcRuntime
from flexd.runtime.paths import group_prefix
from tests.contract.runtime.places import Place, make_root


def missing() -> str:
    """Why no real container can run here; "" if one can."""
    if os.geteuid() != 0:
        return "containers need root"
    if shutil.which("lxc-start") is None:
        return "there is no lxc-start"
    busybox = shutil.which("busybox")
    # ldd(1) fails for what is not linked dynamically.
    if busybox is None or subprocess.run(["ldd", busybox], capture_output=True).returncode == 0:
        return "there is no static busybox (Debian: busybox-static)"
    return ""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Passable for the container's root, as $FLEXD_DIR is."""
    path = Path(tempfile.mkdtemp(prefix="flexd-test-runtime-", dir="/var/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["fake", "real"])
async def place(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Place]:
    root = directory / "root"
    if request.param == "fake":
        make_root(root, busybox=None)
        fake = FakeRuntime(directory)
        yield Place(fake, lambda: fake, root, real=False)
        return
    reason = missing()
    if reason:
        pytest.skip(reason)
    make_root(root, busybox=Path(shutil.which("busybox") or ""))
    host = LinuxHost()
    runtimes: list[LxcRuntime] = []

    def restart() -> LxcRuntime:
        runtimes.append(LxcRuntime(host=host, directory=directory / "containers", log_directory=directory / "logs"))
        return runtimes[-1]

    place = Place(restart(), restart, root, real=True)
    yield place
    container = await runtimes[-1].find(place.name)
    if container is not None:
        await runtimes[-1].kill(container)
    for runtime in runtimes:
        await runtime.close()
    await _remove_group(host, group_prefix(directory / "containers"))
    await host.close()


async def _remove_group(host: LinuxHost, group: str) -> None:
    """A monitor whose start failed is seen to end a moment before it leaves its cgroup."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await host.cgroups.remove(group)
            except HostError:
                await asyncio.sleep(0.01)
