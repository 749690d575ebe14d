# SPDX-License-Identifier: Apache-2.0
"""What is done to one running container: devices plugged in and out, and 1 GiB of a file in and out."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.peers import PREFIX, RestPeer
from tests.bench.report import Report
from tests.bench.storage import download

_GIB = 1 << 30
_NAME = f"{PREFIX}-in"
_HEADERS = {"X-LXD-type": "file", "Content-Type": "application/octet-stream"}


class InsideMeasurements:
    """`top`: where the file of 1 GiB is made, and what is attached."""

    def __init__(self, report: Report, top: Path) -> None:
        self._report, self._top = report, top
        self._blob = top / "blob"
        top.mkdir()
        (top / "disk").mkdir()

    @contextmanager
    def _timed(self, key: str, peer: RestPeer, unit: float = 1000) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self._report.add(key, peer.title, (time.monotonic() - begin) * unit)

    @contextmanager
    def _running(self, peer: RestPeer) -> Iterator[None]:
        peer.create(_NAME, nic=False)
        try:
            peer.start(_NAME)
            yield
        finally:
            peer.remove(_NAME)

    def plug(self, peer: RestPeer, times: int) -> None:
        disk = {"type": "disk", "source": str(self._top / "disk"), "path": "/mnt/plugged"}
        nic = {"type": "nic", "network": f"{PREFIX}br0", "name": "eth7"}
        with self._running(peer):
            for _ in range(times):
                for kind, entry in (("disk", disk), ("nic", nic)):
                    with self._timed(f"plug_{kind}", peer):
                        _change(peer, {f"p{kind}": entry}, [])
                    with self._timed(f"unplug_{kind}", peer):
                        _change(peer, {}, [f"p{kind}"])

    def transfer(self, peer: RestPeer, times: int) -> None:
        if not self._blob.exists():
            with self._blob.open("wb") as file:
                for _ in range(_GIB >> 20):
                    file.write(os.urandom(1 << 20))
        with self._running(peer):
            for _ in range(times):
                self._files(peer)
                self._sftp(peer)

    def _files(self, peer: RestPeer) -> None:
        path = f"/1.0/instances/{_NAME}/files?path=/root/large"
        headers = _HEADERS | {"Content-Length": str(_GIB)}
        os.sync()
        with self._timed("push_large", peer, 1), self._blob.open("rb") as body:
            peer.api.raw("POST", path, body, headers)
        os.sync()
        with self._timed("pull_large", peer, 1):
            assert download(peer, path) == _GIB

    def _sftp(self, peer: RestPeer) -> None:
        """OpenSSH's client, its pipe joined with the instance's sftp by the same relay for every peer."""
        relay = f"{sys.executable} -m tests.bench.sftp_relay {shlex.quote(str(peer.api.path))} {_NAME}"
        for key, line in (("sftp_put", f"put {self._blob} /root/copy"), ("sftp_get", "get /root/copy /dev/null")):
            os.sync()
            with self._timed(key, peer, 1):
                done = subprocess.run(
                    ["sftp", "-q", "-b", "-", "-D", relay], input=line, capture_output=True, text=True, check=False
                )
            if done.returncode != 0:
                raise RuntimeError(f"sftp of {peer.title}: {done.stdout}{done.stderr}")


def _change(peer: RestPeer, added: dict[str, Any], removed: list[str]) -> None:
    path = f"/1.0/instances/{_NAME}"
    shown = peer.api.get(path)
    devices = {name: entry for name, entry in shown["devices"].items() if name not in removed} | added
    keys = ("architecture", "config", "description", "ephemeral", "profiles")
    peer.api.call("PUT", path, {key: shown[key] for key in keys} | {"devices": devices})
