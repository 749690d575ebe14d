# SPDX-License-Identifier: Apache-2.0
"""Which CRIU there is and whether it works with the running kernel: ours (`packaging/install-criu`), else the
system's."""

import asyncio
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from flexd.host.contract import CommandFailed, Completed, Processes
from flexd.host.criu_contract import CriuFacts
from flexd.host.threads import Threads

# Where the distribution's own is too old for the kernel, a newer one is put beside it.
OURS = Path("/usr/local/lib/flexd/criu/sbin/criu")
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REMEDY = "./run up, or packaging/install-criu, installs one"
_TIMEOUT_S = 20.0
_VERSION = re.compile(r"^Version: *(\d+(?:\.\d+)*)", re.MULTILINE)
_NUMBERS = re.compile(r"\d+(?:\.\d+)*")
# Before, dumps of any network socket fail from Linux 6.16 on (SO_PASSCRED can be read of unix sockets alone), and 4.1.1
# on older kernels cannot be driven over a socket as the runtime does it. `criu check` notices neither.
_LEAST = (4, 2)

# A program as it is now: path, time of change, size.
Mark = tuple[Path, int, int]


class LinuxCriu:
    def __init__(self, threads: Threads, processes: Processes, *, places: Sequence[Path] | None = None) -> None:
        """`places`: where to look, in this order; tests name their own."""
        self._threads = threads
        self._processes = processes
        self._places = places
        self._marks: list[Mark] | None = None
        self._facts = CriuFacts()
        self._lock = asyncio.Lock()

    async def facts(self) -> CriuFacts:
        async with self._lock:
            marks = await self._threads.run(self._find)
            if marks != self._marks:
                self._facts = await self._best(marks)
                self._marks = marks
            return self._facts

    def _find(self) -> list[Mark]:
        places = self._places
        if places is None:
            system = shutil.which("criu", path=_SEARCH_PATH)
            places = [OURS, *([Path(system)] if system else [])]
        return [mark for mark in map(_mark, places) if mark is not None]

    async def _best(self, marks: list[Mark]) -> CriuFacts:
        """The first that is usable; if none is, what is wrong with the first."""
        judged = []
        for path, _, _ in marks:
            judged.append(await self._judge(path))
            if judged[-1].usable:
                return judged[-1]
        return judged[0] if judged else CriuFacts(reason=f"CRIU is not installed; {_REMEDY}")

    async def _judge(self, path: Path) -> CriuFacts:
        done = await self._run(path, "--version")
        match = _VERSION.search(done.stdout.decode(errors="replace"))
        if match is None:
            words = f"{path} does not run: {_last_line(done)}; {_REMEDY}"
            return CriuFacts(path, reason=words)
        reason = mismatch(match[1], os.uname().release)
        if reason:
            return CriuFacts(path, match[1], reason=f"{reason}; {_REMEDY}")
        checked, tracking = await asyncio.gather(
            self._run(path, "check"), self._run(path, "check", "--feature", "mem_dirty_track")
        )
        if checked.returncode != 0:
            reason = f"CRIU {match[1]} cannot work on this host: {_last_line(checked)}"
        return CriuFacts(path, match[1], not reason, reason, memory_tracking=tracking.returncode == 0)

    async def _run(self, path: Path, *arguments: str) -> Completed:
        try:
            return await self._processes.run([str(path), *arguments], check=False, timeout_s=_TIMEOUT_S)
        except CommandFailed as error:
            return Completed(1, b"", str(error).encode())


def mismatch(version: str, kernel: str) -> str:
    """Why CRIU of this version does not go with this kernel (`4.1.1`, `6.18.44-fc`); empty if it does."""
    if _number(version) >= _LEAST:
        return ""
    return f"CRIU {version} does not work with Linux {kernel}: {'.'.join(map(str, _LEAST))} or later is needed"


def _number(text: str) -> tuple[int, ...]:
    match = _NUMBERS.match(text)
    return tuple(int(part) for part in match[0].split(".")) if match else (0,)


def _mark(path: Path) -> Mark | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (path, found.st_mtime_ns, found.st_size) if os.access(path, os.X_OK) else None


def _last_line(done: Completed) -> str:
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("Error")]
    return (errors or lines or [f"exit status {done.returncode}"])[-1]
