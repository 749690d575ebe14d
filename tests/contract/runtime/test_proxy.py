# SPDX-License-Identifier: Apache-2.0
"""Proxies: a process that forwards; what it forwards only a kernel can show."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from flexd.host.contract import HostError, ProcessRef
from flexd.runtime.contract import ProxyAddress, ProxySpec, RunningContainer
from tests.contract.runtime.places import Place

TCP, UDP, UNIX = "tcp", "udp", "unix"


async def test_it_starts_and_stops(place: Place, directory: Path) -> None:
    container = await place.runtime.start(place.spec())
    spec = ProxySpec(((ProxyAddress(TCP, "127.0.0.1", 0), ProxyAddress(TCP, "127.0.0.1", 7)),))
    record = directory / "record"
    await place.runtime.start_proxy(container, spec, record)
    runtime = place.restart()
    assert await runtime.proxy_runs(record)
    await runtime.stop_proxy(record)
    assert not await runtime.proxy_runs(record)
    await runtime.stop_proxy(record)


# --- what only a kernel can show ---------------------------------------------------------------------------------


class Ends:
    """A running container and what was started for a test."""

    def __init__(self, place: Place, container: RunningContainer, record: Path) -> None:
        self.place, self.container, self.record = place, container, record

    async def start(self, *pairs: tuple[ProxyAddress, ProxyAddress], **options: object) -> None:
        spec = ProxySpec(pairs, **options)  # type: ignore[arg-type]
        await self.place.runtime.start_proxy(self.container, spec, self.record)

    def inside(self, *argv: str) -> list[str]:
        """A command of the host in the container's network namespace."""
        return ["nsenter", "-t", str(self.container.init.pid), "-n", "--", *argv]


@pytest.fixture
async def ends(place: Place, directory: Path) -> AsyncIterator[Ends]:
    if not place.real:
        pytest.skip("the fake runtime forwards nothing")
    container = await place.runtime.start(place.spec())
    made = Ends(place, container, directory / "record")
    subprocess.run(made.inside("ip", "link", "set", "lo", "up"), check=True)
    yield made
    await place.runtime.stop_proxy(made.record)


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


_SERVER = """
import socket, sys
family, kind, address = sys.argv[1:4]
if family == "unix":
    server = socket.socket(socket.AF_UNIX); server.bind(address.replace("@", chr(0)))
else:
    host, port = address.rsplit(":", 1)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    server.bind((host, int(port)))
if kind == "udp":
    print("ready", flush=True)
    while True:
        data, sender = server.recvfrom(65536); server.sendto(b"inside:" + data, sender)
server.listen()
print("ready", flush=True)
while True:
    client, _ = server.accept()
    client.sendall(b"inside:")
    while data := client.recv(65536):
        client.sendall(data)
    client.close()
"""


@pytest.fixture
async def serve_inside(ends: Ends) -> AsyncIterator[object]:
    """Starts echo servers in the container's network namespace."""
    started: list[subprocess.Popen[bytes]] = []

    def serve(family: str, kind: str, address: str) -> None:
        argv = ends.inside("python3", "-c", _SERVER, family, kind, address)
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == b"ready\n"

    yield lambda *words: asyncio.to_thread(serve, *words)
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def _exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sending = asyncio.create_task(_send(writer, data))
    answer = await asyncio.wait_for(reader.read(), 30)
    await sending
    writer.close()
    return answer


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
    writer.write_eof()


async def test_tcp_into_the_container(ends: Ends, serve_inside) -> None:
    await serve_inside("inet", TCP, "127.0.0.1:7007")
    port = free_port()
    await ends.start((ProxyAddress(TCP, "127.0.0.1", port), ProxyAddress(TCP, "127.0.0.1", 7007)))
    data = bytes(range(256)) * 4096  # more than any buffer on the way
    assert await _exchange(port, data) == b"inside:" + data
    answers = await asyncio.gather(*(_exchange(port, b"%d" % number) for number in range(50)))
    assert answers == [b"inside:%d" % number for number in range(50)]


async def test_tcp_out_of_the_container(ends: Ends) -> None:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await ends.start((ProxyAddress(TCP, "127.0.0.1", 7008), ProxyAddress(TCP, "127.0.0.1", port)), inside=True)
    script = "import socket; s = socket.create_connection(('127.0.0.1', 7008)); s.sendall(b'out'); print(s.recv(9))"
    done = await asyncio.to_thread(
        subprocess.run, ends.inside("python3", "-c", script), capture_output=True, check=True
    )
    assert done.stdout == b"b'out'\n"
    server.close()


async def test_udp_by_sender(ends: Ends, serve_inside) -> None:
    await serve_inside("inet", UDP, "127.0.0.1:7009")
    port = free_port(socket.SOCK_DGRAM)
    await ends.start((ProxyAddress(UDP, "127.0.0.1", port), ProxyAddress(UDP, "127.0.0.1", 7009)))

    def ask(text: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.settimeout(30)
            sender.sendto(text, ("127.0.0.1", port))
            return sender.recv(100)

    assert await asyncio.to_thread(ask, b"one") == b"inside:one"
    assert await asyncio.to_thread(ask, b"two") == b"inside:two"


async def test_the_sender_is_told(ends: Ends, serve_inside) -> None:
    await serve_inside("inet", TCP, "127.0.0.1:7010")
    port = free_port()
    pair = (ProxyAddress(TCP, "127.0.0.1", port), ProxyAddress(TCP, "127.0.0.1", 7010))
    await ends.start(pair, proxy_protocol=True)
    answer = await _exchange(port, b"x")
    assert answer.startswith(b"inside:PROXY TCP4 127.0.0.1 127.0.0.1 ")
    assert answer.endswith(b" %d\r\nx" % port)


async def test_unix_sockets(ends: Ends, serve_inside, directory: Path) -> None:
    """Abstract ones belong to a network namespace, others to a root directory."""
    await serve_inside("unix", TCP, "@fxd-abstract")
    path = directory / "listen.sock"
    pair = (ProxyAddress(UNIX, str(path)), ProxyAddress(UNIX, "@fxd-abstract"))
    await ends.start(pair, socket_mode=0o600, socket_uid=1234)
    found = path.stat()
    assert (found.st_mode & 0o7777, found.st_uid) == (0o600, 1234)
    reader, writer = await asyncio.open_unix_connection(str(path))
    await _send(writer, b"hello")
    assert await reader.read() == b"inside:hello"
    writer.close()


async def test_a_socket_in_the_containers_root(ends: Ends) -> None:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pair = (ProxyAddress(UNIX, "/run/given.sock"), ProxyAddress(TCP, "127.0.0.1", port))
    await ends.start(pair, inside=True, socket_mode=0o666)
    there = Path(f"/proc/{ends.container.init.pid}/root/run/given.sock")
    assert there.is_socket()
    assert there.stat().st_uid == 1_000_000
    server.close()


async def test_descriptors_go_along(ends: Ends, directory: Path) -> None:
    """As between a Wayland client and its compositor."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(directory / "server.sock"))
        server.listen()
        pair = (ProxyAddress(UNIX, "@fxd-fds"), ProxyAddress(UNIX, str(directory / "server.sock")))
        await ends.start(pair, inside=True)
        script = (
            "import os, socket\nr, w = os.pipe()\ns = socket.socket(socket.AF_UNIX)\ns.connect(chr(0) + 'fxd-fds')\n"
            "socket.send_fds(s, [b'take'], [w])\nos.close(w)\nprint(os.read(r, 9))"
        )
        argv = ends.inside("python3", "-c", script)
        client = subprocess.Popen(argv, stdout=subprocess.PIPE)

        def answer() -> bytes:
            accepted, _ = server.accept()
            with accepted:
                data, fds, _, _ = socket.recv_fds(accepted, 100, 4)
                with open(fds[0], "wb") as pipe:
                    pipe.write(b"given")
                return data

        assert await asyncio.to_thread(answer) == b"take"
        output, _ = await asyncio.to_thread(client.communicate)
        assert output == b"b'given'\n"


async def test_nobody_answers(ends: Ends) -> None:
    port = free_port()
    await ends.start((ProxyAddress(TCP, "127.0.0.1", port), ProxyAddress(TCP, "127.0.0.1", 9)))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()


async def test_an_address_that_is_taken(ends: Ends) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=rf"listen on tcp:127.0.0.1:{port}: Address already in use"):
            await ends.start((ProxyAddress(TCP, "127.0.0.1", port), ProxyAddress(TCP, "127.0.0.1", 9)))
    pair = (ProxyAddress(TCP, "198.18.0.1", 80), ProxyAddress(TCP, "127.0.0.1", 9))
    with pytest.raises(HostError, match=r"listen on tcp:198\.18\.0\.1:80: Cannot assign"):
        await ends.start(pair, inside=True)


async def test_what_it_costs(ends: Ends) -> None:
    """A fork shares what it does not change."""
    port = free_port()
    await ends.start((ProxyAddress(TCP, "127.0.0.1", port), ProxyAddress(TCP, "127.0.0.1", 9)))
    process = msgspec.json.decode(ends.record.read_bytes(), type=ProcessRef)
    rollup = await asyncio.to_thread(Path(f"/proc/{process.pid}/smaps_rollup").read_text)
    private = next(line for line in rollup.splitlines() if line.startswith("Private_Dirty:"))
    assert int(private.split()[1]) < 2048
    # Nothing of the helper's connections and pipes stays open in it.
    fds = await asyncio.to_thread(lambda: len(list(Path(f"/proc/{process.pid}/fd").iterdir())))
    assert fds <= 6
