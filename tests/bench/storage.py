# SPDX-License-Identifier: Apache-2.0
"""Snapshot, restore, copy and export of containers of 300 MB and 3 GB, on each kind of pool; a table of its own."""

import http.client
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.bench.peers import PREFIX, RestPeer, add_ext4
from tests.bench.report import Report, Row

_PIECE_BYTES = 1 << 20

# Beside Debian's 244 MB: many files of the size that packages have; and, of the large one, 2.7 GB more.
_SMALL_FILES = "mkdir -p /srv/small && cd /srv/small && for i in $(seq 2000); do head -c 28000 /dev/urandom >$i; done"
_LARGE_FILES = "mkdir -p /srv/large && cd /srv/large && for i in $(seq 270); do head -c 10000000 /dev/urandom >$i; done"
_CHANGE = "head -c 10000000 /dev/urandom >/srv/small/new && rm /srv/small/1?"

_SIZES = {"300": ("300 MB", (_SMALL_FILES,)), "3000": ("3 GB", (_SMALL_FILES, _LARGE_FILES))}
_STEPS = {
    "snapshot": "snapshot, stopped",
    "snapshot_running": "snapshot, running",
    "restore": "restore",
    "copy": "copy",
    "export": "export, uncompressed, to the client's last byte",
    "export_usual": "export, as the client asks for it by default (gzip)",
}
STORAGE_ROWS = tuple(
    Row(f"{step}_{size}", f"{title}, {shown}") for size, (shown, _) in _SIZES.items() for step, title in _STEPS.items()
)


def add_peers(peers: list[RestPeer]) -> list[RestPeer]:
    """Beside lxd's pools, which are there already, pools of flexd on file systems of their own as those are."""
    flexd = peers[0].server
    place = add_ext4(flexd.place, "ext4-flexd")
    for driver in ("overlay", "dir"):
        flexd.place.run("mkdir", f"{place}/{driver}")
        flexd.add_pool(f"own-{driver}", driver, source=f"{place}/{driver}")
    flexd.add_pool("own-btrfs", "btrfs", size="16GiB")
    ours = [RestPeer(f"flexd {driver}", flexd, f"own-{driver}") for driver in ("overlay", "btrfs", "dir")]
    return ours + [peer for peer in peers if peer.server is not flexd]


def new_report(peers: list[RestPeer], facts: Mapping[str, Any]) -> Report:
    pairs = [("lxd dir", "flexd dir"), ("lxd btrfs", "flexd btrfs"), ("lxd btrfs", "flexd overlay")]
    titles = [peer.title for peer in peers]
    return Report(titles, dict(facts), known=STORAGE_ROWS, pairs=[pair for pair in pairs if pair[0] in titles])


class StorageMeasurements:
    def __init__(self, report: Report) -> None:
        self._report = report

    def round(self, peer: RestPeer, size: str) -> None:
        """One container, from nothing to nothing."""
        name = f"{PREFIX}-s{size}"
        peer.create(name, nic=False)
        try:
            peer.start(name)
            for command in _SIZES[size][1]:
                run_inside(peer, name, command)
            self._snapshots(peer, name, size)
            with self._timed("copy", size, peer):
                source = {"type": "copy", "source": name, "instance_only": True}
                peer.api.call("POST", "/1.0/instances", {"name": f"{name}-c", "source": source})
            peer.delete(f"{name}-c")
            for step, algorithm in (("export", "none"), ("export_usual", "gzip")):
                if (size, step) != ("3000", "export_usual"):  # what is measured then is gzip
                    with self._timed(step, size, peer):
                        _export(peer, name, algorithm)
        finally:
            peer.remove(name)

    def _snapshots(self, peer: RestPeer, name: str, size: str) -> None:
        snapshots = f"/1.0/instances/{name}/snapshots"
        with self._timed("snapshot_running", size, peer):
            peer.api.call("POST", snapshots, {"name": "r"})
        peer.stop(name, force=True)
        peer.api.call("DELETE", f"{snapshots}/r")
        with self._timed("snapshot", size, peer):
            peer.api.call("POST", snapshots, {"name": "s"})
        peer.start(name)
        run_inside(peer, name, _CHANGE)
        peer.stop(name, force=True)
        with self._timed("restore", size, peer):
            peer.api.call("PUT", f"/1.0/instances/{name}", {"restore": "s"})

    @contextmanager
    def _timed(self, step: str, size: str, peer: RestPeer) -> Iterator[None]:
        os.sync()  # what others have written is not this step's
        begin = time.monotonic()
        yield
        self._report.add(f"{step}_{size}", peer.title, (time.monotonic() - begin) * 1000)


def measure(
    report: Report, peers: list[RestPeer], rounds: Mapping[str, int], say: Callable[[str], None], sizes: list[str]
) -> None:
    measurements = StorageMeasurements(report)
    for size in sizes:
        for number in range(rounds[size]):
            for peer in peers:
                say(f"storage, {_SIZES[size][0]}, {number + 1} of {rounds[size]}: {peer.title}")
                measurements.round(peer, size)


def run_inside(peer: RestPeer, name: str, command: str) -> None:
    body = {"command": ["sh", "-ec", command], "environment": {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}}
    result = peer.api.call("POST", f"/1.0/instances/{name}/exec", body)
    assert result["return"] == 0, (peer.title, command, result)


def _export(peer: RestPeer, name: str, algorithm: str) -> None:
    url = f"/1.0/instances/{name}/backups"
    post = {"name": "b", "instance_only": True, "compression_algorithm": algorithm, "expires_at": None}
    peer.api.call("POST", url, post)
    try:
        assert download(peer, f"{url}/b/export") > 10 << 20
    finally:
        peer.api.call("DELETE", f"{url}/b")


def download(peer: RestPeer, path: str) -> int:
    """Read an answer's body in pieces and forget it; how long it was."""
    with peer.api.reading(path) as answer:
        return _drain(answer)


def _drain(answer: http.client.HTTPResponse) -> int:
    total, buffer = 0, bytearray(_PIECE_BYTES)
    while count := answer.readinto(buffer):
        total += count
    return total
