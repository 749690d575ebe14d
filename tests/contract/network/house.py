# SPDX-License-Identifier: Apache-2.0
"""A fake host with a dnsmasq, a store in memory, and the service on both."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from flexd.host.contract import Completed, Host
from flexd.host.fake.host import FakeHost
from flexd.network.networks import Networks
from flexd.operations.events import Events
from flexd.operations.locks import Locks
from flexd.projects.projects import Projects
from flexd.store.contract import Delete, Entry, If, Put, RevisionConflict

DONE = Completed(0, b"", b"")


def fake_host() -> FakeHost:
    host = FakeHost()
    host.processes.answer("dnsmasq", lambda argv, _stdin: _dnsmasq(host, argv))
    host.processes.answer("ip", Completed(0, b"[]", b""))
    host.processes.answer("nft", Completed(0, b'{"nftables": []}', b""))
    for program in ("tc", "bridge", "unshare", "nsenter"):
        host.processes.answer(program, DONE)
    return host


async def _dnsmasq(host: FakeHost, argv: Sequence[str]) -> Completed:
    """Reads its configuration, leaves its parent, and writes down its pid, as the real one."""
    return await asyncio.to_thread(_start_dnsmasq, host, argv)


def _start_dnsmasq(host: FakeHost, argv: Sequence[str]) -> Completed:
    config = Path(argv[1].removeprefix("--conf-file="))
    values = dict(line.partition("=")[::2] for line in config.read_text().splitlines())
    if "no-such-option" in values:
        return Completed(1, b"", f"dnsmasq: bad option at line 9 of {config}".encode())
    Path(values["pid-file"]).write_text(f"{host.processes.start(argv).pid}\n")
    return DONE


class MemoryMirror:
    """`flexd.store.documents.Mirror` without a store; `before_txn` may raise."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.before_txn: Callable[[], None] = lambda: None
        self._revision = 0

    def get(self, key: str) -> Entry | None:
        return self.entries.get(key)

    def list(self, prefix: str) -> list[Entry]:
        return [self.entries[key] for key in sorted(self.entries) if key.startswith(prefix)]

    async def txn(self, ops: Sequence[Put | Delete], conditions: Sequence[If] = ()) -> int:
        self.before_txn()
        for condition in conditions:
            entry = self.entries.get(condition.key)
            found = entry.revision if entry else 0
            if found != condition.revision:
                raise RevisionConflict(condition.key, condition.revision, found)
        self._revision += 1
        for op in ops:
            if isinstance(op, Put):
                self.entries[op.key] = Entry(op.key, op.value, self._revision)
            else:
                self.entries.pop(op.key, None)
        return self._revision


@asynccontextmanager
async def daemon(
    host: Host, mirror: MemoryMirror, directory: Path, events: Events | None = None
) -> AsyncIterator[Networks]:
    """The service from the daemon's start to its stop, which may be a crash."""
    projects = Projects(mirror, Locks())
    await projects.start()
    networks = Networks(
        host=host,
        mirror=mirror,
        projects=projects,
        locks=Locks(),
        events=events or Events(),
        directory=directory / "networks",
    )
    await networks.start()
    try:
        yield networks
    finally:
        await networks.stop()
