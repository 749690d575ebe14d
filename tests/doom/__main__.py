# SPDX-License-Identifier: Apache-2.0
"""`./run doom`: as root; leaves the page behind and nothing else, also when it is interrupted."""

import argparse
import asyncio
import os
import platform
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from flexd.host.contract import CriuFacts
from flexd.host.linux import LinuxHost
from tests.doom.page import page
from tests.doom.show import Move, show

_PAGE = Path(".bench/doom.html")


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run doom", description=__doc__)
    parser.add_argument("--moves", type=int, default=6, metavar="N", help="how often it moves (default: 6)")
    parser.add_argument("--page", type=Path, default=_PAGE, metavar="FILE", help=f"what to write (default: {_PAGE})")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("Error: the demonstration makes hosts and containers: run it as root")
    criu = asyncio.run(_criu())
    if not criu.usable:
        sys.exit(f"Error: {criu.reason}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix="flexd-doom-", dir="/var/tmp"))
    try:
        moves = _perform(directory, arguments.moves)
        arguments.page.parent.mkdir(parents=True, exist_ok=True)
        arguments.page.write_text(page(moves, _machine(criu)))
    except KeyboardInterrupt:
        sys.exit("Interrupted; everything was taken down")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"Longest silence: {max(move.silence_s for move in moves):.2f} s\nWritten: {arguments.page.resolve()}")


async def _criu() -> CriuFacts:
    host = LinuxHost()
    try:
        return await host.criu.facts()
    finally:
        await host.close()


def _perform(directory: Path, count: int) -> list[Move]:
    print("Making the image (once) and two hosts", flush=True)
    moves: list[Move] = []
    with show(directory) as made:
        address = made.launch()
        print(f"Doom plays on host {made.place.name}; its screen: {address}:5900", flush=True)
        with made.watching(address) as screen:
            for number in range(1, count + 1):
                moves.append(move := made.move(screen))
                print(
                    f"move {number}: {move.source} -> {move.target} in {move.took_s:.2f} s, "
                    f"the watcher waited {move.silence_s:.2f} s at most",
                    flush=True,
                )
    return moves


def _machine(criu: CriuFacts) -> str:
    return (
        f"{os.cpu_count()} CPUs, Linux {platform.release()}, CRIU {criu.version}, both hosts on one machine; "
        f"load {os.getloadavg()[0]:.1f} at the end."
    )


if __name__ == "__main__":
    main()
