# SPDX-License-Identifier: Apache-2.0
"""Many moves in a row of a booted Debian between two hosts, and what a TCP client saw of each.

`python -m tests.bench.moves --moves 50 [--image debian/13] [--cold]` as root, by hand: too long for every run of the
tests. Ends with an error at the first move that fails, or that the connection does not survive.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.system.asked import Asked
from tests.system.hosts import Host, Hosts, hosts
from tests.system.images import debian_image, split_body
from tests.system.machine import wait_until

_NAME = "moving"
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
        self.place.flexc("launch", "debian", _NAME, "-c", "migration.stateful=true")
        wait_until(self._is_booted, _BOOT_TIMEOUT_S)
        for name, text in _UNITS.items():
            self._inside("sh", "-c", f"printf '%s' '{text}' > /etc/systemd/system/{name}")
        self._inside("systemctl", "daemon-reload")
        self._inside("systemctl", "start", "echo.socket")
        self.address: str = wait_until(self._address, _BOOT_TIMEOUT_S)

    def _inside(self, *argv: str, check: bool = True) -> str:
        flexc = str(Path(sys.executable).parent / "flexc")
        return self.place.run(flexc, "exec", _NAME, "--", *argv, check=check).stdout.strip()

    def _is_booted(self) -> bool:
        return self._inside("systemctl", "is-system-running", check=False) in ("running", "degraded")

    def _address(self) -> str | None:
        network = self.place.get(f"/1.0/instances/{_NAME}/state")["network"] or {}
        found = [each["address"] for each in network.get("eth0", {}).get("addresses", ()) if each["family"] == "inet"]
        return found[0] if found else None

    def move(self, *options: str) -> float:
        """To the other host; how long the command took."""
        source = self.place
        (target,) = (host for host in self._segment.all if host is not source)
        began = time.monotonic()
        self._segment.person.flexc("move", f"{source.name}:{_NAME}", f"{target.name}:", *options)
        took = time.monotonic() - began
        self.place = target
        return took

    def move_cold(self) -> float:
        began = time.monotonic()
        self._segment.person.flexc("stop", f"{self.place.name}:{_NAME}")
        self.move()
        self._segment.person.flexc("start", f"{self.place.name}:{_NAME}")
        return time.monotonic() - began

    def check(self) -> None:
        """systemd answers, and can start something."""
        self._inside("systemctl", "restart", "systemd-journald")
        state = self._inside("systemctl", "is-system-running", check=False)
        assert state == "running", f'systemd says "{state}"'

    @contextlib.contextmanager
    def client(self, log: Path) -> Iterator[Asked]:
        asked = Asked(self._segment.person, log, "tests.bench.silence", self.address, str(_PORT))
        try:
            yield asked
        finally:
            asked.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=50)
    parser.add_argument("--image", default="debian/12")
    parser.add_argument("--cold", action="store_true", help="stopped, moved, started; without a client")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("Error: run it as root")
    directory = Path(tempfile.mkdtemp(prefix="fxm-", dir="/var/tmp"))
    directory.chmod(0o711)
    try:
        with hosts(directory / "hosts") as segment:
            traveller = Traveller(segment, arguments.image)
            if arguments.cold:
                took = [_told(number, traveller.move_cold()) for number in range(1, arguments.moves + 1)]
                print(f"cold, stop and start included: median {statistics.median(took):.2f} s, worst {max(took):.2f} s")
            else:
                _live(traveller, arguments.moves, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _told(number: int, took: float) -> float:
    print(f"{number}: {took:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    return took


def _live(traveller: Traveller, moves: int, directory: Path) -> None:
    silences = []
    with traveller.client(directory / "client.log") as client:
        wait_until(lambda: client.ask()["lines"] > 0)
        for number in range(1, moves + 1):
            took = traveller.move("--live")
            traveller.check()
            silences.append(client.ask()["silence_s"])
            print(
                f"{number}: silence {silences[-1]:.2f} s, move {took:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True
            )
    print(
        f"{moves} moves, one connection; longest silence: best {min(silences):.2f} s, "
        f"median {statistics.median(silences):.2f} s, worst {max(silences):.2f} s"
    )


if __name__ == "__main__":
    main()
