# SPDX-License-Identifier: Apache-2.0
"""Files of a container, running and stopped."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest

from flexd.api.errors import BadRequest, Conflict, NotFound
from flexd.runtime.contract import ContainerFiles
from tests.contract.runtime.places import Place


@pytest.fixture(params=["running", "stopped"])
async def files(request: pytest.FixtureRequest, place: Place) -> AsyncIterator[ContainerFiles]:
    container = await place.runtime.start(place.spec()) if request.param == "running" else None
    files = await place.files(container)
    yield files
    await files.close()


async def write(files: ContainerFiles, path: str, data: bytes, flags: int = os.O_TRUNC, **options: int) -> None:
    fd = await files.open(path, os.O_WRONLY | os.O_CREAT | flags, **options)
    await asyncio.to_thread(_write, fd, data)


async def read(files: ContainerFiles, path: str) -> bytes:
    return await asyncio.to_thread(_read, await files.open(path, os.O_RDONLY))


def _write(fd: int, data: bytes) -> None:
    with open(fd, "wb") as file:
        file.write(data)


def _read(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


async def test_a_new_file_has_the_mode_and_owner_asked_for(files: ContainerFiles) -> None:
    await write(files, "/tmp/a", b"hello", mode=0o4751, uid=12, gid=34)
    info = await files.stat("/tmp/a")
    assert (info.kind, info.mode, info.uid, info.gid) == ("file", 0o751, 12, 34) or info.mode == 0o4751
    assert info.size_bytes == 5
    assert await read(files, "/tmp/a") == b"hello"


async def test_an_existing_file_keeps_mode_and_owner(files: ContainerFiles) -> None:
    await write(files, "/tmp/a", b"hello", mode=0o640, uid=12, gid=34)
    await write(files, "/tmp/a", b"!", os.O_APPEND, mode=0o600, uid=1, gid=1)
    info = await files.stat("/tmp/a")
    assert (info.mode, info.uid, info.gid) == (0o640, 12, 34)
    assert await read(files, "/tmp/a") == b"hello!"


async def test_directories(files: ContainerFiles) -> None:
    await files.make_directory("/tmp/d", mode=0o700, uid=5, gid=6)
    await files.make_directory("/tmp/d", mode=0o755, uid=0, gid=0)
    await write(files, "/tmp/d/b", b"")
    await write(files, "/tmp/d/a", b"")
    info = await files.stat("/tmp/d")
    assert (info.kind, info.mode, info.uid, info.gid, info.entries) == ("directory", 0o700, 5, 6, ("a", "b"))
    with pytest.raises(Conflict):
        await files.remove("/tmp/d")
    for path in ("/tmp/d/a", "/tmp/d/b", "/tmp/d"):
        await files.remove(path)
    with pytest.raises(NotFound):
        await files.stat("/tmp/d")


async def test_what_is_missing_is_not_found(files: ContainerFiles) -> None:
    for path in ("/nothing", "/etc/passwd/x"):
        with pytest.raises(NotFound, match=path):
            await files.stat(path)
    with pytest.raises(NotFound, match="/no/directory"):
        await files.open("/no/directory", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(NotFound):
        await files.remove("/nothing")


async def test_a_directory_cannot_be_written(files: ContainerFiles) -> None:
    with pytest.raises(BadRequest):
        await files.open("/tmp", os.O_WRONLY | os.O_CREAT)


async def test_links_are_followed_unless_asked_not_to(files: ContainerFiles) -> None:
    await files.make_symlink("/tmp/l", "../etc/passwd", uid=7, gid=8)
    link = await files.stat("/tmp/l", follow=False)
    assert (link.kind, link.target, link.uid, link.gid) == ("symlink", "../etc/passwd", 7, 8)
    assert (await files.stat("/tmp/l")).kind == "file"
    assert (await read(files, "/tmp/l")).startswith(b"root:")
    with pytest.raises(Conflict):
        await files.make_symlink("/tmp/l", "x", uid=0, gid=0)


@pytest.mark.parametrize("target", ["/../../../../../etc/passwd", "../../../../../../../etc/passwd"])
async def test_no_path_leaves_the_root(files: ContainerFiles, target: str) -> None:
    inside = await read(files, "/etc/passwd")
    await files.make_symlink("/tmp/out", target, uid=0, gid=0)
    assert await read(files, "/tmp/out") == inside
    assert await read(files, "/../../../../../../../etc/passwd") == inside
    await write(files, "/tmp/../../../../../../tmp/flexd-test-escape", b"inside")
    assert await asyncio.to_thread(os.path.exists, "/tmp/flexd-test-escape") is False
    assert await read(files, "/tmp/flexd-test-escape") == b"inside"


async def test_owner_and_mode_can_be_changed_apart(files: ContainerFiles) -> None:
    await write(files, "/tmp/a", b"", mode=0o600, uid=1, gid=2)
    await files.set_owner("/tmp/a", uid=3, gid=None, mode=None)
    await files.set_owner("/tmp/a", uid=None, gid=None, mode=0o644)
    info = await files.stat("/tmp/a")
    assert (info.uid, info.gid, info.mode) == (3, 2, 0o644)


async def test_the_owner_of_a_link_is_its_own(files: ContainerFiles) -> None:
    await files.make_symlink("/tmp/l", "/etc/passwd", uid=1, gid=1)
    await files.set_owner("/tmp/l", uid=4, gid=4, mode=0o777)
    assert (await files.stat("/tmp/l", follow=False)).uid == 4
    assert (await files.stat("/etc/passwd")).uid == 0


async def test_a_fifo_does_not_hang_whoever_opens_it(place: Place, files: ContainerFiles) -> None:
    await asyncio.to_thread(os.mkfifo, place.root / "tmp/fifo")
    await asyncio.to_thread(os.chmod, place.root / "tmp/fifo", 0o666)
    assert (await files.stat("/tmp/fifo")).kind == "other"
    for flags in (os.O_WRONLY, os.O_RDONLY):
        with pytest.raises(BadRequest):
            await files.open("/tmp/fifo", flags)


async def test_requests_at_the_same_time(files: ContainerFiles) -> None:
    await asyncio.gather(*(write(files, f"/tmp/{n}", str(n).encode()) for n in range(8)))
    assert await asyncio.gather(*(read(files, f"/tmp/{n}") for n in range(8))) == [str(n).encode() for n in range(8)]


async def test_sftp(files: ContainerFiles) -> None:
    await write(files, "/tmp/a", b"hello", uid=3, gid=4)
    fd = await files.sftp()
    await asyncio.to_thread(_use_sftp, fd)
    assert await read(files, "/tmp/b") == b"x" * 100_000


class _Channel(socket.socket):
    """As much of an SSH channel as paramiko's client needs."""

    closed = False

    def get_name(self) -> str:
        return "test"

    def get_id(self) -> int:
        return 0

    def get_transport(self) -> "_Channel":
        return self

    def get_log_channel(self) -> str:
        return "test"

    def get_hexdump(self) -> bool:
        return False


def _use_sftp(fd: int) -> None:
    from paramiko import SFTPClient

    with _Channel(fileno=fd) as channel:
        client = SFTPClient(channel)  # type: ignore[arg-type]
        assert client.listdir("/tmp") == ["a"]
        assert client.normalize("/tmp/../etc") == "/etc"
        with client.open("/tmp/b", "w") as file:
            file.write(b"x" * 100_000)
        client.chmod("/tmp/b", 0o600)
        assert client.stat("/tmp/b").st_mode == 0o100600
        client.symlink("/etc/passwd", "/tmp/l")
        assert client.readlink("/tmp/l") == "/etc/passwd"
        client.mkdir("/tmp/d")
        client.posix_rename("/tmp/a", "/tmp/d/a")
        assert client.open("/tmp/d/a").read() == b"hello"
        client.remove("/tmp/d/a")
        client.rmdir("/tmp/d")
        with pytest.raises(FileNotFoundError):
            client.stat("/tmp/d")
