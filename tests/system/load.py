# SPDX-License-Identifier: Apache-2.0
"""Clients that launch and delete tiny containers for a while, and what is left of it.

`python -m tests.system.load --clients 50 --seconds 600` as root, by hand: ten minutes are too long for every run of the
tests, which do the same for seconds (`test_leaks.py`).
"""

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.system.footprint import counts, left_over, memory_kib
from tests.system.images import tiny_image
from tests.system.machine import ApiError, Machine, machine

# What the daemon lets go of a little later: idle threads' work, operations that can still be read (5 s).
_SETTLE_S = 30.0
_IMAGE = "tiny"


@dataclass
class Load:
    """What clients did. `failures`: what must not happen, with the name of the instance."""

    launched: int = 0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def run_clients(server: Machine, clients: int, seconds: float) -> Load:
    """Each launches, looks, runs a command in, and deletes one container after the other; at least one each."""
    load = Load()
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=_client, args=(server, load, number, end)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load


def settled(server: Machine, before: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What is left once the daemon had time to let go."""
    deadline = time.monotonic() + _SETTLE_S
    while (left := left_over(before, counts(server))) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def _client(server: Machine, load: Load, number: int, end: float) -> None:
    turn = 0
    while turn == 0 or time.monotonic() < end:
        name = f"load-{number}-{turn}"
        turn += 1
        try:
            for method, path, body in _cycle(name, ephemeral=turn % 3 == 0):
                server.call(method, path, body)
        except (ApiError, OSError) as error:
            with load.lock:
                load.failures.append(f"{name}: {error}")
        with load.lock:
            load.launched += 1


def _cycle(name: str, *, ephemeral: bool) -> Iterator[tuple[str, str, object]]:
    """One container's life as requests; an ephemeral one goes with its stop."""
    url = f"/1.0/instances/{name}"
    source = {"type": "image", "alias": _IMAGE}
    yield "POST", "/1.0/instances", {"name": name, "source": source, "ephemeral": ephemeral}
    yield "PUT", f"{url}/state", {"action": "start"}
    yield "GET", f"{url}?recursion=1", None
    yield "POST", f"{url}/exec", {"command": ["true"]}
    yield "PUT", f"{url}/state", {"action": "stop", "force": True}
    if not ephemeral:
        yield "DELETE", url, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--state", type=Path, default=Path("/var/tmp"), help="where the daemon keeps its state")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    arguments = parser.parse_args()
    place = arguments.state / f"flexd-load-{os.getpid()}"
    place.mkdir(mode=0o711)
    try:
        with machine(place / "d") as server:
            server.import_image(tiny_image(), _IMAGE)
            found = _measure(server, arguments.clients, arguments.seconds)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    sys.exit(bool(found["left"] or found["failures"]))


def _measure(server: Machine, clients: int, seconds: float) -> dict[str, object]:
    run_clients(server, clients, 10)  # threads and caches reach what this load needs
    time.sleep(10)
    before, memory_before = counts(server), memory_kib(server)
    began = time.monotonic()
    load = run_clients(server, clients, seconds)
    took_s = time.monotonic() - began
    left = settled(server, before)
    return {
        "clients": clients,
        "seconds": round(took_s),
        "launched": load.launched,
        "failures": load.failures[:20],
        "left": left,
        "before": before,
        "after": counts(server),
        "memory_kib": {"before": memory_before, "after": memory_kib(server)},
    }


if __name__ == "__main__":
    main()
