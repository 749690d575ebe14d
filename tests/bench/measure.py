# SPDX-License-Identifier: Apache-2.0
"""The measurements; each adds its samples to the report."""

import contextlib
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from websockets.exceptions import ConnectionClosed

from tests.bench import observe
from tests.bench.peers import PREFIX, ByHand, RestPeer
from tests.bench.report import Report

_BLOB = 100 * 1024 * 1024
_MB = 1e6
_IDLE_S = 10.0
_IDLE_LISTED_S = 30.0
# What still goes on in a container after its boot (timers, journal) settles within seconds.
_SETTLE_S = 5.0
_AT_ONCE = 8


class Measurements:
    def __init__(self, report: Report, execs: observe.ExecTimes, *, exec_count: int) -> None:
        self._report = report
        self._execs = execs
        self._exec_count = exec_count
        self._blob = os.urandom(1 << 20) * (_BLOB >> 20)

    @contextmanager
    def _timed(self, key: str, column: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self._report.add(key, column, (time.monotonic() - begin) * 1000)

    def _add_since(self, key: str, column: str, begin: float, moment: float | None) -> None:
        if moment is not None:
            self._report.add(key, column, (moment - begin) * 1000)

    # --- one round of one peer ---

    def life(self, peer: RestPeer | ByHand, number: int, wanted: Callable[[str], bool]) -> None:
        """From nothing to nothing; what is measured inside a running instance happens on the way."""
        name = f"{PREFIX}-r{number}"
        self._launch(peer, name)
        if wanted("exec"):
            self._exec(peer, name)
        if wanted("files") and isinstance(peer, RestPeer):
            self._files(peer, name)
        with self._timed("stop", peer.title):
            peer.stop(name, force=False)
        with self._timed("start_again", peer.title):
            peer.start(name)
        with self._timed("kill", peer.title):
            peer.stop(name, force=True)
        with self._timed("delete", peer.title):
            peer.delete(name)
        self._delete_running(peer, name)

    def _launch(self, peer: RestPeer | ByHand, name: str) -> None:
        self._execs.forget()
        begin = time.monotonic()
        with self._timed("create", peer.title):
            peer.create(name)
        with self._timed("start", peer.title):
            peer.start(name)
        self._add_since("launch", peer.title, begin, time.monotonic())
        pid = peer.pid(name)
        with ThreadPoolExecutor(1) as background:
            booting = background.submit(observe.wait_booted, pid)
            if isinstance(peer, RestPeer):
                self._add_since("ipv4", peer.title, begin, observe.wait_ipv4(pid))
            booted, state = booting.result()
        self._add_since("pid1", peer.title, begin, self._execs.first(pid))
        self._add_since("booted", peer.title, begin, booted)
        note = f'systemd on {peer.title} said "{state}", not "running".'
        if state != "running" and note not in self._report.notes:
            self._report.notes.append(note)

    def _delete_running(self, peer: RestPeer | ByHand, name: str) -> None:
        peer.create(name)
        peer.start(name)
        observe.wait_booted(peer.pid(name))
        with self._timed("delete_force", peer.title):
            peer.stop(name, force=True)
            peer.delete(name)

    # --- inside ---

    def _exec(self, peer: RestPeer | ByHand, name: str) -> None:
        for _ in range(self._exec_count):
            with self._timed("exec", peer.title):
                if isinstance(peer, ByHand):
                    peer.execute(name)
                else:
                    self._exec_and_wait(peer, name)
        if isinstance(peer, RestPeer):
            for _ in range(self._exec_count):
                with self._timed("exec_websocket", peer.title):
                    self._exec_on_websockets(peer, name)

    def _exec_and_wait(self, peer: RestPeer, name: str) -> None:
        result = peer.api.call("POST", f"/1.0/instances/{name}/exec", {"command": ["true"]})
        assert result["return"] == 0, result

    def _exec_on_websockets(self, peer: RestPeer, name: str) -> None:
        body = {"command": ["true"], "wait-for-websocket": True}
        envelope = peer.api.request("POST", f"/1.0/instances/{name}/exec", body)
        operation, secrets = envelope["operation"], envelope["metadata"]["metadata"]["fds"]
        with contextlib.ExitStack() as channels:
            sockets = {
                key: channels.enter_context(peer.api.websocket(operation, secrets[key]))
                for key in ("control", "0", "1", "2")
            }
            # The end of output is an empty text or a close, whichever LXD comes to first.
            with contextlib.suppress(ConnectionClosed):
                while sockets["1"].recv() != "":
                    pass
            result = peer.api.wait(operation)
        assert result["return"] == 0, result

    def _files(self, peer: RestPeer, name: str) -> None:
        path = f"/1.0/instances/{name}/files?path=/root/blob"
        headers = {"X-LXD-type": "file", "Content-Type": "application/octet-stream"}
        with self._timed("push", peer.title):
            peer.api.raw("POST", path, self._blob, headers)
        with self._timed("pull", peer.title):
            back = peer.api.raw("GET", path)
        assert back == self._blob

    # --- many ---

    def many(self, peer: RestPeer, count: int) -> None:
        """Debians launched together, then left alone."""
        names = [f"{PREFIX}-m{number}" for number in range(count)]
        begin = time.monotonic()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: (peer.create(name), peer.start(name)), names))
        self._report.add("parallel", peer.title, time.monotonic() - begin)
        pids = [peer.pid(name) for name in names]
        for pid in pids:
            observe.wait_booted(pid, timeout_s=180)
        time.sleep(_SETTLE_S)
        monitors = [observe.parent(pid) for pid in pids]
        watched = [*observe.with_descendants(peer.server.pid), *monitors]
        before = observe.cpu_s(watched)
        time.sleep(_IDLE_S)
        self._report.add("idle_cpu", peer.title, (observe.cpu_s(watched) - before) * 1000)
        self._report.add("monitor", peer.title, *(observe.pss_bytes(pid) / _MB for pid in monitors))
        self.daemon_memory("pss_many", peer)
        for name in names:
            peer.stop(name, force=True)
            peer.delete(name)

    def daemon_memory(self, key: str, peer: RestPeer) -> None:
        total = sum(observe.pss_bytes(pid) for pid in observe.with_descendants(peer.server.pid))
        self._report.add(key, peer.title, total / _MB)

    # --- lists ---

    def fill(self, peer: RestPeer, count: int) -> None:
        for number in range(count):
            name = f"{PREFIX}-l{number}"
            peer.create(name, "tiny")
            peer.start(name)

    def fill_empty(self, peer: RestPeer, count: int) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda number: peer.create_empty(f"{PREFIX}-s{number}"), range(count)))

    def idle(self, peer: RestPeer) -> None:
        """What the daemon costs while nobody asks it for anything."""
        time.sleep(_SETTLE_S)
        watched = observe.with_descendants(peer.server.pid)
        before = observe.cpu_s(watched)
        time.sleep(_IDLE_LISTED_S)
        self._report.add("idle_listed", peer.title, (observe.cpu_s(watched) - before) * 1000)

    def lists(self, peer: RestPeer, times: int, key: str = "list") -> None:
        for recursion in (1, 2):
            taken = [self._list_once(peer, recursion) for _ in range(times)]
            self._report.add(f"{key}{recursion}", peer.title, *taken)
            if recursion == 2 and key == "list":
                self._report.add("list2_rate", peer.title, 1000 / statistics.mean(taken))

    def _list_once(self, peer: RestPeer, recursion: int) -> float:
        begin = time.monotonic()
        peer.api.raw("GET", f"/1.0/instances?recursion={recursion}")
        return (time.monotonic() - begin) * 1000

    def command(self, peer: RestPeer, key: str, argv: list[str], times: int) -> None:
        for _ in range(times):
            with self._timed(key, peer.title):
                subprocess.run(
                    argv, env=peer.server.client_environment, stdin=subprocess.DEVNULL, capture_output=True, check=True
                )


def versions(peers: list[Any]) -> dict[str, str]:
    """What each column is."""
    found = {}
    for peer in peers:
        if isinstance(peer, ByHand):
            said = subprocess.run(["lxc-start", "--version"], capture_output=True, text=True, check=True).stdout.strip()
            found[peer.title] = f"lxc-start {said}"
        else:
            environment = peer.api.get("/1.0")["environment"]
            found[peer.title] = f"{environment['server']} {environment['server_version']}, pool driver {peer.pool}"
    return found
