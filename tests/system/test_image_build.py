# SPDX-License-Identifier: Apache-2.0
"""debian/12 as it is built: what is in it, and what a cancelled build leaves. Needs root and the Debian mirror."""

import asyncio
import filecmp
import io
import lzma
import stat
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flexd.api.image import ImagesPostSource
from flexd.host.linux import LinuxHost
from flexd.images.archive import Archives
from flexd.images.build import prepare_build
from flexd.images.formats import parse_metadata
from flexd.images.incoming import Incoming
from tests.system.images import build_image, debian_image, split_body
from tests.system.machine import machine


@pytest.fixture
def image(root_only: None) -> tuple[Path, Path]:
    return debian_image()


def test_metadata(image: tuple[Path, Path]) -> None:
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(image[0].read_bytes()))) as archive:
        file = archive.extractfile("metadata.yaml")
        assert file is not None
        metadata = parse_metadata(file.read(), '"debian/12"')
    assert metadata.properties["os"] == "Debian"
    assert metadata.properties["release"] == "bookworm"
    assert metadata.properties["description"].startswith("Debian bookworm ")


async def test_root_file_system(image: tuple[Path, Path], tmp_path: Path) -> None:
    root, stage = tmp_path / "rootfs", tmp_path / "stage"
    root.mkdir()
    stage.mkdir()
    host = LinuxHost()
    await Archives(host, stage).unpack(image[1], '"debian/12"', root, lambda _percent: None, unified=False)
    assert (root / "etc/machine-id").read_text() == ""
    assert not (root / "etc/hostname").exists()
    assert (root / "etc/resolv.conf").readlink() == Path("../run/resolv.conf")
    assert (root / "etc/shadow").read_text().startswith("root:*:")
    assert list((root / "var/lib/apt/lists").glob("*Packages*")) == []
    modes = [path.lstat().st_mode for path in (root / "dev").iterdir()]
    assert not any(stat.S_ISCHR(mode) or stat.S_ISBLK(mode) for mode in modes)
    assert (root / "sbin/init").exists()
    assert (root / "etc/os-release").exists()
    packages = subprocess.run(["chroot", root, "dpkg", "--audit"], capture_output=True, text=True, check=True)
    assert packages.stdout == ""
    masked = root / "etc/systemd/system/modprobe@.service"
    assert masked.readlink() == Path("/dev/null")
    await host.files.remove_tree(root)
    await host.close()


async def test_same_packages_same_image(image: tuple[Path, Path], tmp_path: Path) -> None:
    again, once_more = ((tmp_path / f"{n}.tar.xz", tmp_path / f"{n}.squashfs") for n in ("again", "more"))
    await build_image("debian/12", *again)
    if again[0].read_bytes() != image[0].read_bytes():  # the archive has moved on since the first was built
        image = again
        again = once_more
        await build_image("debian/12", *again)
    assert [filecmp.cmp(*pair, shallow=False) for pair in zip(image, again, strict=True)] == [True, True]


def test_cloud_image_configures_itself(root_only: None, state_root: Path) -> None:
    """By the daemon's answers (cloud-init's LXD source), and with those turned off by the seed on disk."""
    data = "#cloud-config\nwrite_files: [{path: /etc/greeting, content: hello}]\n"
    with machine(state_root / "cloud") as made:
        made.import_body(*split_body(*debian_image("debian/12/cloud")), "cloud")
        for name, devlxd in (("asked", "true"), ("seeded", "false")):
            settings = ("-c", f"cloud-init.user-data={data}", "-c", f"security.devlxd={devlxd}")
            made.flexc("launch", "cloud", name, *settings)
            made.flexc("exec", name, "--", "cloud-init", "status", "--wait")
            assert made.flexc("exec", name, "--", "cat", "/etc/greeting", "/etc/hostname").stdout == f"hello{name}\n"
            source = made.flexc("exec", name, "--", "cat", "/run/cloud-init/cloud-id").stdout.strip()
            assert source == ("lxd" if devlxd == "true" else "nocloud")


async def test_cancelled_build_leaves_nothing(root_only: None, tmp_path: Path) -> None:
    host = LinuxHost()
    incoming = await Incoming.make(tmp_path)
    installing = asyncio.Event()

    def progress(metadata: Mapping[str, Any]) -> None:
        if "Unpacking" in metadata["build_progress"]:
            installing.set()

    build = await prepare_build(host, ImagesPostSource(type="build", name="debian/12"))
    task = asyncio.create_task(build.into(incoming, progress))
    done, _ = await asyncio.wait(
        [task, asyncio.create_task(installing.wait())], return_when=asyncio.FIRST_COMPLETED, timeout=200
    )
    assert task not in done, task.exception()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await incoming.discard()
    assert list(tmp_path.iterdir()) == []
    running = subprocess.run(["ps", "-eo", "args"], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert str(tmp_path) not in running
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    await host.close()
