# SPDX-License-Identifier: Apache-2.0
"""What a daemon holds of its host: counted before and after a load, the difference is a leak."""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.system.machine import Machine

# Files that stay with an image or grow with time are no leak of instances.
_KEPT = ("images", "database")
# The pools' bounds (`host/threads.py`, asyncio's executor, the store's): they grow to them, and no further.
_THREADS = 16 + min(32, (os.cpu_count() or 1) + 4) + 6


def counts(machine: Machine) -> dict[str, int]:
    """Of everything that an instance has while it lives; `left_over` says what differs."""
    found = {f"fd {kind}": count for kind, count in _descriptors(machine.pid).items()}
    found["threads"] = max(_THREADS, len(os.listdir(f"/proc/{machine.pid}/task")))
    found["processes"] = len(_processes(machine))
    found["mounts"] = len(_mounts(machine))
    found["cgroups"] = sum(1 for _ in _groups(machine))
    found["links"] = len(_run(machine, "ip", "-o", "link").splitlines())
    found["nft rules"] = len(_run(machine, "nft", "-s", "list", "ruleset").splitlines())
    found["network namespaces with an id"] = len(_run(machine, "ip", "netns", "list-id").splitlines())
    for directory in sorted(path for path in machine.directory.iterdir() if path.is_dir() and path.name not in _KEPT):
        found[f"files in {directory.name}"] = sum(1 for _ in _files(directory))
    found["operations"] = sum(len(ids) for ids in machine.get("/1.0/operations").values())
    return found


def memory_kib(machine: Machine) -> dict[str, int]:
    """RSS and PSS of the daemon alone."""
    text = Path(f"/proc/{machine.pid}/smaps_rollup").read_text()
    lines = (line.split() for line in text.splitlines()[1:])
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[0] in ("Rss:", "Pss:")}


def left_over(before: dict[str, int], after: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What there is more of."""
    return {name: (before.get(name, 0), count) for name, count in sorted(after.items()) if count > before.get(name, 0)}


def _descriptors(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:  # closed meanwhile
            continue
        # `socket:[123]` without its number; `anon_inode:[pidfd]`; paths.
        kind, _, what = target.partition(":")
        found["file" if target.startswith("/") else what if kind == "anon_inode" else kind] += 1
    return found


def _processes(machine: Machine) -> list[int]:
    """Children of the daemon, and whatever names its directory: monitors, DHCP servers, helpers."""
    place = os.fspath(machine.directory).encode()
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
            line = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if int(stat[1]) == machine.pid or place in line:
            found.append(int(name))
    return found


def _mounts(machine: Machine) -> list[str]:
    place = os.fspath(machine.directory) + "/"
    lines = Path(f"/proc/{machine.pid}/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4].startswith(place)]


def _groups(machine: Machine) -> Iterator[str]:
    # Not `**`: other daemons' groups come and go meanwhile.
    for pattern in (machine.group(), f"*/{machine.group()}"):
        for top in Path("/sys/fs/cgroup").glob(pattern):
            for directory, _, _ in os.walk(top):
                yield directory


def _files(directory: Path) -> Iterator[str]:
    """Without the trees that belong to a whole image."""
    for place, directories, files in os.walk(directory):
        if Path(place).parent.name == "storage-pools":
            directories[:] = [name for name in directories if name != "images"]
        yield from files
        yield from directories


def _run(machine: Machine, *argv: str) -> str:
    return subprocess.run([*machine.enter(), *argv], capture_output=True, text=True, check=True).stdout
