# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench.migration [MB]`: a stopped copy between two servers, flexd beside lxd, in one run. As root.

Each column has two hosts in namespaces of their own on one switch (`tests.system.hosts`); `lxc copy` is the stopwatch.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.system.hosts import Daemon, Host, Hosts, Person
from tests.system.images import tiny_image

_ROUNDS = 3
_COLUMNS: tuple[tuple[str, Daemon, str], ...] = (
    ("flexd overlay", "flexd", "overlay"),
    ("flexd btrfs", "flexd", "btrfs"),
    ("flexd dir", "flexd", "dir"),
    ("lxd dir", "lxd", "dir"),
    ("lxd btrfs", "lxd", "btrfs"),
)
_FILE_KB = 64  # of one of the container's files: as many as a Debian has for its size, more or less


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("Error: the benchmarks make containers: run them as root")
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 310
    print(f"{'stopped copy, seconds':<16} {'new':>8} {'again':>8} {'refresh':>8}   ({megabytes} MB of its own)")
    for title, daemon, driver in _COLUMNS:
        if daemon == "lxd" and shutil.which("lxd") is None:
            continue
        measured = measure(daemon, driver, megabytes)
        print(f"{title:<16} " + " ".join(f"{seconds:8.2f}" for seconds in measured), flush=True)


def measure(daemon: Daemon, driver: str, megabytes: int) -> list[float]:
    """A first copy, further ones (images and caches are warm), and a refresh with nothing to send."""
    place = Path(f"/var/tmp/fxb-migration-{os.getpid()}")
    hosts = Hosts(place)
    try:
        a, b = (hosts.add(name, driver=driver, daemon=daemon) for name in ("a", "b"))
        for host in (a, b):
            host.import_image(tiny_image(), "tiny")
        hosts.person.lxc("init", "a:tiny", "a:c1")
        _fill(a, hosts.person, megabytes)
        first = _timed(lambda: hosts.person.lxc("copy", "a:c1", "b:n0"))
        again = [
            _timed(lambda number=number: hosts.person.lxc("copy", "a:c1", f"b:n{number}"))  # type: ignore[misc]
            for number in range(1, _ROUNDS + 1)
        ]
        refresh = [_timed(lambda: hosts.person.lxc("copy", "a:c1", "b:n0", "--refresh")) for _ in range(_ROUNDS)]
        return [first, statistics.median(again), statistics.median(refresh)]
    finally:
        hosts.close()


def _fill(host: Host, person: Person, megabytes: int) -> None:
    """Files that nothing compresses, written through the API."""
    folder = host.directory.parent / "noise"
    folder.mkdir()
    for number in range(megabytes * 1000 // _FILE_KB):
        (folder / f"f{number}").write_bytes(os.urandom(_FILE_KB * 1000))
    archive = subprocess.run(["tar", "-C", str(folder), "-cf", "-", "."], capture_output=True, check=True).stdout
    shutil.rmtree(folder)
    person.lxc("start", "a:c1")
    person.run("lxc", "exec", "a:c1", "-T", "--", "tar", "-C", "/root", "-xf", "-", stdin=archive)
    person.lxc("stop", "-f", "a:c1")


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
