# SPDX-License-Identifier: Apache-2.0
"""Project quotas, on a small ext4 of our own where the kernel has them."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexd.host.contract import Host
from flexd.host.linux import LinuxHost

_PROJECT = 4242


@pytest.fixture
def disk(real: bool, place: Path) -> Iterator[Path]:
    target = place / "disk"
    target.mkdir()
    if not real:
        yield target
        return
    image = place / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota", image], check=True)
    done = subprocess.run(["mount", "-o", "loop,prjquota", image, target], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"this kernel mounts no ext4 with project quotas: {done.stderr.strip()}")
    yield target
    subprocess.run(["umount", target], check=True)


async def test_a_limit(host: Host, disk: Path) -> None:
    assert await host.quotas.available(disk) is None
    (disk / "volume/inner").mkdir(parents=True)
    (disk / "volume/inner/before").write_bytes(bytes(100_000))
    await host.quotas.assign(disk / "volume", _PROJECT)
    await host.quotas.set_limit(disk / "volume", _PROJECT, 1 << 20)
    (disk / "volume/inner/after").write_bytes(bytes(100_000))
    assert 200_000 <= await host.quotas.usage(disk / "volume", _PROJECT) < 400_000
    if isinstance(host, LinuxHost):
        # The root of a container has none of the host's capabilities; with CAP_SYS_RESOURCE limits are not for it.
        words = ["dd", "if=/dev/zero", f"of={disk / 'volume/inner/large'}", "bs=1M", "count=2"]
        argv = ["setpriv", "--inh-caps=-sys_resource", "--bounding-set=-sys_resource", *words]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True)
        assert done.returncode != 0
        assert "No space left" in done.stderr or "quota exceeded" in done.stderr
    await host.quotas.set_limit(disk / "volume", _PROJECT, 0)
    (disk / "volume/inner/large").write_bytes(bytes(2 << 20))


async def test_a_file_system_without(host: Host) -> None:
    if not isinstance(host, LinuxHost):
        pytest.skip("the fake host has quotas everywhere")
    fault = await host.quotas.available(Path("/proc"))
    assert fault is not None
    assert "/proc" in fault
