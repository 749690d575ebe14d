# SPDX-License-Identifier: Apache-2.0
"""Many moves in a row of a booted Debian between two hosts, and what a TCP client saw of each.

`python -m tests.bench.moves --moves 50 [--image debian/13] [--cold]` as root, by hand: too long for every run of the
tests. Ends with an error at the first move that fails, or that the connection does not survive.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from tests.system.hosts import hosts
from tests.system.machine import wait_until
from tests.system.traveller import Traveller


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
