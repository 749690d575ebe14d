# SPDX-License-Identifier: Apache-2.0
"""Containers come and go; nothing of them stays: descriptors, threads, mounts, cgroups, links, rules, files.

Ten minutes with 50 clients: `python -m tests.system.load`.
"""

from pathlib import Path

from tests.system.footprint import counts
from tests.system.images import tiny_image
from tests.system.load import run_clients, settled
from tests.system.machine import machine, wait_until

CLIENTS = 8


def test_launching_and_deleting_leaves_nothing(state_root: Path) -> None:
    with machine(state_root / "leaks") as server:
        server.import_image(tiny_image(), "tiny")
        assert run_clients(server, CLIENTS, 4).failures == []  # threads and caches reach what this load needs
        wait_until(lambda: counts(server)["operations"] == 0)
        before = counts(server)
        load = run_clients(server, CLIENTS, 20)
        assert load.failures == []
        assert load.launched >= CLIENTS
        assert settled(server, before) == {}
