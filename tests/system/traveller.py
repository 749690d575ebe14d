# SPDX-License-Identifier: Apache-2.0
"""A booted Debian that moves between two hosts, with an echo server in it for a client that keeps its connection."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.system.asked import Asked
from tests.system.hosts import Host, Hosts
from tests.system.images import debian_image, split_body
from tests.system.machine import wait_until

NAME = "moving"
_PORT = 7000
_BOOT_TIMEOUT_S = 120.0
# An echo server of systemd's own: a connection is a cat.
_UNITS = {
    "echo.socket": f"[Socket]\nListenStream={_PORT}\nAccept=yes\n",
    "echo@.service": "[Service]\nExecStart=/bin/cat\nStandardInput=socket\nStandardOutput=socket\n",
}


class Traveller:
    """A container with an echo server, and where it is."""

    def __init__(self, segment: Hosts, image: str) -> None:
        self._segment = segment
        self.place: Host = segment.all[0]
        segment.serve_dhcp()
        self.place.import_body(*split_body(*debian_image(image)), "debian")
        self.place.flexc("launch", "debian", NAME, "-c", "migration.stateful=true")
        wait_until(self._is_booted, _BOOT_TIMEOUT_S)
        for name, text in _UNITS.items():
            self.inside("sh", "-c", f"printf '%s' '{text}' > /etc/systemd/system/{name}")
        self.inside("systemctl", "daemon-reload")
        self.inside("systemctl", "start", "echo.socket")
        self.address: str = wait_until(self._address, _BOOT_TIMEOUT_S)

    def inside(self, *argv: str, check: bool = True) -> str:
        flexc = str(Path(sys.executable).parent / "flexc")
        return self.place.run(flexc, "exec", NAME, "--", *argv, check=check).stdout.strip()

    def _is_booted(self) -> bool:
        return self.inside("systemctl", "is-system-running", check=False) in ("running", "degraded")

    def _address(self) -> str | None:
        network = self.place.get(f"/1.0/instances/{NAME}/state")["network"] or {}
        found = [each["address"] for each in network.get("eth0", {}).get("addresses", ()) if each["family"] == "inet"]
        return found[0] if found else None

    def move(self, *options: str) -> float:
        """To the other host; how long the command took."""
        source = self.place
        (target,) = (host for host in self._segment.all if host is not source)
        began = time.monotonic()
        self._segment.person.flexc("move", f"{source.name}:{NAME}", f"{target.name}:", *options)
        took = time.monotonic() - began
        self.place = target
        return took

    def move_cold(self) -> float:
        began = time.monotonic()
        self._segment.person.flexc("stop", f"{self.place.name}:{NAME}")
        self.move()
        self._segment.person.flexc("start", f"{self.place.name}:{NAME}")
        return time.monotonic() - began

    def check(self) -> None:
        """systemd answers, and can start something."""
        self.inside("systemctl", "restart", "systemd-journald")
        state = self.inside("systemctl", "is-system-running", check=False)
        assert state == "running", f'systemd says "{state}"'

    @contextlib.contextmanager
    def client(self, log: Path) -> Iterator[Asked]:
        asked = Asked(self._segment.person, log, "tests.bench.silence", self.address, str(_PORT))
        try:
            yield asked
        finally:
            asked.close()
