# SPDX-License-Identifier: Apache-2.0
"""A whole daemon on a fake host and a fake runtime, spoken to over its unix socket."""

import contextlib
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from blockbuster import BlockBuster

from flexd.daemon import Daemon, open_daemon
from flexd.host.fake import FakeHost
from flexd.host.terminals import LinuxTerminals
from flexd.runtime.fake import FakeRuntime
from tests.contract.network.house import fake_host

URL = "http://flexd"
EMPTY = b'{"type":"sync","status":"Success","status_code":200,"operation":"","error_code":0,"error":"","metadata":{}}\n'
METADATA = b"architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  os: tiny\n  release: '1'\n"


class Answer:
    """Status, headers and body of one answer."""

    def __init__(self, response: aiohttp.ClientResponse, body: bytes, envelope: Any) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = body
        self.envelope = envelope

    @property
    def metadata(self) -> Any:
        return self.envelope["metadata"]

    @property
    def error(self) -> str:
        return str(self.envelope["error"])


class Client:
    def __init__(self, session: aiohttp.ClientSession, daemon: Daemon, host: FakeHost, runtime: FakeRuntime) -> None:
        self.session = session
        self.daemon = daemon
        self.host = host
        self.runtime = runtime

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """JSON or bytes out; the envelope back where there is one."""
        data = {"data": io.BytesIO(body)} if isinstance(body, bytes) else {"json": body} if body is not None else {}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, URL + path, headers=names, **data) as response:
            text = await response.read()
            is_json = response.content_type == "application/json" and text
            return Answer(response, text, await response.json() if is_json else None)

    async def done(self, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        """An asynchronous request, and its operation when it has ended well."""
        answer = await self.call(method, path, body, **headers)
        assert answer.status == 202, answer.body
        ended = await self.call("GET", f"{answer.envelope['operation']}/wait?timeout=20")
        assert ended.metadata["status"] == "Success", ended.metadata
        operation: dict[str, Any] = ended.metadata
        return operation

    async def prepare(self) -> None:
        """A pool, and a profile with a root disk."""
        await self.call("POST", "/1.0/storage-pools", {"name": "default", "driver": "dir"})
        root = {"type": "disk", "path": "/", "pool": "default"}
        await self.call("PATCH", "/1.0/profiles/default", {"devices": {"root": root}})

    async def launch(self, name: str) -> None:
        await self.create(name)
        await self.done("PUT", f"/1.0/instances/{name}/state", {"action": "start", "timeout": 30})

    async def create(self, name: str) -> None:
        await self.done("POST", "/1.0/instances", {"name": name, "source": {"type": "none"}})
        for directory in ("root", "etc", "tmp"):
            await self.call("POST", f"/1.0/instances/{name}/files?path=/{directory}", X_LXD_type="directory")
        await self.call("POST", f"/1.0/instances/{name}/files?path=/etc/hostname", b"tiny\n")


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            file = tarfile.TarInfo(name)
            file.size, file.mode = len(content), 0o755
            archive.addfile(file, io.BytesIO(content))
    return buffer.getvalue()


def tiny_image() -> bytes:
    return tar_of({"metadata.yaml": METADATA, "rootfs/sbin/init": b"#!", "rootfs/etc/hostname": b"tiny\n"})


@contextlib.asynccontextmanager
async def serving(directory: Path, blocker: BlockBuster) -> AsyncIterator[Client]:
    host, runtime = fake_host(), FakeRuntime(directory)
    blocker.deactivate()  # composing a daemon scans folders; nobody waits for its loop yet
    daemon = await open_daemon(directory, host=host, runtime=runtime, terminals=LinuxTerminals())
    await daemon.start(host_rebooted=False)
    socket = directory / "unix.socket"
    await daemon.serve(socket, "root")
    blocker.activate()
    try:
        connector = aiohttp.UnixConnector(str(socket))
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            yield Client(session, daemon, host, runtime)
    finally:
        await daemon.close()


@pytest.fixture
async def client(tmp_path: Path, blockbuster: BlockBuster) -> AsyncIterator[Client]:
    """Nothing in it yet."""
    async with serving(tmp_path, blockbuster) as found:
        yield found


@pytest.fixture
async def busy(tmp_path: Path, blockbuster: BlockBuster) -> AsyncIterator[Client]:
    """With a pool, and c1 running, with /root and /etc/hostname."""
    async with serving(tmp_path, blockbuster) as found:
        await found.prepare()
        await found.launch("c1")
        yield found
