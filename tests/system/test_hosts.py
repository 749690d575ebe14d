# SPDX-License-Identifier: Apache-2.0
"""The hosts that migrations are tested between see each other, and leave nothing behind."""

import sys
from pathlib import Path

from tests.system.hosts import hosts


def test_hosts_and_their_clean_up(state_root: Path) -> None:
    place = state_root / "seen"
    with hosts(place) as made:
        for host in made.all:
            assert host.name in made.person.flexc("remote", "list", "--format", "csv").stdout
            assert made.person.lxc("query", f"{host.name}:/1.0/instances").stdout.strip() == "[]"
        a, b = made.all
        reach = f"import socket; socket.create_connection(('{b.address}', 8443), 20).close()"
        a.inside(sys.executable, "-c", reach)
    assert not place.exists()
