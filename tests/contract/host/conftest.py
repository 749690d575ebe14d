# SPDX-License-Identifier: Apache-2.0
"""Every facet on a fake host, and on the real one where the tests run as root."""

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

LINK_PREFIX = "fxht"


@pytest.fixture(params=["fake", "real"])
def real(request: pytest.FixtureRequest) -> bool:
    if request.param == "real" and os.geteuid() != 0:
        pytest.skip("mounts, links and cgroups need root")
    return bool(request.param == "real")


@pytest.fixture
async def host(real: bool) -> AsyncIterator[Host]:
    host: Host = LinuxHost() if real else FakeHost()
    yield host
    await host.close()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on a disk (tmpfs cannot be idmapped before Linux 6.3); what stays mounted in it is unmounted. On a
    private mount: where systemd is the host's init, mounts would be seen below every view of the same directory."""
    path = Path(tempfile.mkdtemp(prefix="fxh-test-", dir="/var/tmp"))
    if os.geteuid() == 0:
        subprocess.run(["mount", "--bind", "--make-private", path, path], check=True)
    (path / "place").mkdir()
    yield path / "place"
    targets = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in reversed([each for each in targets if each == str(path) or each.startswith(f"{path}/")]):
        subprocess.run(["umount", "-l", target.replace("\\040", " ")], check=True)
    shutil.rmtree(path)


@pytest.fixture
async def links(host: Host) -> AsyncIterator[Host]:
    """The host; links that a test made are removed."""
    yield host
    for link in await host.links.all():
        if link.name.startswith(LINK_PREFIX):
            await host.links.delete(link.name)
