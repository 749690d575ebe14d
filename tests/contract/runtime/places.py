# SPDX-License-Identifier: Apache-2.0
"""What the runtime's contract tests run on: a small root file system, and one way to handle fake and real alike."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct, structs

from flexd.api.idmap import IdMap
from flexd.runtime.contract import ContainerFiles, ContainerSpec, ExecProcess, ExecSpec, RunningContainer, Runtime

IDS = IdMap.single(1_000_000, 65_536)

_INITTAB = """\
::sysinit:/bin/echo booted
::respawn:/bin/sleep 3600
::ctrlaltdel:/sbin/reboot
"""
# fmt: off
_PROGRAMS = (
    "true", "false", "echo", "cat", "env", "pwd", "sleep", "sh", "tty", "stty", "printf", "head", "wc", "id", "reboot",
    "poweroff", "kill", "ls", "readlink", "mount", "umount", "ln", "touch", "mkdir",
)
# fmt: on


def make_root(root: Path, *, busybox: Path | None) -> None:
    """A root file system: with busybox as its init, or (for the fake) with nothing that could run."""
    for directory in ("bin", "sbin", "etc", "proc", "sys", "dev", "tmp", "root", "run"):
        (root / directory).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")
    (root / "etc/inittab").write_text(_INITTAB)
    (root / "etc/data").write_text("no program\n")
    if busybox is None:
        return
    shutil.copy(busybox, root / "bin/busybox")
    for program in _PROGRAMS:
        (root / "bin" / program).symlink_to("busybox")
    (root / "sbin/init").symlink_to("/bin/busybox")
    for directory, names, files in os.walk(root):
        for name in (".", *names, *files):
            os.lchown(os.path.join(directory, name), 1_000_000, 1_000_000)


class Place(Struct):
    """A runtime, and how to begin again with it as a restarted daemon would."""

    runtime: Runtime
    restart: Callable[[], Runtime]
    root: Path
    real: bool
    name: str = "c1"

    def spec(self, **changes: object) -> ContainerSpec:
        return structs.replace(ContainerSpec(self.name, self.root, IDS), **changes)

    async def files(self, container: RunningContainer | None) -> ContainerFiles:
        return await self.runtime.files(container, self.root, IDS)


class Pipes:
    """The three standard descriptors of a command; ours are read and written in threads."""

    def __init__(self) -> None:
        self.stdin, self._input = os.pipe()
        self._output, self.stdout = os.pipe()
        self._errors, self.stderr = os.pipe()

    async def start(self, runtime: Runtime, container: RunningContainer, spec: ExecSpec) -> ExecProcess:
        try:
            return await runtime.exec(
                container, spec, stdin=self.stdin, stdout=self.stdout, stderr=self.stderr, terminal=False
            )
        finally:
            for fd in (self.stdin, self.stdout, self.stderr):
                os.close(fd)

    async def finish(self, data: bytes = b"") -> tuple[bytes, bytes]:
        await asyncio.to_thread(_write_all, self._input, data)
        return await asyncio.to_thread(_read_all, self._output), await asyncio.to_thread(_read_all, self._errors)


async def run(
    runtime: Runtime, container: RunningContainer, *command: str, data: bytes = b"", **options: object
) -> tuple[int, bytes, bytes]:
    """Status, output and errors of a command."""
    pipes = Pipes()
    process = await pipes.start(runtime, container, structs.replace(ExecSpec(command), **options))
    output, errors = await pipes.finish(data)
    return await process.wait(), output, errors


def _write_all(fd: int, data: bytes) -> None:
    with open(fd, "wb") as file:
        file.write(data)


def _read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


async def settled(check: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Wait for something that another process does; the limit only ends a test that would hang."""
    async with asyncio.timeout(within_s):
        while not check():
            await asyncio.sleep(0.01)
