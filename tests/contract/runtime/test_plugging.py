# SPDX-License-Identifier: Apache-2.0
"""Mounts and devices given to a container that runs, and taken from it."""

import os
from pathlib import Path

import pytest

from flexd.api.idmap import IdMap
from flexd.host.contract import HostError
from flexd.runtime.contract import MountSpec, RunningContainer
from tests.contract.runtime.places import Place, run


@pytest.fixture
def source(directory: Path) -> Path:
    path = directory / "given"
    path.mkdir()
    (path / "file").write_text("from the host\n")
    return path


def _spec(source: Path, target: str = "srv/made/here", *options: str) -> MountSpec:
    return MountSpec(str(source), target, options=(*(options or ("bind",)), "create=dir"))


async def _read(place: Place, container: RunningContainer, path: str) -> bytes:
    if not place.real:
        mounts = place.runtime.mounts_of(place.name)  # type: ignore[attr-defined]
        target = os.path.dirname(path).lstrip("/")
        return (Path(mounts[target].source) / os.path.basename(path)).read_bytes() if target in mounts else b""
    return (await run(place.runtime, container, "cat", path))[1]


async def test_a_mount_comes_and_goes(place: Place, source: Path) -> None:
    container = await place.runtime.start(place.spec())
    await place.runtime.add_mount(container, _spec(source))
    assert await _read(place, container, "/srv/made/here/file") == b"from the host\n"
    runtime = place.restart()
    await runtime.remove_mount(container, _spec(source))
    assert await _read(place, container, "/srv/made/here/file") == b""
    await runtime.remove_mount(container, _spec(source))


async def test_what_was_there_at_the_start_can_be_taken(place: Place, source: Path) -> None:
    container = await place.runtime.start(place.spec(mounts=(_spec(source),)))
    assert await _read(place, container, "/srv/made/here/file") == b"from the host\n"
    await place.runtime.remove_mount(container, _spec(source))
    assert await _read(place, container, "/srv/made/here/file") == b""


async def test_a_source_that_is_not_there(place: Place, source: Path) -> None:
    container = await place.runtime.start(place.spec())
    with pytest.raises(HostError, match="No such file"):
        await place.runtime.add_mount(container, _spec(source / "nope"))


async def test_a_container_that_ended(place: Place, source: Path) -> None:
    container = await place.runtime.start(place.spec())
    await place.runtime.kill(container)
    with pytest.raises(HostError):
        await place.runtime.add_mount(container, _spec(source))
    await place.runtime.remove_mount(container, _spec(source))


async def test_devices(place: Place) -> None:
    container = await place.runtime.start(place.spec(idmap=IdMap()))
    await place.runtime.allow_device(container, "c 10:237 rwm")
    await place.runtime.deny_device(container, "c 10:237 rwm")


# --- what only a kernel can show ---------------------------------------------------------------------------------


@pytest.fixture
def kernel(place: Place) -> Place:
    if not place.real:
        pytest.skip("the fake runtime has no mount namespaces")
    return place


async def test_readonly_and_a_file(kernel: Place, source: Path) -> None:
    container = await kernel.runtime.start(kernel.spec())
    await kernel.runtime.add_mount(container, _spec(source, "mnt", "bind", "ro", "nosuid"))
    status, _, errors = await run(kernel.runtime, container, "sh", "-c", "echo x > /mnt/file")
    assert (status, b"Read-only" in errors) == (1, True)
    file = MountSpec(str(source / "file"), "run/one/file", options=("bind", "create=file"))
    await kernel.runtime.add_mount(container, file)
    assert (await run(kernel.runtime, container, "cat", "/run/one/file"))[1] == b"from the host\n"
    await kernel.runtime.remove_mount(container, file)


async def test_links_lead_nowhere_outside(kernel: Place, source: Path, directory: Path) -> None:
    container = await kernel.runtime.start(kernel.spec())
    outside = directory / "outside"
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    script = f"mkdir -p {outside}; ln -s /proc/1/root{outside} /mnt; ln -s {outside} /opt"
    await run(kernel.runtime, container, "sh", "-c", script)
    for target in ("mnt/a", "opt/b/c"):
        await kernel.runtime.add_mount(container, _spec(source, target))
    assert list(outside.iterdir()) == []
    assert (await run(kernel.runtime, container, "cat", f"{outside}/b/c/file"))[1] == b"from the host\n"


async def test_what_is_mounted_over_it_stays(kernel: Place, source: Path) -> None:
    container = await kernel.runtime.start(kernel.spec())
    await kernel.runtime.add_mount(container, _spec(source, "mnt"))
    await run(kernel.runtime, container, "sh", "-c", "umount /mnt; mount -t tmpfs own /mnt; touch /mnt/own")
    await kernel.runtime.remove_mount(container, _spec(source, "mnt"))
    assert (await run(kernel.runtime, container, "ls", "/mnt"))[1] == b"own\n"


async def test_a_device_is_usable_only_when_allowed(kernel: Place, directory: Path) -> None:
    node = directory / "kmsg"
    os.mknod(node, 0o600 | 0o020000, os.makedev(1, 11))
    container = await kernel.runtime.start(kernel.spec(idmap=IdMap()))
    spec = MountSpec(str(node), "dev/given", options=("bind", "create=file"))
    await kernel.runtime.add_mount(container, spec)

    async def opens() -> bool:
        return (await run(kernel.runtime, container, "sh", "-c", ": > /dev/given"))[0] == 0

    assert not await opens()
    await kernel.runtime.allow_device(container, "c 1:11 rwm")
    assert await opens()
    await kernel.runtime.deny_device(container, "c 1:11 rwm")
    assert not await opens()
